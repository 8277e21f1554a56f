/**
 * Memory of the program where much waits: each broker frozen in front of a transaction of two million rows, and a backlog
 * of small transactions found at the start. Prints the highest resident set of each; exit code 1 if one is above the bound
 * or a row does not arrive.
 *
 *     bun tests/faults/memory.ts [--rows N] [--kind amqp|mqtt|redis]
 */

import process from "node:process";
import { setTimeout as delay } from "node:timers/promises";
import { parseArgs } from "node:util";
import type { BrokerKind } from "../support/broker_frames.ts";
import { consumeAmqp, consumeMqtt, consumeRedis } from "../support/consumers.ts";
import type { Proxy } from "../support/proxy.ts";
import { Scope, type TestDatabase, uniqueName } from "../support/scenario.ts";
import { until } from "../support/wait.ts";
import { ALL_KINDS, Plant } from "./plant.ts";

const BOUND_BYTES = 250 * 1024 * 1024;
const MIB = 2 ** 20;
/** How long the broker stays frozen after the program has read what it may. */
const FROZEN_MS = 15_000;
const DELIVERY_TIMEOUT_MS = 900_000;

const { values } = parseArgs({ options: { rows: { type: "string", default: "2000000" }, kind: { type: "string" } } });
const rows = Number(values.rows);
const kinds = values.kind === undefined ? ALL_KINDS : ALL_KINDS.filter((kind) => kind === values.kind);

const scope = new Scope();
let failed = false;
try {
  const plant = scope.keep(await Plant.start({ kinds, postgresSettings: { max_wal_size: "20GB" } }));
  const sets = kinds.length > 1 ? [...kinds.map((kind) => [kind]), kinds] : [kinds];
  for (const set of sets) await frozenBrokers(plant, set);
  for (const set of sets) await backlog(plant, set);
} catch (error) {
  say(String((scope.withLogs(error) as Error).stack));
  failed = true;
} finally {
  await scope.close();
}
process.exit(failed ? 1 : 0);

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

/** Checks that the rows come in the order of their numbers, remembering no more than the last. */
class Sequence {
  next = 1;
  repeats = 0;
  fault: string | undefined;

  add(payload: Buffer): void {
    const number = Number(/"name":"number","value":(\d+)/.exec(payload.toString("latin1", 0, 200))?.[1] ?? 0);
    if (number === 0) return;
    if (number === this.next) this.next++;
    else if (number < this.next) this.repeats++;
    else this.fault ??= `row ${number} came when ${this.next} was due`;
  }
}

interface Run {
  readonly database: TestDatabase;
  readonly sequences: readonly Sequence[];
  start(): Promise<Proxy>;
}

/** All of `set` read the same slot. */
async function prepare(plant: Plant, set: readonly BrokerKind[]): Promise<Run> {
  const database = await scope.database(plant.postgres);
  await database.sql`create table numbers (number int, filler text)`;
  const target = uniqueName("memory");
  const env: Record<string, string> = {
    "PGPROXY_DATABASE-URI": database.uri,
    "PGPROXY_DATABASE-REPLICATION_SLOT": uniqueName("slot"),
  };
  const sequences = await Promise.all(set.map(async (kind) => {
    const sequence = new Sequence();
    await consume(plant, kind, target, sequence);
    env[`PGPROXY_UPSTREAM-${kind}-KIND`] = kind;
    env[`PGPROXY_UPSTREAM-${kind}-URI`] = plant.broker(kind).uri;
    env[`PGPROXY_UPSTREAM-${kind}-BRIDGE_CHANNELS`] = `wal2json->${kind === "amqp" ? "queue" : "topic"}:${target}`;
    return sequence;
  }));
  return { database, sequences, start: () => scope.readyProxy({ env }) };
}

async function consume(plant: Plant, kind: BrokerKind, target: string, sequence: Sequence): Promise<void> {
  const { uri } = plant.broker(kind);
  const onMessage = ({ payload }: { readonly payload: Buffer }) => sequence.add(payload);
  const consumer = kind === "amqp"
    ? await consumeAmqp(uri, { queue: target, declare: true, onMessage })
    : kind === "mqtt"
    ? await consumeMqtt(uri, target, { clientId: target, onMessage })
    : await consumeRedis(uri, target, { onMessage });
  const timer = setInterval(() => consumer.received.length = 0, 100);
  scope.defer(async () => {
    clearInterval(timer);
    await consumer.close();
  });
}

async function frozenBrokers(plant: Plant, set: readonly BrokerKind[]): Promise<void> {
  const { database, sequences, start } = await prepare(plant, set);
  const proxy = await start();
  for (const kind of set) plant.broker(kind).freeze();
  await database.sql`
    insert into numbers select i, repeat('m', 150) from generate_series(1, ${rows}::int) i`;
  await restsAtItsBound(proxy);
  await delay(FROZEN_MS);
  const frozenBytes = proxy.peakRssBytes();
  for (const kind of set) plant.broker(kind).thaw();
  await delivered(sequences, rows);
  conclude(
    `${set.join(" and ")}, frozen in front of ${rows} rows in one transaction (${mib(frozenBytes)} while frozen)`,
    proxy,
    sequences,
  );
  await proxy.stop();
}

/** A day without the program: half of the rows one by one, half in transactions of 1,000. */
async function backlog(plant: Plant, set: readonly BrokerKind[]): Promise<void> {
  const { database, sequences, start } = await prepare(plant, set);
  await (await start()).stop();
  const half = rows / 4;
  await database.sql.unsafe(`do $$ begin
    for i in 1 .. ${half} loop insert into numbers values (i, repeat('m', 150)); commit; end loop;
    for i in 1 .. ${half / 1000} loop
      insert into numbers select ${half} + (i - 1) * 1000 + n, repeat('m', 150) from generate_series(1, 1000) n; commit;
    end loop; end $$`);
  const proxy = await start();
  await delivered(sequences, 2 * half);
  conclude(
    `${set.join(" and ")}, a backlog of ${2 * half} rows in ${half + half / 1000} transactions`,
    proxy,
    sequences,
  );
  await proxy.stop();
}

/** The program has stopped reading: its processor time stands still but for what its timers take. */
async function restsAtItsBound(proxy: Proxy): Promise<void> {
  let lastMs = proxy.cpuMs();
  await until(() => {
    const nowMs = proxy.cpuMs();
    const usedMs = nowMs - lastMs;
    lastMs = nowMs;
    return usedMs <= 50;
  }, { what: "the program to stop reading", intervalMs: 1_000, timeoutMs: 120_000 });
}

async function delivered(sequences: readonly Sequence[], count: number): Promise<void> {
  await until(() => sequences.every(({ next, fault }) => next > count || fault), {
    what: () => `${count} rows to arrive: ${sequences.map(({ next }) => next - 1).join(", ")} have`,
    timeoutMs: DELIVERY_TIMEOUT_MS,
    intervalMs: 200,
  });
}

function conclude(title: string, proxy: Proxy, sequences: readonly Sequence[]): void {
  const peakBytes = proxy.peakRssBytes();
  const fault = sequences.map(({ fault }) => fault).find((text) => text !== undefined);
  const repeats = sequences.reduce((sum, { repeats }) => sum + repeats, 0);
  const verdict = fault ?? (peakBytes > BOUND_BYTES ? `more than ${mib(BOUND_BYTES)}` : "ok");
  if (verdict !== "ok") failed = true;
  say(`${title}: highest memory ${mib(peakBytes)}, ${repeats} repeats: ${verdict}`);
}

function mib(bytes: number): string {
  return `${(bytes / MIB).toFixed(0)} MiB`;
}
