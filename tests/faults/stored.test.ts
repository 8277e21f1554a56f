/**
 * Webhooks and Redis streams under faults. Both keep what they acknowledged: here nothing is excused, and what they hold
 * at the end is compared with what PostgreSQL committed.
 */

import assert from "node:assert/strict";
import process from "node:process";
import { setTimeout as delay } from "node:timers/promises";
import { Redis } from "ioredis";
import type postgres from "postgres";
import type { Proxy } from "../support/proxy.ts";
import { scenario, type Scope, uniqueName } from "../support/scenario.ts";
import { type Server, startRedis } from "../support/servers.ts";
import { TcpRelay } from "../support/tcp_relay.ts";
import { until } from "../support/wait.ts";
import {
  consumeWebhook,
  type ReceivedRequest,
  startWebhookReceiver,
  type WebhookReceiver,
} from "../support/webhook_receiver.ts";
import { digest, History, MESSAGE_CHANNEL } from "./history.ts";
import { between, randomFrom } from "./random.ts";
import { type Arrival, complaints, type ExpectedEvent, judge, summary } from "./verdict.ts";
import { createTables, Writers } from "./writers.ts";

/** One end that stores what it gets. */
interface Store {
  readonly server: Server;
  /** The keys of its upstream; `relayed` puts the relay into an address. */
  keys(relayed: (uri: string) => string): Record<string, string>;
  count(): Promise<number>;
  arrivals(): Promise<readonly Arrival[]>;
}

async function webhookStore(scope: Scope, more: Readonly<Record<string, string>> = {}) {
  const server = scope.keep(await startWebhookReceiver());
  const arrivals: Arrival[] = [];
  const onMessage = ({ headers, payload, text }: ReceivedRequest) => {
    if (more.batch === undefined) arrivals.push({ id: headers["webhook-id"], text: digest(payload) });
    else arrivals.push(...text.slice(1, -1).split(",\n").map(elementArrival));
  };
  scope.keep(consumeWebhook(server, { onMessage }));
  const target = (relayed: (uri: string) => string) => `url:${relayed(server.uri)}/events`;
  const store: Store = {
    server,
    keys: (relayed) => ({
      kind: "webhook",
      allow_private_addresses: "true",
      request_timeout: "1",
      bridge_channels: `wal2json->${target(relayed)}, ${MESSAGE_CHANNEL}->${target(relayed)}`,
      ...more,
    }),
    count: async () => arrivals.length,
    arrivals: async () => arrivals,
  };
  return { server, store };
}

/** The payload as it stands in the array: a JSON object byte for byte, or a string. */
function elementArrival(element: string): Arrival {
  const { id, type, payload } = JSON.parse(element);
  const start = element.indexOf('"payload":') + '"payload":'.length;
  return { id, text: digest(type === "wal" ? element.slice(start, -1) : payload) };
}

async function streamStore(scope: Scope): Promise<Store> {
  const server = scope.keep(await startRedis());
  const name = uniqueName("stream");
  return {
    server,
    keys: (relayed) => ({
      kind: "redis",
      uri: relayed(server.uri),
      bridge_channels: `wal2json->stream:${name}, ${MESSAGE_CHANNEL}->stream:${name}`,
    }),
    count: () => withRedis(server.uri, (client) => client.xlen(name)),
    arrivals: async () => {
      const entries = await withRedis(server.uri, (client) => client.xrange(name, "-", "+"));
      return entries.map(([, fields]) => {
        const at = (field: string) => fields[fields.indexOf(field) + 1] ?? "";
        return { id: at("id"), text: digest(at("payload")) };
      });
    },
  };
}

async function withRedis<T>(uri: string, work: (client: Redis) => Promise<T>): Promise<T> {
  const client = new Redis(uri);
  try {
    return await work(client);
  } finally {
    client.disconnect();
  }
}

interface Trial {
  readonly scope: Scope;
  readonly store: Store;
  readonly relay: TcpRelay;
  readonly sql: postgres.Sql;
  readonly slot: string;
  readonly history: History;
  readonly writers: Writers;
  start(): Promise<Proxy>;
}

async function startTrial(scope: Scope, store: Store): Promise<Trial> {
  const { uri, sql } = await scope.database();
  await createTables(sql);
  const slot = uniqueName("slot");
  const history = await History.begin(sql, `${slot}_history`);
  const relay = scope.keep(await TcpRelay.start({ targetPort: store.server.port }));
  const env: Record<string, string> = { "PGPROXY_DATABASE-URI": uri, "PGPROXY_DATABASE-REPLICATION_SLOT": slot };
  for (const [key, value] of Object.entries(store.keys((address) => relay.uriOf(address)))) {
    env[`PGPROXY_UPSTREAM-STORE-${key.toUpperCase()}`] = value;
  }
  const start = async () => {
    const proxy = scope.proxy({ env });
    await proxy.waitForReady(30_000);
    return proxy;
  };
  const proxy = await start();
  const writers = Writers.start(uri, { sessions: 3, pauseMs: 250 });
  scope.defer(() => writers.stop());
  await until(async () => await store.count() > 50, { what: "events to flow" });
  await proxy.kill("SIGKILL");
  return { scope, store, relay, sql, slot, history, writers, start };
}

/** Kills the program at random moments; leaves one that runs. */
async function killOften(trial: Trial, kills: number): Promise<Proxy> {
  const random = randomFrom(7);
  let proxy = await trial.start();
  for (let kill = 0; kill < kills; kill++) {
    await delay(between(random, 0, 300));
    await proxy.kill("SIGKILL");
    proxy = await trial.start();
  }
  return proxy;
}

/** Waits until everything is delivered and confirmed, and compares. `groupOf`: order counts within a group only. */
async function finish(
  trial: Trial,
  title: string,
  groupOf: (event: ExpectedEvent) => string = () => "",
): Promise<void> {
  const { sql, slot, store } = trial;
  await until(async () => (await trial.history.read()).length > 200, { what: "enough to be written", intervalMs: 100 });
  await trial.writers.stop();
  const [{ lsn } = { lsn: "" }] = await sql<{ lsn: string }[]>`select pg_current_wal_lsn()::text as lsn`;
  await until(async () => {
    const [row] = await sql<{ done: boolean }[]>`
      select confirmed_flush_lsn >= ${lsn}::pg_lsn as done from pg_replication_slots where slot_name = ${slot}`;
    return row?.done;
  }, { what: `slot ${slot} to be confirmed up to ${lsn}`, timeoutMs: 60_000 });
  const expected = await trial.history.read();
  const labels = new Set(expected.map(({ label }) => label));
  assert.ok(trial.writers.committed.every((label) => labels.has(label)), "a confirmed commit is not in the WAL");
  const groups = new Map<string, { expected: ExpectedEvent[]; arrivals: Arrival[] }>();
  const groupById = new Map<string, string>();
  for (const event of expected) {
    const group = groupOf(event);
    groupById.set(event.id, group);
    if (!groups.has(group)) groups.set(group, { expected: [], arrivals: [] });
    groups.get(group)!.expected.push(event);
  }
  // What the consumer of the webhook reads from a file may be a moment late; if it does not come, the verdict tells.
  const ids = async () => new Set((await store.arrivals()).map(({ id }) => id)).size;
  await until(async () => await ids() >= expected.length, { what: "all events to arrive", timeoutMs: 10_000 })
    .catch(() => {});
  for (const arrival of await store.arrivals()) {
    groups.get(groupById.get(arrival.id ?? "") ?? "")?.arrivals.push(arrival);
  }
  for (const [group, { expected, arrivals }] of groups) {
    const verdict = judge(expected, arrivals);
    process.stderr.write(`  ${summary(`${title} ${group}`, verdict)}\n`);
    const faults = complaints(title, verdict);
    assert.deepEqual(faults, [], faults.join("\n"));
  }
}

scenario("webhook: the program killed, the receiver killed, frozen and failing, connections cut", async (scope) => {
  const { server, store } = await webhookStore(scope);
  const trial = await startTrial(scope, store);
  const proxy = await killOften(trial, 5);
  await server.kill();
  await server.start();
  await flows(trial);
  await failForAWhile(server);
  await flows(trial);
  trial.relay.cut();
  await flows(trial);
  trial.relay.swallow();
  await delay(300);
  await flows(trial);
  server.freeze();
  await delay(1_500);
  server.thaw();
  await flows(trial);
  trial.relay.refuse();
  await proxy.waitForLog(/webhook upstream .* is not available/);
  trial.relay.heal();
  await finish(trial, "webhook");
}, { timeoutMs: 120_000 });

/** Answers that pass, some with Retry-After, for the next requests. */
async function failForAWhile(server: WebhookReceiver): Promise<void> {
  await server.behave({
    rules: [
      { status: 503, times: 1 },
      { status: 429, times: 1, headers: { "retry-after": "1" } },
    ],
  });
}

scenario("webhook with batches and concurrency: killed, restarted; each table keeps its order", async (scope) => {
  const { server, store } = await webhookStore(scope, { batch: "20", concurrency: "4" });
  const trial = await startTrial(scope, store);
  await killOften(trial, 4);
  await server.kill();
  await server.start();
  await failForAWhile(server);
  await flows(trial);
  await finish(
    trial,
    "webhook",
    ({ label }) => /"table":"(\w+)"/.exec(label)?.[1] ?? (/^\{"action":"[BC]/.exec(label)?.[0] ?? "other"),
  );
}, { timeoutMs: 120_000 });

scenario("redis stream: the program killed, Redis killed, shut down and frozen, connections cut", async (scope) => {
  const store = await streamStore(scope);
  const { server } = store;
  const trial = await startTrial(scope, store);
  await killOften(trial, 6);
  await server.kill();
  await server.start();
  await flows(trial);
  await server.shutdown();
  await server.start();
  await flows(trial);
  trial.relay.cut();
  await flows(trial);
  server.freeze();
  await delay(1_000);
  server.thaw();
  await flows(trial);
  await finish(trial, "redis stream");
}, { timeoutMs: 120_000 });

async function flows({ store }: Trial, count = 30): Promise<void> {
  const before = await store.count();
  await until(async () => await store.count() >= before + count, { what: "events to flow again" });
}
