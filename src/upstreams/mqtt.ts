/** MQTT 3.1.1 and 5 (docs.oasis-open.org/mqtt), over TCP, TLS or WebSocket. */

import { randomBytes } from "node:crypto";
import { Socket } from "node:net";
import { connect, type IClientOptions, type IConnackPacket, type MqttClient, ReasonCodes, Store } from "mqtt";
import type { MqttConfig } from "../config/config.ts";
import { attributesOf } from "../core/cloudevents.ts";
import { ChannelRejectedError, errorText, PermanentError, SilentEndError, TransientError } from "../core/errors.ts";
import { APPLICATION_NAME, contentType, type Event } from "../core/event.ts";
import { bufferOf } from "../core/payload.ts";
import type { Delivery, Session, Target, Upstream } from "../core/upstream.ts";
import { attemptConnect, CONNECT_TIMEOUT_MS, type Endpoint, parseEndpoint } from "./endpoint.ts";
import { encodeProperties, PubackFilter, PublishEncoder } from "./mqtt_packets.ts";
import { tlsOptions } from "./tls.ts";

const PRODUCT = "the MQTT server";
const DEFAULT_MAX_IN_FLIGHT = 2000;
/**
 * With MQTT 3.1.1 a server cannot tell how many QoS 2 exchanges it keeps at once, and Mosquitto (2.0.11, default
 * max_inflight_messages 20) completes those beyond its number without delivering them. With MQTT 5 it tells.
 */
const DEFAULT_MAX_IN_FLIGHT_QOS2_V4 = 20;
/**
 * While more than half of a large window is unanswered, writes are this far apart. Otherwise each PUBACK that arrives frees a
 * place for one message, whose packet makes the server answer alone again: both then wake for every message. Measured
 * with Mosquitto: 3 µs of processor time per message instead of 8.
 */
const FULL_WINDOW_REST_MS = 1;
/** Fewer are answered sooner than that. */
const MIN_UNANSWERED_TO_REST = 250;
/** A packet identifier has two bytes, and zero is not one (MQTT 5, section 2.2.1). */
const MAX_PACKET_IDENTIFIERS = 65_535;
/** A ping each 30 s; without an answer the connection is given up 15 s later. */
const KEEPALIVE_SECONDS = 30;
/** A UTF-8 encoded string (MQTT 5, section 1.5.4). */
const MAX_TOPIC_BYTES = 65_535;
/** The largest remaining length that four bytes can hold (MQTT 5, section 2.1.4). */
const MAX_REMAINING_BYTES = 268_435_455;

/** CONNACK codes that no retry mends: 3.1.1 section 3.2.2.3, and 5 section 3.2.2.2 from 0x80 on. */
const PERMANENT_CONNACK = new Map([
  [0x01, "set protocol_version to one that the server speaks"],
  [0x02, "set client_id to one that the server allows"],
  [0x04, "correct username and password"],
  [0x05, "set username and password of a user who may connect"],
  [0x81, "set protocol_version to one that the server speaks"],
  [0x82, "set protocol_version to one that the server speaks"],
  [0x84, "set protocol_version to one that the server speaks"],
  [0x85, "set client_id to one that the server allows"],
  [0x86, "correct username and password"],
  [0x87, "set username and password of a user who may connect"],
  [0x8a, "ask the server's administrator why this client is banned"],
  [0x8c, "use a user name and a password: other authentication methods are not supported"],
  [0x9d, "set uri to the server's new address"],
]);

/** Reason codes from here on are errors (MQTT 5, section 2.4). */
const FIRST_ERROR_CODE = 0x80;
/** DISCONNECT codes of MQTT 5 (section 3.14.2.1) that blame what was sent last. */
const REJECTING_DISCONNECT = new Set([0x81, 0x82, 0x87, 0x90, 0x95, 0x99, 0x9a, 0x9b]);

export class MqttUpstream implements Upstream {
  readonly kind = "mqtt";
  readonly name: string;
  readonly maxInFlight: number;
  readonly #config: MqttConfig;
  readonly #endpoint: Endpoint;
  /** The same for every session: the server then ends a session of ours that is only half gone. */
  readonly #clientId: string;

  constructor(config: MqttConfig) {
    this.name = config.name;
    const defaultMaxInFlight = config.qos === 2 && config.protocolVersion === 4
      ? DEFAULT_MAX_IN_FLIGHT_QOS2_V4
      : DEFAULT_MAX_IN_FLIGHT;
    this.maxInFlight = Math.min(config.maxInFlight ?? defaultMaxInFlight, MAX_PACKET_IDENTIFIERS);
    this.#config = config;
    this.#endpoint = parseEndpoint(config.uri, {
      mqtt: 1883,
      tcp: 1883,
      mqtts: 8883,
      ssl: 8883,
      tls: 8883,
      ws: 80,
      wss: 443,
    });
    this.#clientId = config.clientId ?? `${APPLICATION_NAME}-${randomBytes(4).toString("hex")}`;
  }

  async connect(targets: readonly Target[], onLost: (cause: Error) => void, signal: AbortSignal): Promise<Session> {
    for (const { name } of targets) {
      const fault = topicFault(name);
      if (fault !== undefined) throw new PermanentError(`topic "${name}" cannot be published to: ${fault}; correct it`);
    }
    let client: MqttClient | undefined;
    return await attemptConnect(PRODUCT, this.#endpoint, signal, async () => {
      const options = await this.#options();
      signal.throwIfAborted();
      client = connect(options);
      const loss = watchLoss(client);
      const connack = await this.#welcome(client);
      this.#checkWelcome(connack);
      return new MqttSession(client, this.#config, connack, this.maxInFlight, loss, onLost);
    }, () => void client?.end(true));
  }

  async #options(): Promise<IClientOptions> {
    const { scheme, host, port, path, query, text } = this.#endpoint;
    const { username, password, protocolVersion, tls } = this.#config;
    const protocol = PROTOCOLS[scheme];
    const secure = protocol === "mqtts" || protocol === "wss" ? await tlsOptions(tls, host) : {};
    const search = query.size === 0 ? "" : `?${query}`;
    return {
      ...secure,
      protocol,
      hostname: protocol === "ws" || protocol === "wss" ? text.slice(0, text.lastIndexOf(":")) : host,
      port,
      path: (path === "" ? "/" : path) + search,
      protocolVersion,
      clientId: this.#clientId,
      username: username ?? this.#endpoint.username,
      password: password ?? this.#endpoint.password,
      clean: true,
      keepalive: KEEPALIVE_SECONDS,
      // Otherwise each acknowledgement makes a new timer; a ping every half minute costs less.
      reschedulePings: false,
      timerVariant: "native",
      // The `debug` package, even while it is off, takes a twelfth of the time.
      log: () => {},
      connectTimeout: CONNECT_TIMEOUT_MS,
      // The lane connects again and sends again: here nothing is kept beyond the connection.
      reconnectPeriod: 0,
      resubscribe: false,
      queueQoSZero: false,
      outgoingStore: new EmptyStore(),
      messageIdProvider: new PacketIdentifiers(),
    };
  }

  #welcome(client: MqttClient): Promise<IConnackPacket> {
    return new Promise((resolve, reject) => {
      client.once("connect", resolve);
      client.once("error", (error) => reject(this.#refusal(error) ?? error));
      client.once("close", () => reject(new Error("the connection was closed before it was accepted")));
    });
  }

  #refusal(error: Error & { code?: unknown }): PermanentError | undefined {
    const remedy = typeof error.code === "number" ? PERMANENT_CONNACK.get(error.code) : undefined;
    if (remedy === undefined) return undefined;
    const user = this.#config.username ?? this.#endpoint.username;
    const who = user === undefined ? "a login without a user name" : `the login of user "${user}"`;
    const at = `${PRODUCT} at ${this.#endpoint.text}`;
    return new PermanentError(`${at} refused ${who}: ${errorText(error)}; ${remedy}`);
  }

  /** What an MQTT 5 server says that it cannot do (MQTT 5, sections 3.2.2.3.4 and 3.2.2.3.5). */
  #checkWelcome({ properties }: IConnackPacket): void {
    const { qos, retain } = this.#config;
    const at = `${PRODUCT} at ${this.#endpoint.text}`;
    const maximumQos = properties?.maximumQoS;
    if (maximumQos !== undefined && qos > maximumQos) {
      throw new PermanentError(`${at} allows a quality of service up to ${maximumQos}; set qos=${maximumQos}`);
    }
    if (properties?.retainAvailable === false && retain) {
      throw new PermanentError(`${at} keeps no retained messages; set retain=false`);
    }
  }
}

const PROTOCOLS: Readonly<Record<string, IClientOptions["protocol"]>> = {
  mqtt: "mqtt",
  tcp: "mqtt",
  mqtts: "mqtts",
  ssl: "mqtts",
  tls: "mqtts",
  ws: "ws",
  wss: "wss",
};

/** Why a topic name is not one (MQTT 5, section 4.7.3). A server ends the connection over it, every time it is sent. */
function topicFault(topic: string): string | undefined {
  if (topic === "") return "it is empty";
  const forbidden = /[+#\0]/.exec(topic)?.[0];
  if (forbidden !== undefined) return `it holds ${forbidden === "\0" ? "a NUL character" : `"${forbidden}"`}`;
  const bytes = topic.length * 3 > MAX_TOPIC_BYTES ? Buffer.byteLength(topic) : 0;
  return bytes > MAX_TOPIC_BYTES ? `it has ${bytes} bytes; MQTT allows ${MAX_TOPIC_BYTES}` : undefined;
}

interface TopicFacts {
  readonly name: string;
  readonly bytes: number;
  readonly fault: string | undefined;
}

function factsOf(name: string): TopicFacts {
  return { name, bytes: Buffer.byteLength(name), fault: topicFault(name) };
}

interface Loss {
  /** Set by what comes before the end: a socket fault, a missed ping, a DISCONNECT from the server. */
  cause: Error | undefined;
  notify: () => void;
}

function watchLoss(client: MqttClient): Loss {
  const loss: Loss = { cause: undefined, notify: () => {} };
  client.on("error", (error: Error & { code?: unknown }) => {
    const text = lostText(errorText(error));
    // Ended with something of ours unread, the connection is reset instead of closed.
    const ended = error.code === "ECONNRESET" || error.code === "EPIPE";
    loss.cause ??= ended ? new SilentEndError(text) : new TransientError(text);
  });
  client.on("disconnect", ({ reasonCode = 0 }) => {
    const text = lostText(`the server ended it with reason ${reasonText(reasonCode)}`);
    loss.cause ??= REJECTING_DISCONNECT.has(reasonCode) ? new ChannelRejectedError(text) : new TransientError(text);
  });
  client.on("close", () => loss.notify());
  return loss;
}

function lostText(reason: string): string {
  return `the connection to ${PRODUCT} was lost: ${reason}`;
}

function reasonText(code: number): string {
  const name = Object.hasOwn(ReasonCodes, code) ? ReasonCodes[code as keyof typeof ReasonCodes] : "";
  return `0x${code.toString(16).padStart(2, "0")}${name === "" ? "" : ` (${name})`}`;
}

class MqttSession implements Session {
  readonly #client: MqttClient;
  readonly #config: MqttConfig;
  readonly #onLost: (cause: Error) => void;
  readonly #loss: Loss;
  /** The server's limits (MQTT 5, sections 3.2.2.3.3 and 3.2.2.3.6). */
  readonly #window: number;
  readonly #maxPacketBytes: number;
  /** Sent with a quality of service above 0 and not answered. */
  #unanswered = 0;
  /** Beyond the server's window, from `#nextHeld` on. */
  #held: Delivery[] = [];
  #nextHeld = 0;
  /** Published with quality of service 0 since the last flush. */
  #unflushed: Delivery[] = [];
  /** Of quality of service 1, by packet identifier: mqtt.js knows nothing of them. */
  readonly #unacknowledged: (Delivery | undefined)[] = [];
  readonly #identifiers = new PacketIdentifiers();
  readonly #encoder: PublishEncoder;
  /** The last topic and what is known of it: the same for all events of a binding. */
  #topic: TopicFacts = factsOf("");
  #flushing = false;
  #ended = false;

  constructor(
    client: MqttClient,
    config: MqttConfig,
    { properties }: IConnackPacket,
    maxInFlight: number,
    loss: Loss,
    onLost: (cause: Error) => void,
  ) {
    this.#client = client;
    this.#config = config;
    this.#onLost = onLost;
    this.#window = Math.min(maxInFlight, properties?.receiveMaximum ?? maxInFlight);
    this.#maxPacketBytes = properties?.maximumPacketSize ?? Infinity;
    this.#loss = loss;
    loss.notify = () => this.#lost();
    this.#encoder = new PublishEncoder((bytes) => client.stream.write(bytes));
    filterIncoming(client.stream, new PubackFilter((identifier) => this.#acknowledged(identifier, 0)));
    client.on("packetreceive", (packet) => {
      if (packet.cmd === "puback") this.#acknowledged(packet.messageId ?? 0, packet.reasonCode ?? 0);
    });
    // Nagle's algorithm would hold the last packet of a batch back until the server's delayed acknowledgement.
    if (client.stream instanceof Socket) client.stream.setNoDelay(true);
  }

  publish(delivery: Delivery): void {
    if (this.#ended) return;
    if (this.#config.qos > 0 && this.#unanswered >= this.#window) this.#held.push(delivery);
    else this.#send(delivery);
  }

  /**
   * Writes when the turn ends: the client tells of each acknowledgement in a tick of its own, and what the lane publishes
   * in those ticks would otherwise be a write each. While much is unanswered, a moment later: see `FULL_WINDOW_REST_MS`.
   */
  flush(): void {
    if (this.#ended || this.#flushing) return;
    const { stream } = this.#client;
    this.#flushing = true;
    stream.cork();
    const write = () => {
      this.#flushing = false;
      if (!this.#ended) this.#encoder.flush();
      stream.uncork();
      if (!this.#ended && this.#unflushed.length > 0) this.#settleWhenWritten();
    };
    const rests = this.#unanswered >= Math.max(this.#window / 2, MIN_UNANSWERED_TO_REST);
    if (rests) setTimeout(write, FULL_WINDOW_REST_MS);
    else setImmediate(write);
  }

  async close(deadlineMs: number): Promise<void> {
    const { stream } = this.#client;
    const { promise: closed, resolve } = Promise.withResolvers<void>();
    if (this.#ended || stream.destroyed) resolve();
    else stream.once("close", resolve);
    this.#ended = true;
    const deadline = setTimeout(() => stream.destroy(), deadlineMs);
    // Without force it waits for answers; where the lane has given them up, there is nothing to wait for.
    this.#client.end(this.#unanswered > 0);
    await closed;
    clearTimeout(deadline);
  }

  #send(delivery: Delivery): void {
    const { qos, retain, protocolVersion } = this.#config;
    const { event } = delivery;
    const name = this.#topicName(delivery);
    if (name !== this.#topic.name) this.#topic = factsOf(name);
    const properties = protocolVersion === 5 ? this.#properties(event) : undefined;
    const encoded = properties && encodeProperties(properties.contentType, properties.userProperties);
    const fault = this.#topic.fault ?? this.#sizeFault(event, encoded);
    if (fault !== undefined) {
      delivery.refuse(this, `cannot publish to topic "${name.slice(0, 200)}": ${fault}`);
      return;
    }
    if (qos > 0) this.#unanswered++;
    if (qos === 2) {
      const options = properties === undefined ? { qos, retain } : { qos, retain, properties };
      this.#client.publish(name, bufferOf(event.payload), options, (error) => this.#answered(delivery, error));
      return;
    }
    let identifier = 0;
    if (qos === 0) {
      this.#unflushed.push(delivery);
    } else {
      // The window is never larger than the number of identifiers.
      identifier = this.#identifiers.allocate()!;
      this.#unacknowledged[identifier] = delivery;
    }
    this.#encoder.add({ topic: name, qos, retain, identifier, properties: encoded, payload: event.payload });
  }

  #topicName({ event, target }: Delivery): string {
    if (event.type === "wal" || event.routingKey === "" || target.filledIn) return target.name;
    return target.name + this.#config.topicSeparator + event.routingKey;
  }

  #properties(event: Event): Properties {
    const source = this.#config.cloudEventsSource;
    return source === undefined ? propertiesOf(event) : cloudEventProperties(event, source);
  }

  #sizeFault(event: Event, properties: Uint8Array | undefined): string | undefined {
    const identifierBytes = this.#config.qos > 0 ? 2 : 0;
    const bytes = 2 + this.#topic.bytes + identifierBytes + (properties?.length ?? 0) + event.payload.length;
    // A byte for the packet type and up to four for the length.
    if (bytes <= MAX_REMAINING_BYTES && bytes + 5 <= this.#maxPacketBytes) return undefined;
    const limit = Math.min(this.#maxPacketBytes, MAX_REMAINING_BYTES);
    return `its packet has ${bytes + 5} bytes; the limit is ${limit}`;
  }

  /** A PUBACK for what this session has encoded. One that answers nothing is passed over, as mqtt.js does. */
  #acknowledged(identifier: number, reasonCode: number): void {
    const delivery = this.#unacknowledged[identifier];
    if (this.#ended || delivery === undefined) return;
    this.#unacknowledged[identifier] = undefined;
    this.#identifiers.deallocate(identifier);
    this.#unanswered--;
    if (reasonCode < FIRST_ERROR_CODE) delivery.acknowledge(this);
    else delivery.refuse(this, `${PRODUCT} refused it: ${reasonText(reasonCode)}`);
    this.#refill();
  }

  /** What mqtt.js says of a message of quality of service 2. */
  #answered(delivery: Delivery, error: Error & { code?: unknown } | null | undefined): void {
    if (this.#ended) return;
    this.#unanswered--;
    if (!error) {
      delivery.acknowledge(this);
    } else if (typeof error.code === "number") {
      delivery.refuse(this, `${PRODUCT} refused it: ${reasonText(error.code)}`);
    } else {
      this.#client.stream.destroy(error);
      return;
    }
    this.#refill();
  }

  #refill(): void {
    if (this.#nextHeld < this.#held.length) this.flush();
    while (this.#nextHeld < this.#held.length && this.#unanswered < this.#window) this.#sendHeld();
  }

  #sendHeld(): void {
    this.#send(this.#held[this.#nextHeld++]!);
    if (this.#nextHeld < this.#held.length) return;
    this.#held = [];
    this.#nextHeld = 0;
  }

  /** Quality of service 0 knows no answer: what the stream has taken without asking for a pause counts as written. */
  #settleWhenWritten(): void {
    const written = this.#unflushed;
    this.#unflushed = [];
    const settle = () => {
      if (this.#ended) return;
      for (const delivery of written) delivery.acknowledge(this);
    };
    if (this.#client.stream.writableNeedDrain) this.#client.stream.once("drain", settle);
    else settle();
  }

  #lost(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#client.end(true);
    this.#onLost(this.#loss.cause ?? new SilentEndError(lostText("the server closed it")));
  }
}

interface Properties {
  readonly contentType: string;
  readonly userProperties: Record<string, string>;
}

function propertiesOf(event: Event): Properties {
  return {
    contentType: contentType(event),
    userProperties: { id: event.id, type: event.type, app_id: APPLICATION_NAME },
  };
}

/** Binary mode: attributes are user properties of the same name (cloudevents/bindings/mqtt-protocol-binding.md, 3.1). */
function cloudEventProperties(event: Event, source: string): Properties {
  return { contentType: contentType(event), userProperties: attributesOf(event, source) };
}

/**
 * Puts the filter before mqtt.js's parser, which reads by the one `data` listener that `pipe` has set. Where there is no
 * such listener, the parser gets everything, and tells of acknowledgements by `packetreceive`.
 */
function filterIncoming(stream: MqttClient["stream"], filter: PubackFilter): void {
  const [toParser, ...others] = stream.listeners("data") as ((chunk: Buffer) => void)[];
  if (toParser === undefined || others.length > 0) return;
  stream.off("data", toParser);
  stream.on("data", (chunk: Buffer) => {
    const rest = filter.push(chunk);
    if (rest.length > 0) toParser.call(stream, rest);
  });
}

/** The lane keeps what is not answered; the library's store would only copy it. */
class EmptyStore extends Store {
  override put(_packet: Parameters<Store["put"]>[0], stored: Parameters<Store["put"]>[1]): this {
    stored();
    return this;
  }
  override del(_packet: Parameters<Store["del"]>[0], deleted: Parameters<Store["del"]>[1]): this {
    deleted();
    return this;
  }
}

/** The library's own provider hands out an identifier again after 65,535 others, even if it is still unanswered. */
class PacketIdentifiers {
  readonly #inUse = new Uint8Array(MAX_PACKET_IDENTIFIERS + 1);
  #free = MAX_PACKET_IDENTIFIERS;
  #last = 0;

  allocate(): number | null {
    if (this.#free === 0) return null;
    do this.#last = this.#last % MAX_PACKET_IDENTIFIERS + 1; while (this.#inUse[this.#last] === 1);
    this.register(this.#last);
    return this.#last;
  }
  getLastAllocated(): number | null {
    return this.#last === 0 ? null : this.#last;
  }
  register(identifier: number): boolean {
    if (this.#inUse[identifier] === 1) return false;
    this.#inUse[identifier] = 1;
    this.#free--;
    return true;
  }
  deallocate(identifier: number): void {
    if (this.#inUse[identifier] === 1) this.#free++;
    this.#inUse[identifier] = 0;
  }
  clear(): void {
    this.#inUse.fill(0);
    this.#free = MAX_PACKET_IDENTIFIERS;
  }
}
