/** Durable messages through the program: what was down when, who else was there, and how many there were. */

import assert from "node:assert/strict";
import postgres from "postgres";
import { consumeAmqp, consumeMqtt, consumeRedis } from "../support/consumers.ts";
import { installEvents, OLD_HELPER_SQL, runScript } from "../support/events_schema.ts";
import type { ProxyOptions } from "../support/proxy.ts";
import {
  bridgeEnv,
  iniText,
  type PrintedEvent,
  printedEvents,
  scenario,
  type Scope,
  type TestDatabase,
  uniqueName,
  waitForPrinted,
} from "../support/scenario.ts";
import { type RunningPostgres, sharedServer, startPostgres, startRabbitmq } from "../support/servers.ts";
import { until } from "../support/wait.ts";

async function databaseWithEvents(scope: Scope, server?: RunningPostgres): Promise<TestDatabase> {
  const database = await scope.database(server ?? await sharedServer("postgres"));
  await installEvents(database.uri);
  return database;
}

async function send({ sql }: TestDatabase, message: string, key = "", channel = "events"): Promise<void> {
  await sql`select events.send_message(${channel}, ${message}, ${key}, true)`;
}

async function storedCount({ sql }: TestDatabase): Promise<number> {
  const [row] = await sql<{ count: number }[]>`select count(*)::int as count from events.events`;
  return row?.count ?? -1;
}

function emptied(database: TestDatabase, timeoutMs = 30_000): Promise<unknown> {
  let left = -1;
  return until(async () => (left = await storedCount(database)) === 0, {
    what: () => `the table to be empty, ${left} are left`,
    timeoutMs,
    intervalMs: 50,
  });
}

const toStdout = ({ uri }: TestDatabase): ProxyOptions => ({
  env: bridgeEnv({ uri, kind: "stdout", bindings: "events->topic:out" }),
});

const texts = (events: readonly PrintedEvent[]) => events.map(({ text }) => text);

scenario("a durable message reaches every bound broker with its key and its id, and is then deleted", async (scope) => {
  const database = await databaseWithEvents(scope);
  const { rabbitmq, mosquitto, redis } = await scope.servers;
  const exchange = await scope.exchange();
  const topic = uniqueName("topic");
  const amqp = scope.keep(await consumeAmqp(rabbitmq.uri, { exchange }));
  const mqtt = scope.keep(await consumeMqtt(mosquitto.uri, `${topic}/#`));
  const redisConsumer = scope.keep(await consumeRedis(redis.uri, topic));
  await scope.readyProxy({
    args: ["config.ini"],
    files: {
      "config.ini": iniText({
        database: { uri: database.uri },
        "upstream.a": { kind: "amqp", uri: rabbitmq.uri, bridge_channels: `events->exchange:${exchange}` },
        "upstream.m": {
          kind: "mqtt",
          uri: mosquitto.uri,
          bridge_channels: `events->topic:${topic}`,
          topic_separator: "/",
        },
        "upstream.r": { kind: "redis", uri: redis.uri, bridge_channels: `events->topic:${topic}` },
      }),
    },
  });
  await database.sql`select events.send_message('events', 'My message', 'routing-key', true)`;
  await database.sql`select events.send_message('events', '{"a": "x|y"}', 'json', true)`;
  const [first, second] = await amqp.waitFor(2);
  assert.deepEqual([first?.routingKey, first?.text, second?.routingKey, second?.text], [
    "routing-key",
    "My message",
    "json",
    '{"a": "x|y"}',
  ]);
  const { messageId, type, appId, contentType } = first?.properties ?? {};
  assert.deepEqual({ messageId, type, appId, contentType }, {
    messageId: "1",
    type: "notify",
    appId: "pg-event-proxy",
    contentType: "text/plain; charset=utf-8",
  });
  assert.deepEqual([second?.properties.messageId, second?.properties.contentType], ["2", "application/json"]);
  assert.deepEqual((await mqtt.waitFor(2)).map((message) => [message.topic, message.text]), [
    [`${topic}/routing-key`, "My message"],
    [`${topic}/json`, '{"a": "x|y"}'],
  ]);
  assert.deepEqual((await redisConsumer.waitFor(2)).map(({ text }) => text), ["My message", '{"a": "x|y"}']);
  await emptied(database);
});

scenario(
  "what was sent while no proxy ran arrives in the order of ids, of any size, and is not repeated",
  async (scope) => {
    const database = await databaseWithEvents(scope);
    for (let i = 1; i <= 50; i++) await send(database, `message ${i}`, `key${i}`);
    const large = "0123456789".repeat(1_000_000);
    await send(database, large, "large");
    const proxy = await scope.readyProxy(toStdout(database));
    const events = await waitForPrinted(proxy, 51);
    assert.deepEqual(events.slice(0, 50).map(({ id, routing_key, text }) => [id, routing_key, text]), [
      ...Array.from({ length: 50 }, (_, i) => [`${i + 1}`, `key${i + 1}`, `message ${i + 1}`]),
    ]);
    assert.ok(events[50]?.text === large, "ten million characters");
    await emptied(database);
    assert.deepEqual(await proxy.stop(), { code: 0, signal: null });
    await send(database, "next");
    const again = await scope.readyProxy(toStdout(database));
    await waitForPrinted(again, 1);
    await emptied(database);
    await again.stop();
    assert.deepEqual(texts(printedEvents(again)), ["next"], "a clean stop repeats nothing");
  },
);

scenario("the older helper's 1,000 stored messages are delivered, and taken over with none lost", async (scope) => {
  const database = await scope.database(await sharedServer("postgres"));
  await runScript(database.uri, OLD_HELPER_SQL);
  await database.sql`
    select events.send_message('events', 'message ' || i, 'key' || i, true) from generate_series(1, 1000) i`;
  await installEvents(database.uri);
  await send(database, "after", "last");
  const proxy = await scope.readyProxy(toStdout(database));
  const events = await waitForPrinted(proxy, 1001);
  assert.deepEqual(
    events.map(({ id, routing_key, text }) => `${id} ${routing_key} ${text}`),
    [...Array.from({ length: 1000 }, (_, i) => `${i + 1} key${i + 1} message ${i + 1}`), "1001 last after"],
  );
  await emptied(database);
});

scenario("a transaction that is rolled back sends nothing", async (scope) => {
  const database = await databaseWithEvents(scope);
  const proxy = await scope.readyProxy(toStdout(database));
  for (let i = 0; i < 20; i++) {
    await database.sql.begin(async (sql) => {
      await sql`select events.send_message('events', 'rolled back', '', true)`;
      throw new Error("roll back");
    }).catch(() => {});
    await send(database, `kept ${i}`);
  }
  await waitForPrinted(proxy, 20);
  await emptied(database);
  assert.deepEqual(texts(printedEvents(proxy)), Array.from({ length: 20 }, (_, i) => `kept ${i}`));
});

scenario("fifty senders at once lose nothing, and each sees its own order kept", async (scope) => {
  const database = await databaseWithEvents(scope);
  const proxy = await scope.readyProxy(toStdout(database));
  const senders = 50;
  const each = 40;
  await Promise.all(Array.from({ length: senders }, async (_, sender) => {
    const sql = postgres(database.uri, { max: 1, onnotice: () => {} });
    try {
      for (let n = 0; n < each; n += 4) {
        // One message alone, two in a transaction, one rolled back with a savepoint, one in a transaction given up.
        await sql`select events.send_message('events', ${`${sender} ${n}`}, '', true)`;
        await sql.begin(async (transaction) => {
          await transaction`select events.send_message('events', ${`${sender} ${n + 1}`}, '', true)`;
          await transaction.savepoint(async (savepoint) => {
            await savepoint`select events.send_message('events', 'given up', '', true)`;
            throw new Error("give up");
          }).catch(() => {});
          await transaction`select events.send_message('events', ${`${sender} ${n + 2}`}, '', true)`;
        });
        await sql`select events.send_message('events', ${`${sender} ${n + 3}`}, '', true)`;
      }
    } finally {
      await sql.end({ timeout: 1 });
    }
  }));
  const events = await waitForPrinted(proxy, senders * each, { timeoutMs: 30_000 });
  await emptied(database);
  for (let sender = 0; sender < senders; sender++) {
    const own = texts(events).filter((text) => text.startsWith(`${sender} `));
    assert.deepEqual(own, Array.from({ length: each }, (_, n) => `${sender} ${n}`));
  }
  assert.equal(printedEvents(proxy).length, senders * each);
});

/** Sends numbers, one a transaction, and goes on through lost connections. */
class NumberWriter {
  readonly #uri: string;
  #sql: postgres.Sql;
  sent = 0;

  constructor(scope: Scope, uri: string) {
    this.#uri = uri;
    this.#sql = this.#connect();
    scope.defer(() => this.#sql.end({ timeout: 1 }));
  }

  #connect(): postgres.Sql {
    return postgres(this.#uri, { max: 1, onnotice: () => {}, connect_timeout: 5 });
  }

  async write(count: number): Promise<void> {
    for (const last = this.sent + count; this.sent < last;) {
      const next = this.sent + 1;
      try {
        await this.#sql`select events.send_message('events', ${String(next)}, 'number', true)`;
        this.sent = next;
      } catch {
        // Whether it was committed is not known: the table of numbers tells.
        this.sent = await until(() => this.#lastCommitted(), { what: "the server to be back" });
      }
    }
  }

  async #lastCommitted(): Promise<number> {
    await this.#sql.end({ timeout: 0 });
    this.#sql = this.#connect();
    const [row] = await this.#sql<{ last: number }[]>`select coalesce(max(n), 0)::int as last from numbers`;
    return row?.last ?? 0;
  }

  /** Writes `count`, and does `disturb` when a third of them is sent. */
  async writeThrough(count: number, disturb: () => Promise<unknown>): Promise<void> {
    const from = this.sent;
    const writing = this.write(count);
    const third = until(() => this.sent >= from + count / 3, { what: "a third of the numbers to be sent" });
    await Promise.all([writing, third.then(disturb)]);
  }
}

/** Remembers what was committed, apart from the outbox, in the same transaction. */
const NUMBERS_SQL = `
create table numbers (n int primary key);
create function remember() returns trigger language plpgsql security definer as
  $$ begin insert into public.numbers values (new.message::int); return null; end $$;
create trigger remember after insert on events.events for each row execute function remember()`;

interface Delivered {
  readonly id: string | undefined;
  readonly text: string;
}

/** All numbers are there, first deliveries ascend, and repeats carry the id of the first. */
function assertComplete(delivered: readonly Delivered[], count: number): void {
  const firsts = new Map<string, string | undefined>();
  for (const { id, text } of delivered) {
    if (firsts.has(text)) assert.equal(id, firsts.get(text), `the repeat of ${text} carries its id`);
    else firsts.set(text, id);
  }
  assert.deepEqual([...firsts.keys()], Array.from({ length: count }, (_, i) => String(i + 1)));
  assert.equal(new Set(firsts.values()).size, count, "no two messages share an id");
}

scenario("messages sent through SIGKILL of the proxy and of the broker all arrive, in order", async (scope) => {
  const database = await databaseWithEvents(scope);
  await database.sql.unsafe(NUMBERS_SQL);
  const rabbitmq = scope.keep(await startRabbitmq());
  const queue = await scope.queue(rabbitmq.uri);
  const env = bridgeEnv({
    uri: database.uri,
    kind: "amqp",
    upstreamUri: rabbitmq.uri,
    bindings: `events->queue:${queue}`,
  });
  const writer = new NumberWriter(scope, database.uri);
  for (let round = 0; round < 6; round++) {
    const proxy = await scope.readyProxy({ env });
    if (round === 2) await writer.writeThrough(150, () => rabbitmq.kill());
    if (round === 4) await writer.writeThrough(300, () => rabbitmq.kill().then(() => rabbitmq.start()));
    await writer.writeThrough(100 + round * 37, () => proxy.kill("SIGKILL"));
    if (round === 2) await rabbitmq.start();
  }
  const count = writer.sent;
  const proxy = await scope.readyProxy({ env });
  await emptied(database);
  await proxy.stop();
  const consumer = scope.keep(await consumeAmqp(rabbitmq.uri, { queue }));
  const received = await consumer.waitFor((messages) => messages.at(-1)?.text === String(count));
  assertComplete(received.map(({ text, properties }) => ({ text, id: properties.messageId })), count);
}, { timeoutMs: 120_000 });

scenario("messages sent through SIGKILL of PostgreSQL all arrive, in order", async (scope) => {
  const server = scope.keep(await startPostgres());
  const database = await databaseWithEvents(scope, server);
  await database.sql.unsafe(NUMBERS_SQL);
  const proxy = await scope.readyProxy(toStdout(database));
  const writer = new NumberWriter(scope, database.uri);
  for (let round = 0; round < 3; round++) {
    await writer.writeThrough(300, () => server.kill().then(() => server.start()));
  }
  await writer.write(50);
  const count = writer.sent;
  const events = await waitForPrinted(proxy, (seen) => seen.some(({ text }) => text === String(count)), {
    timeoutMs: 30_000,
  });
  await emptied(database);
  assertComplete(events, count);
}, { timeoutMs: 120_000 });

scenario("one instance drains, the other stands by and takes over when the first is killed", async (scope) => {
  const database = await databaseWithEvents(scope);
  const first = await scope.readyProxy(toStdout(database));
  const second = scope.proxy(toStdout(database));
  await second.waitForLog(/source outbox stands by: another instance drains/);
  for (let i = 0; i < 10; i++) await send(database, `first ${i}`);
  await waitForPrinted(first, 10);
  await emptied(database);
  await first.kill("SIGKILL");
  const killedMs = performance.now();
  await send(database, "second");
  await waitForPrinted(second, 1);
  const gapMs = performance.now() - killedMs;
  console.log(`durable messages: take-over ${Math.round(gapMs)} ms after SIGKILL`);
  assert.ok(gapMs < 5_000, `took ${gapMs} ms`);
  await emptied(database);
  assert.deepEqual(texts(printedEvents(second)), ["second"]);
});

scenario("two bridges of one database both get a message before it is deleted", async (scope) => {
  const database = await databaseWithEvents(scope);
  const { redis } = await scope.servers;
  const topic = uniqueName("topic");
  const consumer = scope.keep(await consumeRedis(redis.uri, topic));
  const proxy = await scope.readyProxy({
    env: {
      ...bridgeEnv({ uri: database.uri, kind: "stdout", bindings: "events->topic:out" }, "ONE"),
      ...bridgeEnv(
        { uri: database.uri, kind: "redis", upstreamUri: redis.uri, bindings: `events->topic:${topic}` },
        "OTHER",
      ),
    },
  });
  for (let i = 0; i < 20; i++) await send(database, String(i));
  const wanted = Array.from({ length: 20 }, (_, i) => String(i));
  assert.deepEqual(texts(await waitForPrinted(proxy, 20)), wanted);
  assert.deepEqual((await consumer.waitFor(20)).map(({ text }) => text), wanted);
  await emptied(database);
  assert.deepEqual(await proxy.stop(), { code: 0, signal: null });
});

scenario("outbox=false leaves the messages alone, and asks for no rights on them", async (scope) => {
  const database = await databaseWithEvents(scope);
  const { uri } = await scope.role(database, "");
  const { env } = toStdout({ ...database, uri });
  const refused = scope.proxy({ env: env ?? {} });
  assert.equal((await refused.exit).code, 1);
  assert.match(refused.stderr, /may not read and delete in events\.events; run as its owner, .*GRANT SELECT, DELETE/);
  const proxy = await scope.readyProxy({ env: { ...env, "PGPROXY_LOCAL-OUTBOX": "false" } });
  await send(database, "stays");
  await database.sql`select pg_notify('events', 'passes')`;
  await waitForPrinted(proxy, 1);
  assert.deepEqual(texts(printedEvents(proxy)), ["passes"]);
  assert.equal(await storedCount(database), 1);
});

scenario("large messages behind a broker that does not answer wait in PostgreSQL, not in memory", async (scope) => {
  const database = await databaseWithEvents(scope);
  const rabbitmq = scope.keep(await startRabbitmq());
  const queue = await scope.queue(rabbitmq.uri);
  const proxy = await scope.readyProxy({
    env: bridgeEnv({
      uri: database.uri,
      kind: "amqp",
      upstreamUri: rabbitmq.uri,
      bindings: `events->queue:${queue}`,
    }),
  });
  const startBytes = proxy.peakRssBytes();
  rabbitmq.freeze();
  scope.defer(() => rabbitmq.thaw());
  await database.sql`
    select events.send_message('events', repeat(md5(i::text), 32768), '', true) from generate_series(1, 300) i`;
  await until(async () => {
    const [row] = await database.sql<{ idle: boolean }[]>`
      select bool_and(state = 'idle' and now() - state_change > interval '500 ms') as idle from pg_stat_activity
       where datname = ${database.name} and application_name = 'pg-event-proxy' and query ~ 'outbox_page|pg_advisory_unlock'`;
    return row?.idle;
  }, { what: "the program to stop reading" });
  const heldBytes = proxy.peakRssBytes() - startBytes;
  assert.ok(heldBytes < 150 * 2 ** 20, `${heldBytes >> 20} MiB for 300 MiB of messages`);
  assert.equal(await storedCount(database), 300);
  rabbitmq.thaw();
  await emptied(database);
  const consumer = scope.keep(await consumeAmqp(rabbitmq.uri, { queue }));
  const received = await consumer.waitFor(300);
  const distinct = new Set(received.map(({ properties }) => properties.messageId));
  assert.equal(distinct.size, 300);
  assert.ok(received.every(({ payload }) => payload.length === 2 ** 20));
}, { timeoutMs: 240_000 });

scenario(
  "a backlog of 50,000 drains in order and in bounded memory, with rows of other channels between",
  async (scope) => {
    const database = await databaseWithEvents(scope);
    await database.sql`
    insert into events.events (channel, routing_key, message)
    select case when i % 2 = 0 then 'unbound' else 'events' end, 'key', i || repeat('x', 200)
      from generate_series(1, 100000) i`;
    const { redis } = await scope.servers;
    const topic = uniqueName("topic");
    const consumer = scope.keep(await consumeRedis(redis.uri, topic));
    const startedMs = performance.now();
    const proxy = await scope.readyProxy({
      env: bridgeEnv({ uri: database.uri, kind: "redis", upstreamUri: redis.uri, bindings: `events->topic:${topic}` }),
    });
    const received = await consumer.waitFor(50_000, 60_000);
    const seconds = (performance.now() - startedMs) / 1000;
    await until(async () => await storedCount(database) === 50_000, { what: "the delivered ones to be deleted" });
    assert.ok(received.every(({ text }, i) => parseInt(text) === 2 * i + 1), "in order");
    await proxy.waitForLog(/channel \\"unbound\\" has no binding: its durable messages, \d+ now, stay/);
    const peakMib = Math.round(proxy.peakRssBytes() / 2 ** 20);
    const [size] = await database.sql`select pg_size_pretty(pg_total_relation_size('events.events')) as text`;
    console.log(
      `backlog: ${Math.round(50_000 / seconds)} rows/s with the start, peak RSS ${peakMib} MiB, table ${size?.text}`,
    );
    assert.ok(peakMib < 250, `peak RSS ${peakMib} MiB`);
  },
  { timeoutMs: 240_000 },
);
