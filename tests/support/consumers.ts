/**
 * Consumers that know nothing of the product: they record what a broker delivers, in order, and come back by themselves
 * when the broker does.
 */

import { setTimeout as delay } from "node:timers/promises";
import amqp, { type Channel, type ChannelModel, type MessageProperties } from "amqplib";
import { Redis } from "ioredis";
import mqtt, { type IPublishPacket } from "mqtt";
import { until } from "./wait.ts";

export interface Message {
  /** AMQP routing key, MQTT topic or Redis channel. */
  readonly key: string;
  readonly payload: Buffer;
  /** The payload as UTF-8. */
  readonly text: string;
  /** Since the Unix epoch, with fractions. */
  readonly receivedAtMs: number;
}

export interface AmqpMessage extends Message {
  readonly routingKey: string;
  readonly exchange: string;
  readonly redelivered: boolean;
  readonly properties: MessageProperties;
}

export interface MqttMessage extends Message {
  readonly topic: string;
  readonly qos: 0 | 1 | 2;
  readonly retain: boolean;
  /** The broker's mark on a second attempt. */
  readonly redelivered: boolean;
  readonly properties: IPublishPacket["properties"];
}

export interface RedisMessage extends Message {
  readonly channel: string;
}

export interface Consumer<M extends Message = Message> {
  /** In order of arrival. */
  readonly received: M[];
  /**
   * Resolves with what was received as soon as that is `condition` messages, or `condition` is true of it; fails with
   * what was received so far after `timeoutMs` (45,000).
   */
  waitFor(condition: number | ((received: readonly M[]) => boolean), timeoutMs?: number): Promise<M[]>;
  close(): Promise<void>;
}

/** Called with each message when it was recorded. */
type OnMessage<M extends Message> = (message: M) => void;

export interface AmqpSource {
  /** With `exchange`: a queue of the consumer's own is bound to it, unless `queue` names one. */
  readonly exchange?: string;
  /** Default `#`. */
  readonly pattern?: string;
  readonly queue?: string;
  /** Make `queue` first: durable, removed by `close`. Otherwise it has to exist. */
  readonly declare?: boolean;
  readonly onMessage?: OnMessage<AmqpMessage>;
}

/** The connection options of amqplib, for TLS. */
export type AmqpConnectOptions = Parameters<typeof amqp.connect>[1];

/** Resolves when the subscription stands. Messages are acknowledged when recorded. */
export async function consumeAmqp(
  uri: string,
  source: AmqpSource,
  options?: AmqpConnectOptions,
): Promise<Consumer<AmqpMessage>> {
  const recorder = new Recorder<AmqpMessage>(`AMQP ${source.queue ?? source.exchange ?? ""}`, source.onMessage);
  let closing = false;
  let connection: ChannelModel | undefined;
  const open = async () => {
    const opened = await amqp.connect(uri, options);
    connection = opened;
    opened.on("error", () => {});
    try {
      const channel = await opened.createChannel();
      channel.on("error", () => {});
      await subscribeAmqp(channel, source, (message) => recorder.add(message));
    } catch (error) {
      await opened.close().catch(() => {});
      throw error;
    }
    opened.once("close", () => void reopen());
  };
  const reopen = async () => {
    while (!closing) {
      try {
        return await open();
      } catch {
        await delay(100);
      }
    }
  };
  await open();
  return recorder.consumer(async () => {
    closing = true;
    try {
      if (source.declare && source.queue !== undefined && connection !== undefined) {
        const channel = await connection.createChannel();
        await channel.deleteQueue(source.queue);
      }
      await connection?.close();
    } catch {
      // Already gone.
    }
  });
}

async function subscribeAmqp(
  channel: Channel,
  { exchange, pattern = "#", queue, declare = false }: AmqpSource,
  record: (message: AmqpMessage) => void,
): Promise<void> {
  let name = queue;
  if (name === undefined) {
    name = (await channel.assertQueue("", { exclusive: true, autoDelete: true })).queue;
  } else if (declare) {
    await channel.assertQueue(name, { durable: true });
  }
  if (exchange !== undefined) await channel.bindQueue(name, exchange, pattern);
  await channel.prefetch(1_000);
  await channel.consume(name, (message) => {
    if (message === null) return;
    const { routingKey, exchange, redelivered } = message.fields;
    record({
      ...recorded(routingKey, message.content),
      routingKey,
      exchange,
      redelivered,
      properties: message.properties,
    });
    channel.ack(message);
  });
}

/** A channel for the test's own declarations and looks; closed with its connection when `work` is done. */
export async function withAmqpChannel<T>(
  uri: string,
  work: (channel: Channel) => Promise<T>,
  options?: AmqpConnectOptions,
): Promise<T> {
  const connection = await amqp.connect(uri, options);
  connection.on("error", () => {});
  try {
    const channel = await connection.createChannel();
    channel.on("error", () => {});
    return await work(channel);
  } finally {
    await connection.close().catch(() => {});
  }
}

export interface MqttConsumerOptions {
  /** Of the subscription; default 1. */
  readonly qos?: 0 | 1 | 2;
  /** With an id the session outlives connections: the broker keeps what arrives meanwhile. */
  readonly clientId?: string;
  readonly protocolVersion?: 4 | 5;
  readonly username?: string;
  readonly password?: string;
  readonly ca?: Uint8Array;
  readonly onMessage?: OnMessage<MqttMessage>;
}

/** Resolves when the subscription stands. */
export async function consumeMqtt(
  uri: string,
  filter: string | string[],
  { qos = 1, clientId, protocolVersion = 4, username, password, ca, onMessage }: MqttConsumerOptions = {},
): Promise<Consumer<MqttMessage>> {
  const recorder = new Recorder<MqttMessage>(`MQTT ${filter}`, onMessage);
  const client = mqtt.connect(uri, {
    protocolVersion,
    clean: clientId === undefined,
    reconnectPeriod: 100,
    ...clientId === undefined ? {} : { clientId },
    ...protocolVersion === 5 && clientId !== undefined ? { properties: { sessionExpiryInterval: 3_600 } } : {},
    ...username === undefined ? {} : { username },
    ...password === undefined ? {} : { password },
    ...ca === undefined ? {} : { ca: Buffer.from(ca) },
  });
  client.on("error", () => {});
  client.on("message", (topic, payload, packet) => {
    recorder.add({
      ...recorded(topic, payload),
      topic,
      qos: packet.qos,
      retain: packet.retain,
      redelivered: packet.dup,
      properties: packet.properties,
    });
  });
  await until(() => client.connected, { what: `the MQTT consumer to connect to ${uri}` });
  const granted = await client.subscribeAsync(filter, { qos });
  for (const { topic, qos } of granted) {
    if (qos > 2) throw new Error(`the broker refused the subscription to ${topic}`);
  }
  return recorder.consumer(() => client.endAsync(true));
}

/** Channel names, or a pattern with `*`. */
export type RedisSource = string | readonly string[] | { readonly pattern: string };

/** Resolves when the subscription stands. */
export async function consumeRedis(
  uri: string,
  source: RedisSource,
  options: { readonly ca?: Uint8Array; readonly onMessage?: OnMessage<RedisMessage> } = {},
): Promise<Consumer<RedisMessage>> {
  const recorder = new Recorder<RedisMessage>(`Redis ${JSON.stringify(source)}`, options.onMessage);
  const client = new Redis(uri, {
    maxRetriesPerRequest: null,
    retryStrategy: () => 100,
    ...options.ca === undefined ? {} : { tls: { ca: Buffer.from(options.ca) } },
  });
  client.on("error", () => {});
  const record = (channel: Buffer, payload: Buffer) =>
    recorder.add({ ...recorded(channel.toString(), payload), channel: channel.toString() });
  if (typeof source === "object" && "pattern" in source) {
    client.on("pmessageBuffer", (_pattern: string, channel: Buffer, payload: Buffer) => record(channel, payload));
    await client.psubscribe(source.pattern);
  } else {
    client.on("messageBuffer", record);
    await client.subscribe(...(typeof source === "string" ? [source] : source));
  }
  return recorder.consumer(async () => client.disconnect());
}

/** An entry as this program writes it; the key is its field `key`. */
export interface StreamMessage extends Message {
  /** All fields. */
  readonly fields: Readonly<Record<string, Buffer>>;
}

/** What is added to a stream from now on. Comes back by itself, and misses nothing that the server kept. */
export async function consumeRedisStream(
  uri: string,
  stream: string,
  options: { readonly onMessage?: OnMessage<StreamMessage> } = {},
): Promise<Consumer<StreamMessage>> {
  const recorder = new Recorder<StreamMessage>(`Redis stream ${stream}`, options.onMessage);
  const client = new Redis(uri, { maxRetriesPerRequest: null, retryStrategy: () => 100 });
  client.on("error", () => {});
  const [newest] = await client.xrevrange(stream, "+", "-", "COUNT", 1);
  let lastId = newest?.[0] ?? "0";
  let isClosed = false;
  const read = async () => {
    while (!isClosed) {
      try {
        const reply = await client.xreadBuffer("COUNT", 1_000, "BLOCK", 200, "STREAMS", stream, lastId) as StreamReply;
        for (const [id, list] of reply?.[0]?.[1] ?? []) {
          lastId = id.toString();
          const pairs = Array.from({ length: list.length / 2 }, (_, i) => [String(list[2 * i]), list[2 * i + 1]!]);
          const fields: Record<string, Buffer> = Object.fromEntries(pairs);
          recorder.add({ ...recorded(String(fields.key), fields.payload!), fields });
        }
      } catch {
        await delay(50);
      }
    }
  };
  const reading = read();
  return recorder.consumer(async () => {
    isClosed = true;
    client.disconnect();
    await reading;
  });
}

type StreamReply =
  | ReadonlyArray<readonly [Buffer, ReadonlyArray<readonly [id: Buffer, fields: readonly Buffer[]]>]>
  | null;

export function recorded(key: string, payload: Buffer): Message {
  const receivedAtMs = performance.timeOrigin + performance.now();
  return {
    key,
    payload,
    receivedAtMs,
    // Most are only counted: the text is made when asked for.
    get text() {
      return payload.toString("utf8");
    },
  };
}

/** Keeps what arrived, and resolves who waits for it. */
export class Recorder<M extends Message> {
  readonly #name: string;
  readonly #received: M[] = [];
  readonly #onMessage: OnMessage<M>;
  #waiting: Array<() => void> = [];

  constructor(name: string, onMessage: OnMessage<M> = () => {}) {
    this.#name = name;
    this.#onMessage = onMessage;
  }

  add(message: M): void {
    this.#received.push(message);
    this.#onMessage(message);
    if (this.#waiting.length === 0) return;
    for (const check of [...this.#waiting]) check();
  }

  consumer(close: () => Promise<unknown>): Consumer<M> {
    let closed: Promise<void> | undefined;
    return {
      received: this.#received,
      waitFor: (condition, timeoutMs = 45_000) => this.#waitFor(condition, timeoutMs),
      close: () => closed ??= close().then(() => {}),
    };
  }

  #waitFor(condition: number | ((received: readonly M[]) => boolean), timeoutMs: number): Promise<M[]> {
    const met = () => typeof condition === "number" ? this.#received.length >= condition : condition(this.#received);
    return new Promise((resolve, reject) => {
      const end = () => {
        clearTimeout(timer);
        this.#waiting = this.#waiting.filter((other) => other !== check);
      };
      const check = () => {
        let isMet = false;
        try {
          isMet = met();
        } catch (error) {
          end();
          reject(error);
          return;
        }
        if (!isMet) return;
        end();
        resolve(this.#received);
      };
      const timer = setTimeout(() => {
        end();
        reject(new Error(this.#missing(condition, timeoutMs)));
      }, timeoutMs);
      this.#waiting.push(check);
      check();
    });
  }

  #missing(condition: unknown, timeoutMs: number): string {
    const wanted = typeof condition === "number" ? `${condition} messages` : "the messages that were expected";
    const last = this.#received.slice(-5).map(({ key, text }) => `  ${key}: ${text.slice(0, 200)}`);
    return [
      `${this.#name}: waited ${timeoutMs / 1000} s for ${wanted}, received ${this.#received.length}, the last:`,
      ...last,
    ].join("\n");
  }
}
