/** AMQP 0-9-1 with publisher confirms: RabbitMQ (www.rabbitmq.com/docs/confirms, amqp-0-9-1-reference). */

import type { Writable } from "node:stream";
import { type ChannelModel, type ConfirmChannel, connect, type Message, type Options } from "amqplib";
import type { AmqpConfig } from "../config/config.ts";
import { ChannelRejectedError, errorText, PermanentError, TransientError } from "../core/errors.ts";
import { APPLICATION_NAME, contentType, type Event } from "../core/event.ts";
import { bufferOf } from "../core/payload.ts";
import type { Delivery, Permission, Session, Target, Upstream } from "../core/upstream.ts";
import { FRAME_OVERHEAD_BYTES, type MessageToPublish, PublishEncoder } from "./amqp_frames.ts";
import { type DressedMessage, dresser } from "./amqp_headers.ts";
import { askPermission, onScratchChannel, publishAndTell, type Refusal, serverText } from "./amqp_scratch.ts";
import { attemptConnect, type Endpoint, parseEndpoint, percentDecode } from "./endpoint.ts";
import { MAX_COPIED_PAYLOAD_BYTES } from "./slab.ts";
import { tlsOptions } from "./tls.ts";

const PRODUCT = "RabbitMQ";
/** Measured with RabbitMQ 3.10 on two cores: smaller windows leave the broker idle, larger ones gain nothing. */
const DEFAULT_MAX_IN_FLIGHT = 2000;
/** Two missed beats end the connection: a dead one is noticed within 20 to 30 s. */
const DEFAULT_HEARTBEAT_SECONDS = 10;
/** A short string holds up to 255 bytes (AMQP 0-9-1, section 4.2.5.3). */
const SHORT_STRING_MAX_BYTES = 255;
/** Reply codes (AMQP 0-9-1, section 1.2). */
const ACCESS_REFUSED = 403;
const NOT_FOUND = 404;
const PRECONDITION_FAILED = 406;

export class AmqpUpstream implements Upstream {
  readonly kind = "amqp";
  readonly name: string;
  readonly maxInFlight: number;
  readonly #config: AmqpConfig;
  readonly #endpoint: Endpoint;
  readonly #vhost: string;
  /** Filled-in targets that were found missing, to be declared by the next session. */
  readonly #missing = new Map<string, Target>();

  constructor(config: AmqpConfig) {
    this.name = config.name;
    this.maxInFlight = config.maxInFlight ?? DEFAULT_MAX_IN_FLIGHT;
    this.#config = config;
    this.#endpoint = parseEndpoint(config.uri, { amqp: 5672, amqps: 5671 });
    this.#vhost = vhostOf(this.#endpoint.path);
  }

  async connect(targets: readonly Target[], onLost: (cause: Error) => void, signal: AbortSignal): Promise<Session> {
    const socket = new AbortController();
    return await attemptConnect(PRODUCT, this.#endpoint, signal, async () => {
      const connection = await this.#open(socket);
      const lost = watchLoss(connection);
      await checkTargets(connection, targets, this.#config.declare, this.#vhost);
      await this.#declareMissing(connection);
      const channel = await connection.createConfirmChannel();
      if (lost.cause !== undefined) throw lost.cause;
      const { deliveryMode, declare } = this.#config;
      const dress = dresser(this.#config);
      const onMissing = (target: Target) => declare && void this.#missing.set(`${target.type}:${target.name}`, target);
      return new AmqpSession(connection, channel, { deliveryMode, declare, dress, onMissing }, socket, lost, onLost);
    }, () => socket.abort());
  }

  async #declareMissing(connection: ChannelModel): Promise<void> {
    for (const [key, target] of this.#missing) {
      await checkTargets(connection, [target], true, this.#vhost);
      this.#missing.delete(key);
    }
  }

  async #open(socket: AbortController): Promise<ChannelModel> {
    const { scheme, host, port, username, password, query } = this.#endpoint;
    const secure = scheme === "amqps" ? await tlsOptions(this.#config.tls, host) : {};
    const options = {
      ...secure,
      // Nagle's algorithm would hold back the last packet of a batch until the broker's delayed acknowledgement.
      noDelay: true,
      // amqplib hands its options to net.connect, which destroys the socket when the signal aborts; there is no other
      // way to reach a socket that is still connecting.
      signal: socket.signal,
      clientProperties: { connection_name: `${APPLICATION_NAME} ${this.name}` },
    };
    const address: Options.Connect = {
      protocol: scheme,
      hostname: host,
      port,
      vhost: this.#vhost === "/" ? "/" : encodeURIComponent(this.#vhost),
      heartbeat: heartbeatSeconds(query),
      ...(username === undefined ? {} : { username, password: password ?? "" }),
    };
    try {
      return await connect(address, options);
    } catch (error) {
      throw this.#loginError(errorText(error)) ?? error;
    }
  }

  /** The broker answers a refused login with connection.close, whose code and text amqplib puts into the message. */
  #loginError(text: string): PermanentError | undefined {
    const at = `${PRODUCT} at ${this.#endpoint.text}`;
    const user = `user "${this.#endpoint.username ?? "guest"}"`;
    if (/\b403\b.*ACCESS_REFUSED/.test(text) && /login|auth/i.test(text)) {
      return new PermanentError(`${at} refused the login of ${user}; correct the user name and password in uri`);
    }
    // The only question open at that point is the virtual host; amqplib keeps the broker's words to itself.
    if (/Expected ConnectionOpenOk; got <ConnectionClose/.test(text)) {
      return new PermanentError(
        `${at} refused ${user} the virtual host "${this.#vhost}"; create it (rabbitmqctl add_vhost), grant it ` +
          "(rabbitmqctl set_permissions), or correct the path of uri",
      );
    }
    return undefined;
  }
}

/** `/` and nothing mean the default virtual host `/`, as does `//`; otherwise the path without its first slash. */
function vhostOf(path: string): string {
  const vhost = percentDecode(path.slice(1), "the virtual host in uri");
  return vhost === "" ? "/" : vhost;
}

/** `?heartbeat=` in seconds, as RabbitMQ's URI query parameters have it (www.rabbitmq.com/docs/uri-query-parameters). */
function heartbeatSeconds(query: URLSearchParams): number {
  const text = query.get("heartbeat");
  if (text === null) return DEFAULT_HEARTBEAT_SECONDS;
  const seconds = Number(text);
  if (/^\d+$/.test(text) && seconds >= 1 && seconds <= 3600) return seconds;
  throw new PermanentError(`heartbeat in uri is "${text}"; write the seconds, 1 to 3600`);
}

interface Loss {
  cause: Error | undefined;
  notify: (cause: Error) => void;
}

/** Follows the connection from its first moment, so that neither a fault nor its cause slips by before a session is there. */
function watchLoss(connection: ChannelModel): Loss {
  const loss: Loss = { cause: undefined, notify: () => {} };
  let fault: Error | undefined;
  // "error" comes before "close", but not always: a server that shuts down sends "close" alone.
  connection.on("error", (error: Error) => fault ??= error);
  connection.on("close", (error?: Error) => {
    if (loss.cause !== undefined) return;
    loss.cause = new TransientError(`the connection to ${PRODUCT} was lost: ${errorText(fault ?? error ?? "closed")}`);
    loss.notify(loss.cause);
  });
  return loss;
}

/** Throws PermanentError for the first target that is missing and not to be declared. */
async function checkTargets(
  connection: ChannelModel,
  targets: readonly Target[],
  declare: boolean,
  vhost: string,
): Promise<void> {
  for (const target of targets) {
    // The default exchange always exists, and may not even be asked for.
    if (target.type === "exchange" && target.name === "") continue;
    const reply = await check(connection, target);
    if (reply === undefined) continue;
    const what = `${target.type} "${target.name}" in virtual host "${vhost}"`;
    if (reply.code !== NOT_FOUND) throw targetError(what, reply, "grant the user access to it");
    if (!declare) throw targetError(what, reply, "create it, or set declare=true");
    const refusal = await declareTarget(connection, target);
    if (refusal !== undefined) throw targetError(what, refusal, "create it by hand");
  }
}

function targetError(what: string, refusal: Refusal, remedy: string): PermanentError {
  return new PermanentError(`${PRODUCT} answered for ${what}: ${refusal.text}; ${remedy}`);
}

function check(connection: ChannelModel, target: Target): Promise<Refusal | undefined> {
  return onScratchChannel(connection, async (channel) => {
    if (target.type === "queue") await channel.checkQueue(target.name);
    else await channel.checkExchange(target.name);
  });
}

function declareTarget(connection: ChannelModel, target: Target): Promise<Refusal | undefined> {
  return onScratchChannel(connection, async (channel) => {
    if (target.type === "queue") await channel.assertQueue(target.name, { durable: true });
    else await channel.assertExchange(target.name, "topic", { durable: true });
  });
}

interface SessionOptions {
  readonly deliveryMode: 1 | 2;
  /** Whether a filled-in target that is missing is declared; otherwise its events are refused. */
  readonly declare: boolean;
  /** Undefined where messages have no headers. */
  readonly dress: ((event: Event) => DressedMessage) | undefined;
  onMissing(target: Target): void;
}

class AmqpSession implements Session {
  readonly #connection: ChannelModel;
  readonly #channel: ConfirmChannel;
  readonly #options: SessionOptions;
  readonly #socket: AbortController;
  readonly #onLost: (cause: Error) => void;
  readonly #shortcut: Shortcut | undefined;
  /** By delivery tag, hence in the order of publishing. */
  readonly #unconfirmed = new Map<number, Delivery>();
  #lastTag = 0;
  #ended = false;

  constructor(
    connection: ChannelModel,
    channel: ConfirmChannel,
    options: SessionOptions,
    socket: AbortController,
    loss: Loss,
    onLost: (cause: Error) => void,
  ) {
    this.#connection = connection;
    this.#channel = channel;
    this.#options = options;
    this.#socket = socket;
    this.#onLost = onLost;
    loss.notify = (cause) => this.#lost(cause);
    channel.on("ack", ({ deliveryTag, multiple }) => this.#confirmed(deliveryTag, multiple));
    channel.on("nack", () => this.#lost(new TransientError(NACK_TEXT)));
    channel.on("return", (message) => this.#returned(message));
    channel.on("error", (error) => this.#channelClosed(error));
    // When the connection ends, its channels are closed first, and the cause is told in the same turn.
    channel.on("close", () => queueMicrotask(() => this.#lost(new TransientError(CHANNEL_CLOSED_TEXT))));
    batchWrites(connection);
    this.#shortcut = shortcutOf(connection, channel, options.deliveryMode);
  }

  publish(delivery: Delivery): void {
    if (this.#ended) return;
    const { event, target } = delivery;
    const toQueue = target.type === "queue";
    const exchange = toQueue ? "" : target.name;
    const routingKey = toQueue ? target.name : event.routingKey;
    // No character takes more than three bytes per UTF-16 unit.
    const keyBytes = routingKey.length * 3 > SHORT_STRING_MAX_BYTES ? Buffer.byteLength(routingKey) : 0;
    if (keyBytes > SHORT_STRING_MAX_BYTES) {
      delivery.refuse(this, `its routing key has ${keyBytes} bytes; AMQP allows ${SHORT_STRING_MAX_BYTES}`);
      return;
    }
    if (target.filledIn && exchange.length * 3 > SHORT_STRING_MAX_BYTES) {
      const bytes = Buffer.byteLength(exchange);
      if (bytes > SHORT_STRING_MAX_BYTES) {
        delivery.refuse(this, `its exchange's name has ${bytes} bytes; AMQP allows ${SHORT_STRING_MAX_BYTES}`);
        return;
      }
    }
    const dressed = this.#options.dress?.(event);
    if (dressed?.fault !== undefined) {
      delivery.refuse(this, dressed.fault);
      return;
    }
    try {
      this.#send(
        {
          exchange,
          routingKey,
          // A queue that is gone shows only in a return: the confirm comes all the same.
          mandatory: toQueue,
          messageId: event.id,
          contentType: dressed?.contentType ?? contentType(event),
          type: event.type,
          timestamp: Math.floor(event.receivedAtMs / 1000),
          payload: dressed?.payload ?? event.payload,
        },
        dressed?.headers,
      );
      this.#unconfirmed.set(++this.#lastTag, delivery);
    } catch (error) {
      this.#lost(new TransientError(`cannot send to ${PRODUCT}: ${errorText(error)}`));
    }
  }

  flush(): void {
    if (!this.#ended) this.#shortcut?.flush();
  }

  #send(message: MessageToPublish, headers: DressedMessage["headers"] | undefined): void {
    const shortcut = this.#shortcut;
    if (headers === undefined && shortcut !== undefined && message.payload.length <= shortcut.maxPayloadBytes) {
      shortcut.send(message);
      return;
    }
    shortcut?.flush();
    const { exchange, routingKey, payload, ...properties } = message;
    const options: Options.Publish = {
      ...properties,
      deliveryMode: this.#options.deliveryMode,
      appId: APPLICATION_NAME,
    };
    if (headers !== undefined) options.headers = headers;
    this.#channel.publish(exchange, routingKey, bufferOf(payload), options);
  }

  async close(deadlineMs: number): Promise<void> {
    if (!this.#ended) {
      this.#ended = true;
      await endConnection(this.#connection, deadlineMs);
    }
    this.#socket.abort();
  }

  askPermission(target: Target, routingKey: string): Promise<Permission> {
    return askPermission(this.#connection, target, routingKey);
  }

  publishAndTell(event: Event, target: Target): Promise<boolean> {
    return publishAndTell(this.#connection, event, target);
  }

  #confirmed(deliveryTag: number, multiple: boolean): void {
    if (this.#ended) return;
    if (!multiple) {
      const delivery = this.#unconfirmed.get(deliveryTag);
      this.#unconfirmed.delete(deliveryTag);
      delivery?.acknowledge(this);
      return;
    }
    for (const [tag, delivery] of this.#unconfirmed) {
      if (tag > deliveryTag) break;
      this.#unconfirmed.delete(tag);
      delivery.acknowledge(this);
    }
  }

  /**
   * Only messages for queues are mandatory: the queue is gone. That is no fault of the event, so the session ends, and the
   * next one does not open before the queue is back.
   */
  #returned({ fields }: Message & { fields: { replyText?: string } }): void {
    const reply = fields.replyText ?? "NO_ROUTE";
    const filledIn = this.#filledIn("queue", fields.routingKey);
    if (filledIn !== undefined) return this.#targetMissing(filledIn, `${PRODUCT} returned a message: ${reply}`);
    this.#lost(
      new TransientError(
        `${PRODUCT} returned a message (${reply}): queue "${fields.routingKey}" is gone; create it again`,
      ),
    );
  }

  /** The broker closes the channel over a missing exchange, a missing right or a message that is too large. */
  #channelClosed(error: Error & { code?: unknown }): void {
    if (this.#ended) return;
    const text = `${PRODUCT} closed the channel: ${serverText(error)}`;
    const code = Number(error.code);
    const missing = code === NOT_FOUND ? /no exchange '(.*)' in vhost/.exec(text)?.[1] : undefined;
    const filledIn = missing === undefined ? undefined : this.#filledIn("exchange", missing);
    if (filledIn !== undefined) return this.#targetMissing(filledIn, text);
    // A missing exchange (404) is no fault of the event: the next session does not open before it is back.
    if (code !== ACCESS_REFUSED && code !== PRECONDITION_FAILED) return this.#lost(new TransientError(text));
    const [only, ...others] = this.#unconfirmed.values();
    if (only === undefined || others.length > 0) return this.#lost(new ChannelRejectedError(text));
    this.#unconfirmed.clear();
    only.refuse(this, text);
    this.#lost(new TransientError(text));
  }

  #filledIn(type: string, name: string): Target | undefined {
    for (const { target } of this.#unconfirmed.values()) {
      if (target.filledIn && target.type === type && target.name === name) return target;
    }
    return undefined;
  }

  /**
   * Nobody could check it before its first event: that event is refused, or the next session declares what is missing of
   * all targets at hand.
   */
  #targetMissing(target: Target, reason: string): void {
    const { declare, onMissing } = this.#options;
    const text = `${reason}; ${target.type} "${target.name}" is missing`;
    if (!declare) return this.#lost(new ChannelRejectedError(`${text}: create it, or set declare=true`));
    for (const { target } of this.#unconfirmed.values()) if (target.filledIn) onMissing(target);
    this.#lost(new TransientError(`${text}, and is declared now`));
  }

  #lost(cause: Error): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#unconfirmed.clear();
    void endConnection(this.#connection, 1000).finally(() => this.#socket.abort());
    this.#onLost(cause);
  }
}

const CHANNEL_CLOSED_TEXT = `the channel to ${PRODUCT} was closed`;
const NACK_TEXT =
  `${PRODUCT} could not take responsibility for a message (basic.nack): is a queue at its limit with x-overflow=reject-publish?`;

/** Ends the connection properly; resolves when that is done, at the latest after `deadlineMs`. */
async function endConnection(connection: ChannelModel, deadlineMs: number): Promise<void> {
  const { promise: deadline, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, deadlineMs);
  // It rejects when the connection has ended already.
  await Promise.race([Promise.resolve().then(() => connection.close()).catch(() => {}), deadline]);
  clearTimeout(timer);
}

interface AmqplibInternals {
  readonly serverProperties: ChannelModel["connection"]["serverProperties"];
  readonly muxer?: { _readIncoming?: () => void };
  readonly stream?: Writable;
  /** The negotiated size of a frame; 0 is no limit. */
  readonly frameMax?: number;
  /** Each channel's part of what the multiplexer sends; null once it is closed. */
  readonly channels?: readonly ({ readonly channel: unknown; readonly buffer: Writable } | null)[];
}

interface AmqplibChannelInternals {
  readonly ch?: number;
  pushConfirmCallback?(callback: undefined): void;
}

/** The way past amqplib's encoder: messages are encoded by `PublishEncoder`, and sent by amqplib many at a time. */
interface Shortcut {
  readonly maxPayloadBytes: number;
  send(message: MessageToPublish): void;
  flush(): void;
}

/** Reaches into amqplib 2.3.1. Undefined should a later version look different: amqplib then encodes the messages. */
export function shortcutOf(
  connection: ChannelModel,
  channel: ConfirmChannel,
  deliveryMode: 1 | 2,
): Shortcut | undefined {
  const { channels, frameMax } = connection.connection as AmqplibInternals;
  const confirms = channel as AmqplibChannelInternals;
  const { ch: number } = confirms;
  if (number === undefined || frameMax === undefined || typeof confirms.pushConfirmCallback !== "function") {
    return undefined;
  }
  const sending = channels?.[number];
  if (sending?.channel !== channel || typeof sending.buffer?.write !== "function") return undefined;
  const encoder = new PublishEncoder(number, deliveryMode, APPLICATION_NAME);
  const flush = () => {
    const bytes = encoder.take();
    if (bytes.length > 0 && channels?.[number] === sending) sending.buffer.write(bytes);
  };
  return {
    maxPayloadBytes: Math.min(MAX_COPIED_PAYLOAD_BYTES, (frameMax || Infinity) - FRAME_OVERHEAD_BYTES),
    send(message) {
      if (channels?.[number] !== sending) throw new Error("the channel is closed");
      encoder.add(message);
      // amqplib counts confirms by the messages that it knows of.
      confirms.pushConfirmCallback?.(undefined);
      if (encoder.full) flush();
    },
    flush,
  };
}

/**
 * amqplib's multiplexer writes message by message to the socket. Corked for the length of its pass, the socket gets what
 * has gathered in one writev: 1.3 to 1.6 times the throughput where the broker is not the limit. This reaches into
 * amqplib 2.3.1; should a later version look different, it returns false, and messages go one by one.
 */
export function batchWrites(connection: ChannelModel): boolean {
  const { muxer, stream } = connection.connection as AmqplibInternals;
  const pass = muxer?._readIncoming;
  if (muxer === undefined || pass === undefined || typeof stream?.cork !== "function") return false;
  muxer._readIncoming = () => {
    stream.cork();
    try {
      pass.call(muxer);
    } finally {
      stream.uncork();
    }
  };
  return true;
}
