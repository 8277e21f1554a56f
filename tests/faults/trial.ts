/** One run of the program under faults: writers before it, consumers behind it, and the verdict. */

import assert from "node:assert/strict";
import process from "node:process";
import { Redis } from "ioredis";
import mqtt from "mqtt";
import type postgres from "postgres";
import type { BrokerKind } from "../support/broker_frames.ts";
import { consumeAmqp, consumeMqtt, consumeRedis, type MqttMessage, withAmqpChannel } from "../support/consumers.ts";
import type { Proxy, ProxyOptions } from "../support/proxy.ts";
import { type Scope, type TestDatabase, uniqueName } from "../support/scenario.ts";
import { until } from "../support/wait.ts";
import { digest, History, isTransactionRecord, MESSAGE_CHANNEL } from "./history.ts";
import type { Plant } from "./plant.ts";
import { type Arrival, complaints, type ExpectedEvent, judge, summary, type Verdict } from "./verdict.ts";
import { Ways } from "./ways.ts";
import { createTables, ledgerLabel, type WriterOptions, Writers } from "./writers.ts";

export interface TrialOptions {
  /** Default: all of the plant. */
  readonly kinds?: readonly BrokerKind[];
  /** Further keys of `[database]` and of every `[upstream.KIND]`. */
  readonly database?: Readonly<Record<string, string>>;
  readonly upstream?: Readonly<Record<string, string>>;
}

/** What one broker delivered. */
interface Recording {
  readonly arrivals: Arrival[];
  readonly digests: Set<string>;
  /** The first arrival of each, by its id, or its text where it has none. */
  readonly known: Map<string, Arrival>;
  /** Of `consumerIsBack`. */
  probes: number;
}

const PROBE = "are you back?";
const MARKER_WRITER = -1;

export class Trial {
  readonly plant: Plant;
  readonly ways: Ways;
  readonly database: TestDatabase;
  readonly slot: string;
  readonly kinds: readonly BrokerKind[];
  readonly #scope: Scope;
  readonly #options: TrialOptions;
  readonly #history: History;
  /** Exchange, queue, topic and Redis channel. */
  readonly #target = uniqueName("fault");
  readonly #recordings = new Map<BrokerKind, Recording>();
  #writers: Writers | undefined;
  #marker = 0;
  /** Digests of what `notify` sent. */
  readonly #notifications = new Set<string>();

  private constructor(
    scope: Scope,
    plant: Plant,
    ways: Ways,
    database: TestDatabase,
    slot: string,
    history: History,
    options: TrialOptions,
  ) {
    this.#scope = scope;
    this.plant = plant;
    this.ways = ways;
    this.database = database;
    this.slot = slot;
    this.kinds = options.kinds ?? plant.kinds;
    this.#history = history;
    this.#options = options;
  }

  static async start(scope: Scope, plant: Plant, options: TrialOptions = {}): Promise<Trial> {
    const database = await scope.database(plant.postgres);
    await createTables(database.sql);
    const slot = uniqueName("slot");
    const history = await History.begin(database.sql, `${slot}_history`);
    const ways = scope.keep(await Ways.open(plant, options.kinds ?? plant.kinds));
    const trial = new Trial(scope, plant, ways, database, slot, history, options);
    for (const kind of trial.kinds) await trial.#record(kind);
    return trial;
  }

  get sql(): postgres.Sql {
    return this.database.sql;
  }

  /** What the program is started with: every server through its relay. */
  proxyOptions(more: Readonly<Record<string, string>> = {}): ProxyOptions {
    const env: Record<string, string> = {
      "PGPROXY_DATABASE-URI": this.ways.postgres.uriOf(this.database.uri),
      "PGPROXY_DATABASE-REPLICATION_SLOT": this.slot,
    };
    for (const [key, value] of Object.entries(this.#options.database ?? {})) {
      env[`PGPROXY_DATABASE-${key.toUpperCase()}`] = value;
    }
    for (const kind of this.kinds) {
      const type = kind === "amqp" ? "exchange" : "topic";
      const keys = {
        kind,
        uri: this.ways.to(kind).relay.uriOf(this.plant.broker(kind).uri),
        bridge_channels: `wal2json->${type}:${this.#target}, ${MESSAGE_CHANNEL}->${type}:${this.#target}`,
        // Only with MQTT 5 do the messages carry their ids.
        ...kind === "mqtt" ? { protocol_version: "5" } : {},
        ...this.#options.upstream,
      };
      for (const [key, value] of Object.entries(keys)) env[`PGPROXY_UPSTREAM-${kind}-${key.toUpperCase()}`] = value;
    }
    return { env: { ...env, ...more } };
  }

  async startProxy(): Promise<Proxy> {
    const proxy = this.#scope.proxy(this.proxyOptions());
    await proxy.waitForReady(30_000);
    return proxy;
  }

  startWriters(options?: WriterOptions): Writers {
    if (this.#writers !== undefined) throw new Error("the writers write already");
    const writers = Writers.start(this.database.uri, options);
    this.#writers = writers;
    this.#scope.defer(() => writers.stop());
    return writers;
  }

  arrivals(kind: BrokerKind): readonly Arrival[] {
    return this.#recordings.get(kind)!.arrivals;
  }

  /** Writes a row and waits until it has arrived everywhere: what was written before has then passed, or never will. */
  async passMarker(timeoutMs = 40_000, kinds: readonly BrokerKind[] = this.kinds): Promise<void> {
    const number = ++this.#marker;
    await until(() => this.sql`insert into ledger values (${MARKER_WRITER}, ${number}) on conflict do nothing`, {
      what: "PostgreSQL to take a row",
    });
    const label = digest(ledgerLabel(MARKER_WRITER, number));
    const waiting = () => kinds.filter((kind) => !this.#recordings.get(kind)!.digests.has(label));
    await until(() => waiting().length === 0, {
      timeoutMs,
      what: () => `a row to arrive at ${waiting().join(" and ")}; ${this.#progress()}`,
    });
  }

  /** Waits until `count` more messages have arrived at `kind`: events flow. */
  async flows(kind: BrokerKind, count = 50, timeoutMs = 40_000): Promise<void> {
    const { arrivals } = this.#recordings.get(kind)!;
    const before = arrivals.length;
    await until(() => arrivals.length >= before + count, {
      timeoutMs,
      what: () => `events to flow to ${kind}: ${arrivals.length - before} of ${count} arrived`,
    });
  }

  /** Resolves when the consumer receives what is published directly. RabbitMQ's queue keeps it anyway. */
  async consumerIsBack(kind: BrokerKind): Promise<void> {
    if (kind === "amqp") return;
    const { uri } = this.plant.broker(kind);
    const recording = this.#recordings.get(kind)!;
    const before = recording.probes;
    const publisher = kind === "mqtt" ? await connectMqtt(uri) : connectRedis(uri);
    try {
      await until(async () => {
        await publisher.publish(this.#target, PROBE);
        return recording.probes > before;
      }, { what: `the consumer of ${kind} to come back`, intervalMs: 50 });
    } finally {
      await publisher.close();
    }
  }

  /** Sends one, which is not in the WAL. Its text must be unique. */
  async notify(message: string): Promise<void> {
    this.#notifications.add(digest(message));
    await this.sql.notify(MESSAGE_CHANNEL, message);
  }

  /** How many times a message has arrived. */
  deliveries(kind: BrokerKind, message: string): number {
    const wanted = digest(message);
    return this.arrivals(kind).filter(({ text }) => text === wanted).length;
  }

  /** A notification sent now arrives. The program is connected, hence one is enough. */
  async notificationPasses(kind: BrokerKind): Promise<void> {
    const message = uniqueName("notification");
    await this.notify(message);
    const { digests } = this.#recordings.get(kind)!;
    await until(() => digests.has(digest(message)), { what: `a notification to arrive at ${kind}` });
  }

  async confirmedLsn(): Promise<string> {
    const [row] = await this.sql<{ lsn: string }[]>`
      select confirmed_flush_lsn::text as lsn from pg_replication_slots where slot_name = ${this.slot}`;
    return row?.lsn ?? "";
  }

  /** Waits until PostgreSQL has learned that everything was delivered. */
  async confirmed(timeoutMs = 15_000): Promise<void> {
    const [{ lsn } = { lsn: "" }] = await this.sql<{ lsn: string }[]>`select pg_current_wal_lsn()::text as lsn`;
    await until(async () => {
      const [slot] = await this.sql<{ done: boolean }[]>`
        select confirmed_flush_lsn >= ${lsn}::pg_lsn as done from pg_replication_slots where slot_name = ${this.slot}`;
      return slot?.done;
    }, { timeoutMs, what: `slot ${this.slot} to be confirmed up to ${lsn}` });
  }

  /**
   * Stops the writers, waits for what they wrote, and fails unless the promise was kept. Returns the verdicts. With
   * `dropped`, so many events must be missing, and no more.
   */
  async finish(timeoutMs = 40_000, dropped = 0): Promise<ReadonlyMap<BrokerKind, Verdict>> {
    await this.#writers?.stop();
    await this.passMarker(timeoutMs);
    await this.confirmed();
    const verdicts = await this.judge();
    const faults = [...verdicts].flatMap(([kind, verdict]) => {
      const asTold = dropped > 0 && verdict.missing.length === dropped;
      return complaints(kind, asTold ? { ...verdict, missing: [] } : verdict);
    });
    assert.deepEqual(faults, [], faults.join("\n"));
    return verdicts;
  }

  async judge(): Promise<ReadonlyMap<BrokerKind, Verdict>> {
    const expected = await this.#history.read();
    this.#checkHistory(expected);
    return new Map(this.kinds.map((kind) => [kind, this.#judge(kind, expected)]));
  }

  #judge(kind: BrokerKind, expected: readonly ExpectedEvent[]): Verdict {
    const { arrivals: all } = this.#recordings.get(kind)!;
    const arrivals = all.filter(({ text }) => !this.#notifications.has(text));
    const { acknowledged } = this.ways.to(kind);
    if (kind !== "redis") return judge(expected, arrivals, { excused: ({ id }) => acknowledged.has(id) });
    // Redis carries no ids: BEGIN and COMMIT cannot be told apart, the rest is known by what it says.
    const told = <T extends { readonly text: string }>(list: readonly T[]) =>
      list.filter(({ text }) => !isTransactionRecord(text));
    return judge(told(expected), told(arrivals), { excused: ({ text }) => acknowledged.has(text) });
  }

  /** A commit that the writer was told of must be there; else the history, and with it the verdict, is worth nothing. */
  #checkHistory(expected: readonly ExpectedEvent[]): void {
    const labels = new Set(expected.map(({ label }) => label));
    const absent = (this.#writers?.committed ?? []).filter((label) => !labels.has(label));
    assert.deepEqual(absent.slice(0, 5), [], "PostgreSQL has confirmed commits that its WAL does not tell of");
  }

  #progress(): string {
    return [...this.#recordings].map(([kind, { arrivals }]) => `${kind} has received ${arrivals.length}`).join(", ");
  }

  async #record(kind: BrokerKind): Promise<void> {
    const recording: Recording = { arrivals: [], digests: new Set(), known: new Map(), probes: 0 };
    this.#recordings.set(kind, recording);
    const add = (id: string | undefined, payload: Buffer) => {
      if (payload.length === PROBE.length && payload.equals(Buffer.from(PROBE))) {
        recording.probes++;
        return;
      }
      const text = digest(payload);
      // A repeat costs a reference only: long runs have many.
      const known = recording.known.get(id ?? text);
      const arrival = known?.text === text ? known : { id, text };
      if (arrival !== known) recording.known.set(id ?? text, arrival);
      recording.arrivals.push(arrival);
      recording.digests.add(text);
    };
    const { uri } = this.plant.broker(kind);
    // What was recorded here need not be kept by the consumer too.
    const forget = (consumer: { received: unknown[] }) => setInterval(() => consumer.received.length = 0, 1_000);
    const consumer = await this.#consume(kind, uri, add);
    const timer = forget(consumer);
    this.#scope.defer(async () => {
      clearInterval(timer);
      await consumer.close();
    });
  }

  /** Subscribes to the server itself, not through its relay. */
  async #consume(kind: BrokerKind, uri: string, add: (id: string | undefined, payload: Buffer) => void) {
    const name = this.#target;
    switch (kind) {
      case "amqp":
        await withAmqpChannel(uri, (channel) => channel.assertExchange(name, "topic", { durable: true }));
        return await consumeAmqp(uri, {
          exchange: name,
          queue: name,
          declare: true,
          onMessage: ({ properties, payload }) => add(properties.messageId, payload),
        });
      case "mqtt":
        return await consumeMqtt(uri, name, {
          clientId: name,
          protocolVersion: 5,
          onMessage: ({ properties, payload }) => add(userProperty(properties, "id"), payload),
        });
      case "redis":
        return await consumeRedis(uri, name, { onMessage: ({ payload }) => add(undefined, payload) });
    }
  }
}

/** One line per broker, for the output of the tests. */
export function report(title: string, verdicts: ReadonlyMap<BrokerKind, Verdict>): void {
  for (const [kind, verdict] of verdicts) process.stderr.write(`  ${title}: ${summary(kind, verdict)}\n`);
}

function userProperty(properties: MqttMessage["properties"], name: string): string | undefined {
  const value = properties?.userProperties?.[name];
  return typeof value === "string" ? value : value?.[0];
}

interface Publisher {
  publish(target: string, message: string): Promise<unknown>;
  close(): Promise<unknown>;
}

async function connectMqtt(uri: string): Promise<Publisher> {
  const client = await mqtt.connectAsync(uri, { reconnectPeriod: 0 });
  return {
    publish: (target, message) => client.publishAsync(target, message, { qos: 1 }),
    close: () => client.endAsync(true),
  };
}

function connectRedis(uri: string): Publisher {
  const client = new Redis(uri);
  client.on("error", () => {});
  return {
    publish: (target, message) => client.publish(target, message),
    close: async () => client.disconnect(),
  };
}
