/** The upstreams that are measured: how the proxy is told, what the broker needs, and whether everything arrived. */

import amqp from "amqplib";
import { Redis } from "ioredis";
import { freePort } from "../support/servers.ts";
import { acceptedBy, tellReceiver } from "../support/webhook_receiver.ts";
import { awsCase } from "./aws_cases.ts";
import { type Bench, type BrokerName, untilIdle } from "./bench.ts";

export interface UpstreamCase {
  /** For the command line. */
  readonly name: string;
  /** For the table. */
  readonly label: string;
  /** Keys of `[upstream.NAME]`. */
  readonly config: Readonly<Record<string, string>>;
  /** Further environment of the proxy. */
  readonly env?: Readonly<Record<string, string>>;
  /** Undefined where there is no broker. */
  readonly brokerPid: number | undefined;
  /** Before a run: an empty queue. */
  prepare(): Promise<void>;
  /** After a run: throws if the broker did not get `events` messages, clears them away and waits until it is quiet. */
  finish(events: number): Promise<void>;
}

export interface CaseOptions {
  /** What is bound. Default: the WAL. */
  readonly channel?: string;
}

type CaseMaker = (bench: Bench, channel: string) => Promise<UpstreamCase>;

export const QUEUE = "bench";
const EXCHANGE = "bench";

const CASES: Readonly<Record<string, CaseMaker>> = {
  "stdout": async (_bench, channel) => ({
    name: "stdout",
    label: "stdout to /dev/null",
    config: { kind: "stdout", bridge_channels: `${channel}->topic:bench` },
    brokerPid: undefined,
    prepare: async () => {},
    finish: async () => {},
  }),
  "redis": redisCase,
  "redis-stream": redisStreamCase,
  "mqtt-0": (bench, channel) => mqttCase(bench, channel, 0),
  "mqtt-1": (bench, channel) => mqttCase(bench, channel, 1),
  "amqp-exchange": (bench, channel) => amqpExchangeCase(bench, channel),
  "amqp-1": (bench, channel) => amqpQueueCase(bench, channel, 1),
  "amqp-2": (bench, channel) => amqpQueueCase(bench, channel, 2),
  "webhook-100": (bench, channel) => webhookCase(bench, channel, "webhook-100", { batch: "100" }),
  "webhook-8": (bench, channel) => webhookCase(bench, channel, "webhook-8", { concurrency: "8" }),
  "webhook": (bench, channel) => webhookCase(bench, channel, "webhook", {}),
  "awssqs": (bench, channel) => awsCase(bench, channel, "awssqs"),
  "awssns": (bench, channel) => awsCase(bench, channel, "awssns"),
  "webhook-latency": (_bench, channel) => webhookLatencyCase(channel),
};

/** With a request for each event, or for ten, which takes minutes where the others take seconds: only when they are named. */
const SLOW_CASES = ["webhook-8", "webhook", "awssqs", "awssns"];
/** Nobody listens there but the consumer of the section `latency`. */
const LATENCY_CASES = ["webhook-latency"];

/** Those that are measured by default. */
export const CASE_NAMES = Object.keys(CASES).filter((name) => ![...SLOW_CASES, ...LATENCY_CASES].includes(name));

export async function upstreamCase(bench: Bench, name: string, options: CaseOptions = {}): Promise<UpstreamCase> {
  const make = CASES[name];
  if (make === undefined) throw new Error(`no upstream "${name}"; there are ${Object.keys(CASES).join(", ")}`);
  return await make(bench, options.channel ?? "wal2json");
}

/** Those that the command line names; all of them by default. */
export function wantedCases(bench: Bench, names: readonly string[] = CASE_NAMES): readonly string[] {
  const wanted = bench.settings.upstreams;
  return wanted === undefined ? names : [...names, ...SLOW_CASES].filter((name) => wanted.includes(name));
}

async function redisCase(bench: Bench, channel: string): Promise<UpstreamCase> {
  const { uri, pid } = await bench.broker("redis");
  let before = 0;
  return {
    name: "redis",
    label: "Redis pub/sub",
    config: { kind: "redis", uri, bridge_channels: `${channel}->topic:bench` },
    brokerPid: pid,
    prepare: async () => void (before = await redisPublished(uri)),
    finish: async (events) => assertArrived("Redis", await redisPublished(uri) - before, events),
  };
}

/** How many PUBLISH commands the server has run. */
export async function redisPublished(uri: string): Promise<number> {
  const client = new Redis(uri, { lazyConnect: true });
  try {
    await client.connect();
    return Number(/cmdstat_publish:calls=(\d+)/.exec(await client.info("commandstats"))?.[1] ?? 0);
  } finally {
    client.disconnect();
  }
}

export const STREAM = "bench stream";

async function redisStreamCase(bench: Bench, channel: string): Promise<UpstreamCase> {
  const { uri, pid } = await bench.broker("redis");
  const withClient = async <T>(work: (client: Redis) => Promise<T>) => {
    const client = new Redis(uri);
    try {
      return await work(client);
    } finally {
      client.disconnect();
    }
  };
  const clear = async () => {
    await withClient((client) => client.del(STREAM));
    await untilIdle(pid);
  };
  return {
    name: "redis-stream",
    label: "Redis stream",
    config: { kind: "redis", uri, bridge_channels: `${channel}->stream:${STREAM}` },
    brokerPid: pid,
    prepare: clear,
    finish: async (events) => {
      assertArrived("the stream", await withClient((client) => client.xlen(STREAM)), events);
      await clear();
    },
  };
}

async function webhookCase(
  bench: Bench,
  channel: string,
  name: string,
  more: Readonly<Record<string, string>>,
): Promise<UpstreamCase> {
  const { uri, pid } = await bench.broker("webhook");
  const described = Object.entries(more).map(([key, value]) => `, ${key} ${value}`).join("");
  return {
    name,
    label: `webhook${described}`,
    config: {
      kind: "webhook",
      allow_private_addresses: "true",
      secret: `whsec_${Buffer.alloc(32, "bench").toString("base64")}`,
      bridge_channels: `${channel}->url:${uri}/bench`,
      ...more,
    },
    brokerPid: pid,
    prepare: () => tellReceiver(uri, { recording: false }),
    finish: async (events) => assertArrived("the receiver", await acceptedBy(uri), events),
  };
}

async function webhookLatencyCase(channel: string): Promise<UpstreamCase> {
  return {
    name: "webhook-latency",
    label: "webhook, without BEGIN and COMMIT",
    config: {
      kind: "webhook",
      // A request for each of them would come to three for a tick.
      wal2json_params: `"format-version" '2', "include-types" '0', "include-transaction" '0'`,
      allow_private_addresses: "true",
      bridge_channels: `${channel}->url:http://127.0.0.1:${await freePort()}/`,
    },
    brokerPid: undefined,
    prepare: async () => {},
    finish: async () => {},
  };
}

async function mqttCase(bench: Bench, channel: string, qos: 0 | 1): Promise<UpstreamCase> {
  const { uri, pid } = await bench.broker("mosquitto");
  return {
    name: `mqtt-${qos}`,
    label: `MQTT QoS ${qos}`,
    config: { kind: "mqtt", uri, qos: String(qos), bridge_channels: `${channel}->topic:bench` },
    brokerPid: pid,
    prepare: () => untilIdle(pid),
    finish: () => untilIdle(pid),
  };
}

async function amqpExchangeCase(bench: Bench, channel: string): Promise<UpstreamCase> {
  const { uri, pid } = await bench.broker("rabbitmq");
  return {
    name: "amqp-exchange",
    label: "AMQP exchange without bindings",
    config: { kind: "amqp", uri, bridge_channels: `${channel}->exchange:${EXCHANGE}` },
    brokerPid: pid,
    prepare: async () => {
      await withChannel(uri, (each) => each.assertExchange(EXCHANGE, "topic", { durable: true }));
      await untilIdle(pid);
    },
    finish: () => untilIdle(pid),
  };
}

async function amqpQueueCase(bench: Bench, channel: string, deliveryMode: 1 | 2): Promise<UpstreamCase> {
  const { uri, pid } = await bench.broker("rabbitmq");
  return {
    name: `amqp-${deliveryMode}`,
    label: `AMQP queue, delivery mode ${deliveryMode}`,
    config: {
      kind: "amqp",
      uri,
      delivery_mode: String(deliveryMode),
      bridge_channels: `${channel}->queue:${QUEUE}`,
    },
    brokerPid: pid,
    prepare: () => emptyQueue(uri, pid),
    finish: async (events) => {
      assertArrived("the queue", await queueLength(uri), events);
      await emptyQueue(uri, pid);
    },
  };
}

/** A durable queue of its own for every run. */
export async function emptyQueue(uri: string, brokerPid: number): Promise<void> {
  await withChannel(uri, async (channel) => {
    await channel.deleteQueue(QUEUE);
    await channel.assertQueue(QUEUE, { durable: true });
  });
  await untilIdle(brokerPid);
}

export function queueLength(uri: string): Promise<number> {
  return withChannel(uri, async (channel) => (await channel.checkQueue(QUEUE)).messageCount);
}

export async function withChannel<T>(uri: string, work: (channel: amqp.Channel) => PromiseLike<T>): Promise<T> {
  const connection = await amqp.connect(uri);
  try {
    return await work(await connection.createChannel());
  } finally {
    await connection.close();
  }
}

export function assertArrived(where: string, arrived: number, sent: number): void {
  if (arrived !== sent) {
    throw new Error(`${where} got ${arrived} messages of ${sent}: a figure of it would mean nothing`);
  }
}

/** The brokers that the cases need, so that slow ones can start meanwhile. */
export function brokersOf(names: readonly string[]): BrokerName[] {
  const brokers: BrokerName[] = [];
  if (names.some((name) => name.startsWith("redis"))) brokers.push("redis");
  if (names.some((name) => name.startsWith("webhook") && !LATENCY_CASES.includes(name))) brokers.push("webhook");
  if (names.some((name) => name.startsWith("aws"))) brokers.push("aws");
  if (names.some((name) => name.startsWith("mqtt"))) brokers.push("mosquitto");
  if (names.some((name) => name.startsWith("amqp"))) brokers.push("rabbitmq");
  return brokers;
}
