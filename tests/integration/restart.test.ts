/** The program, a broker or PostgreSQL is restarted: what was committed arrives, in order. */

import assert from "node:assert/strict";
import { setTimeout as delay } from "node:timers/promises";
import postgres from "postgres";
import { consumeAmqp, consumeMqtt, type Consumer, type Message, withAmqpChannel } from "../support/consumers.ts";
import { bridgeEnv, iniText, printedEvents, scenario, type TestDatabase, waitForPrinted } from "../support/scenario.ts";
import { startMosquitto, startPostgres, startRabbitmq } from "../support/servers.ts";
import { until } from "../support/wait.ts";

/** The ids of the rows that were inserted, in the order of arrival. */
function insertedIds(texts: readonly string[]): number[] {
  return texts.filter((text) => text.includes('"action":"I"')).map((text) => JSON.parse(text).columns[0].value);
}

function range(from: number, to: number): number[] {
  return Array.from({ length: to - from + 1 }, (_, i) => from + i);
}

function firstDeliveries(ids: readonly number[]): number[] {
  return [...new Set(ids)];
}

/** Commits numbered rows one by one until it is stopped; a server that is away is waited for. */
class Writer {
  readonly #uri: string;
  readonly #work: Promise<void>;
  #sql: postgres.Sql;
  #stopping = false;
  last = 0;

  constructor({ uri }: Pick<TestDatabase, "uri">) {
    this.#uri = uri;
    this.#sql = this.#connect();
    this.#work = this.#write();
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    await this.#work;
    await this.#sql.end({ timeout: 1 });
  }

  #connect(): postgres.Sql {
    return postgres(this.#uri, { max: 1, connect_timeout: 5, onnotice: () => {} });
  }

  async #write(): Promise<void> {
    while (!this.#stopping) {
      const id = this.last + 1;
      // Whether it was committed when the connection broke is not known: the same number again does no harm.
      await until(() => this.#commit(id), { what: `row ${id} to be committed`, timeoutMs: 60_000 });
      this.last = id;
      // A steady load, not as much as the servers can take.
      await delay(5);
    }
  }

  async #commit(id: number): Promise<boolean> {
    const committed = this.#sql`insert into t values (${id}) on conflict do nothing`.then(() => true, () => false);
    const patience = new AbortController();
    // The library now and then never answers a query whose connection was lost: then a new client is better.
    const late = delay(PATIENCE_MS, false, { signal: patience.signal }).catch(() => false);
    const done = await Promise.race([committed, late]);
    patience.abort();
    if (done) return true;
    await this.#sql.end({ timeout: 0 });
    this.#sql = this.#connect();
    return false;
  }
}

const PATIENCE_MS = 5_000;

async function confirmedFlush(sql: postgres.Sql, slot: string): Promise<bigint> {
  const [row] = await sql<{ position: string }[]>`
    select confirmed_flush_lsn - '0/0' as position from pg_replication_slots where slot_name = ${slot}`;
  return BigInt(row?.position ?? 0);
}

for (const signal of ["SIGTERM", "SIGINT"] as const) {
  scenario(`a clean stop by ${signal} in the midst of writes redelivers nothing and loses nothing`, async (scope) => {
    const { rabbitmq } = await scope.servers;
    const database = await scope.database();
    await database.sql`create table t (id int primary key)`;
    const queue = await scope.queue();
    const consumer = scope.keep(await consumeAmqp(rabbitmq.uri, { queue }));
    const env = bridgeEnv({
      uri: database.uri,
      slot: database.name,
      kind: "amqp",
      upstreamUri: rabbitmq.uri,
      bindings: `wal2json->queue:${queue}`,
    });
    const first = await scope.readyProxy({ env });
    const writer = scope.keep(new Writer(database));
    await consumer.waitFor(60);
    assert.deepEqual(await first.kill(signal), { code: 0, signal: null });
    const atStop = writer.last;
    await until(() => writer.last > atStop + 5, { what: "rows to be written while the program is down" });
    const second = await scope.readyProxy({ env });
    await until(() => writer.last > atStop + 30, { what: "rows to be written after the start" });
    await writer.stop();
    await consumer.waitFor(3 * writer.last);
    assert.deepEqual(await second.stop(), { code: 0, signal: null });
    assert.deepEqual(insertedIds(consumer.received.map(({ text }) => text)), range(1, writer.last));
    assert.equal(consumer.received.length, 3 * writer.last);
    const ids = consumer.received.map(({ properties }) => properties.messageId);
    assert.equal(new Set(ids).size, ids.length);
    assert.doesNotMatch(first.stderr + second.stderr, /"level":"(warning|error|fatal)"/);
  });
}

scenario("a stop in the midst of a large transaction delivers it once", async (scope) => {
  const { rabbitmq } = await scope.servers;
  const database = await scope.database();
  await database.sql`create table t (id int primary key, filler text)`;
  const queue = await scope.queue();
  const consumer = scope.keep(await consumeAmqp(rabbitmq.uri, { queue }));
  const env = bridgeEnv({
    uri: database.uri,
    slot: database.name,
    kind: "amqp",
    upstreamUri: rabbitmq.uri,
    bindings: `wal2json->queue:${queue}`,
    more: { delivery_mode: "1" },
  });
  const first = await scope.readyProxy({ env });
  await database.sql`insert into t select i, repeat('x', 200) from generate_series(1, 20000) i`;
  await consumer.waitFor(100);
  assert.deepEqual(await first.kill("SIGTERM"), { code: 0, signal: null });
  const second = await scope.readyProxy({ env });
  await database.sql`insert into t values (20001, 'the end')`;
  await consumer.waitFor((all) =>
    all.at(-1)?.text === '{"action":"C"}' && all.at(-2)?.text.includes("the end") === true
  );
  assert.deepEqual(await second.stop(), { code: 0, signal: null });
  assert.deepEqual(insertedIds(consumer.received.map(({ text }) => text)), range(1, 20_001));
});

scenario("the slot of an idle database moves on while another database writes", async (scope) => {
  const [idle, busy] = [await scope.database(), await scope.database()];
  await busy.sql`create table t (id int, filler text)`;
  const proxy = await scope.readyProxy({
    env: bridgeEnv({ uri: idle.uri, slot: idle.name, kind: "stdout", bindings: "wal2json->topic:wal" }),
  });
  for (let round = 0; round < 3; round++) {
    await busy.sql`insert into t select i, repeat('x', 500) from generate_series(1, 5000) i`;
    const [row] = await busy.sql<{ position: string }[]>`select pg_current_wal_lsn() - '0/0' as position`;
    const written = BigInt(row?.position ?? 0);
    await until(async () => await confirmedFlush(idle.sql, idle.name) >= written, {
      what: `the slot to move past what the other database has written in round ${round}`,
    });
  }
  await proxy.stop();
  assert.equal(proxy.stdout, "");
});

scenario("what is written while the brokers are restarted arrives, in order", async (scope) => {
  const [rabbitmq, mosquitto] = await Promise.all([startRabbitmq(), startMosquitto()]);
  scope.keep(rabbitmq);
  scope.keep(mosquitto);
  const database = await scope.database();
  await database.sql`create table t (id int primary key)`;
  await withAmqpChannel(rabbitmq.uri, (channel) => channel.assertQueue("restart", { durable: true }));
  const consumers: Consumer<Message>[] = [
    scope.keep(await consumeAmqp(rabbitmq.uri, { queue: "restart" })),
    scope.keep(await consumeMqtt(mosquitto.uri, ["wal", "events"], { clientId: "restart" })),
  ];
  const config = iniText({
    database: { uri: database.uri, replication_slot: database.name },
    "upstream.rabbitmq": {
      kind: "amqp",
      uri: rabbitmq.uri,
      bridge_channels: "wal2json->queue:restart, events->queue:restart",
    },
    "upstream.mosquitto": {
      kind: "mqtt",
      uri: mosquitto.uri,
      bridge_channels: "wal2json->topic:wal, events->topic:events",
    },
  });
  const proxy = await scope.readyProxy({ args: ["config.ini"], files: { "config.ini": config } });
  const writer = scope.keep(new Writer(database));
  for (const consumer of consumers) await consumer.waitFor(30);
  // What RabbitMQ has confirmed survives its death; Mosquitto saves what it keeps when it is shut down.
  await Promise.all([rabbitmq.kill(), mosquitto.shutdown()]);
  await proxy.waitForLog(/amqp upstream \\"rabbitmq\\" is not available/);
  await proxy.waitForLog(/mqtt upstream \\"mosquitto\\" is not available/);
  const atEnd = writer.last;
  await database.sql`notify events, 'notified meanwhile'`;
  await until(() => writer.last > atEnd + 20, { what: "rows to be written meanwhile" });
  await Promise.all([rabbitmq.start(), mosquitto.start()]);
  const back = writer.last;
  for (const consumer of consumers) {
    await consumer.waitFor((all) => all.some(({ text }) => text.includes(`"value":${back}}`)), 60_000);
    await consumer.waitFor((all) => all.some(({ text }) => text === "notified meanwhile"));
  }
  await writer.stop();
  for (const consumer of consumers) {
    await consumer.waitFor((all) => all.some(({ text }) => text.includes(`"value":${writer.last}}`)));
    const ids = insertedIds(consumer.received.map(({ text }) => text));
    assert.deepEqual(firstDeliveries(ids), range(1, writer.last));
  }
  assert.deepEqual(await proxy.stop(), { code: 0, signal: null });
  const recoveries = proxy.log.filter(({ text }) => /upstream \\"\w+\\" is back after/.test(text));
  assert.equal(recoveries.length, 2, "each outage is told once at its begin and once at its end");
}, { timeoutMs: 180_000 });

scenario("what is written around restarts of PostgreSQL arrives, in order", async (scope) => {
  const server = scope.keep(await startPostgres());
  const database = await scope.database(server);
  await database.sql`create table t (id int primary key)`;
  const proxy = await scope.readyProxy({
    env: bridgeEnv({
      uri: database.uri,
      slot: "restart",
      kind: "stdout",
      bindings: "wal2json->topic:wal, events->topic:events",
    }),
  });
  const writer = scope.keep(new Writer(database));
  await waitForPrinted(proxy, (all) => insertedIds(all.map(({ text }) => text)).length > 30);
  for (const end of ["shutdown", "kill"] as const) {
    const startedMs = performance.now();
    await server[end]();
    const tookMs = performance.now() - startedMs;
    // The proxy answers a server that shuts down, and lets go of it.
    assert.ok(tookMs < 10_000, `${end} took ${Math.round(tookMs)} ms`);
    await proxy.waitForLog(/source wal.* is not available/);
    await proxy.waitForLog(/source notify is not available/);
    await server.start();
    const back = writer.last;
    await until(() => writer.last > back + 20, { what: "rows to be written after the start" });
    const [last] = [writer.last];
    await waitForPrinted(proxy, (all) => insertedIds(all.map(({ text }) => text)).includes(last), {
      timeoutMs: 30_000,
    });
    await until(async () => {
      await database.sql`select pg_notify('events', ${`after ${end}`})`;
      return printedEvents(proxy, "events").some(({ text }) => text === `after ${end}`);
    }, { what: "a notification after the restart", intervalMs: 100, timeoutMs: 30_000 });
  }
  await writer.stop();
  await waitForPrinted(proxy, (all) => insertedIds(all.map(({ text }) => text)).includes(writer.last));
  const wal = printedEvents(proxy, "wal");
  assert.deepEqual(firstDeliveries(insertedIds(wal.map(({ text }) => text))), range(1, writer.last));
  assert.ok(proxy.log.some(({ text }) => /notifications .* lost/.test(text)), "the gap of NOTIFY is told");
  assert.deepEqual(await proxy.stop(), { code: 0, signal: null });
}, { timeoutMs: 120_000 });
