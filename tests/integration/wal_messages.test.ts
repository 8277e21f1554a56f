/** Messages in the WAL: pg_logical_emit_message, and send_message where it is told to use it. */

import assert from "node:assert/strict";
import postgres from "postgres";
import { consumeAmqp } from "../support/consumers.ts";
import { installEvents } from "../support/events_schema.ts";
import type { ProxyOptions } from "../support/proxy.ts";
import {
  bridgeEnv,
  type PrintedEvent,
  scenario,
  type Scope,
  type TestDatabase,
  uniqueName,
  waitForPrinted,
} from "../support/scenario.ts";
import { sharedServer } from "../support/servers.ts";

interface Setup {
  readonly database: TestDatabase;
  readonly slot: string;
  readonly options: ProxyOptions;
}

/** A bridge that streams the WAL and has the binding of pgchannel1. */
async function setUp(scope: Scope): Promise<Setup> {
  const database = await scope.database(await sharedServer("postgres"));
  await database.sql`create table items (id int primary key)`;
  const slot = uniqueName("slot");
  const options = {
    env: bridgeEnv({
      uri: database.uri,
      slot,
      params: "\"format-version\" '2', \"include-transaction\" '0', \"filter-tables\" 'events.events'",
      kind: "stdout",
      bindings: "pgchannel1->topic:messages, wal2json->topic:wal",
    }),
  };
  return { database, slot, options };
}

const emit = (sql: postgres.ISql, content: string, prefix = "pgchannel1", transactional = true) =>
  sql`select pg_logical_emit_message(${transactional}, ${prefix}, ${content})`;

/** What a message was, or which row was inserted. */
function summary({ target, routing_key, text }: PrintedEvent): string {
  return target === "messages" ? `${routing_key}: ${text}` : `${routing_key} ${JSON.parse(text).columns?.[0]?.value}`;
}

scenario(
  "a message in the WAL arrives on the binding of its prefix, in commit order with the row changes",
  async (scope) => {
    const { database: { sql }, options } = await setUp(scope);
    const proxy = await scope.readyProxy(options);
    await sql`select pg_logical_emit_message(true, 'pgchannel1', 'routing-key|My message')`;
    await sql.begin(async (transaction) => {
      await transaction`insert into items values (1)`;
      await emit(transaction, "between|the rows");
      await transaction`insert into items values (2)`;
    });
    await sql.begin(async (transaction) => {
      await emit(transaction, "rolled|back");
      throw new Error("roll back");
    }).catch(() => {});
    await sql.begin(async (transaction) => {
      await transaction.savepoint(async (savepoint) => {
        await emit(savepoint, "rolled|back to the savepoint");
        throw new Error("roll back");
      }).catch(() => {});
      await emit(transaction, '{"json": "a|b"}');
    });
    await emit(sql, "no key");
    const events = await waitForPrinted(proxy, 6);
    assert.deepEqual(events.map(summary), [
      "routing-key: My message",
      "public.items.insert 1",
      "between: the rows",
      "public.items.insert 2",
      ': {"json": "a|b"}',
      ": no key",
    ]);
    assert.deepEqual(events.map(({ type }) => type), ["notify", "wal", "notify", "wal", "notify", "notify"]);
    const [, first, message, second] = events;
    assert.match(message?.id ?? "", /^[0-9A-F]+\/[0-9A-F]+-2$/);
    assert.equal(first?.id.replace(/1$/, "2"), message?.id, "the ordinal in the transaction is the event's id");
    assert.equal(second?.id, message?.id.replace(/2$/, "3"));
  },
);

scenario("a message in the WAL may be of any size and hold any text", async (scope) => {
  const { database: { sql }, options } = await setUp(scope);
  const proxy = await scope.readyProxy(options);
  const contents = [
    "x".repeat(3_000_000),
    'quote " backslash \\ newline \n tab \t bell \u0007 slash / ünïcødé 🙂 \u2028',
    "'; drop table items; --",
    "",
    "|",
    "||",
  ];
  for (const content of contents) await emit(sql, `key|${content}`);
  const events = await waitForPrinted(proxy, contents.length);
  assert.deepEqual(events.map(({ text }) => text), contents);
  assert.ok(events.every(({ routing_key }) => routing_key === "key"));
});

scenario(
  "a message outside the transaction arrives though that is rolled back; an unbound prefix is a WAL event",
  async (scope) => {
    const { database: { sql }, options } = await setUp(scope);
    const proxy = await scope.readyProxy(options);
    await sql.begin(async (transaction) => {
      await emit(transaction, "key|kept", "pgchannel1", false);
      await emit(transaction, "key|lost");
      throw new Error("roll back");
    }).catch(() => {});
    await emit(sql, "key|content", "unbound");
    const [message, record] = await waitForPrinted(proxy, 2);
    assert.deepEqual([message?.target, message?.routing_key, message?.text], ["messages", "key", "kept"]);
    assert.deepEqual([record?.target, record?.routing_key, record?.type], ["wal", "message", "wal"]);
    const { action, prefix, content } = JSON.parse(record?.text ?? "");
    assert.deepEqual([action, prefix, content], ["M", "unbound", "key|content"]);
  },
);

scenario("messages sent while the program was away are kept by the slot, and through SIGKILL", async (scope) => {
  const { database: { sql, uri }, slot } = await setUp(scope);
  const { rabbitmq } = await scope.servers;
  const queue = await scope.queue();
  const env = bridgeEnv({
    uri,
    slot,
    kind: "amqp",
    upstreamUri: rabbitmq.uri,
    params: "\"format-version\" '2', \"include-transaction\" '0'",
    bindings: `pgchannel1->queue:${queue}, wal2json->queue:${queue}`,
  });
  await (await scope.readyProxy({ env })).stop();
  let sent = 0;
  const send = async (count: number) => {
    for (let i = 0; i < count; i++) await emit(sql, `key|${++sent}`);
  };
  await send(50);
  for (let round = 0; round < 3; round++) {
    const proxy = await scope.readyProxy({ env });
    await send(40);
    await proxy.kill("SIGKILL");
    await send(10);
  }
  const proxy = await scope.readyProxy({ env });
  const consumer = scope.keep(await consumeAmqp(rabbitmq.uri, { queue }));
  const received = await consumer.waitFor((messages) => messages.some(({ text }) => text === String(sent)));
  const firsts = new Map<string, unknown>();
  for (const { text, properties: { messageId } } of received) {
    if (firsts.has(text)) assert.equal(messageId, firsts.get(text), "a repeat carries the id of the first");
    else firsts.set(text, messageId);
  }
  assert.deepEqual([...firsts.keys()], Array.from({ length: sent }, (_, i) => String(i + 1)));
  await proxy.stop();
});

/** One session of its own, in which every durable message goes where `durableBy` says. */
async function sessionWith(scope: Scope, { uri }: TestDatabase, durableBy?: string): Promise<postgres.Sql> {
  const sql = postgres(uri, { max: 1, onnotice: () => {} });
  scope.defer(() => sql.end({ timeout: 1 }));
  if (durableBy !== undefined) await sql`select set_config('events.durable_by', ${durableBy}, false)`;
  return sql;
}

const sendDurable = (sql: postgres.ISql, message: string, key = "key") =>
  sql`select events.send_message('pgchannel1', ${message}, ${key}, true)`;

async function stored({ sql }: TestDatabase): Promise<string[]> {
  const rows = await sql<{ message: string }[]>`select message from events.events order by id`;
  return rows.map(({ message }) => message);
}

scenario("send_message goes by the WAL where the database's setting says so and the slot is there", async (scope) => {
  const { database, slot, options } = await setUp(scope);
  await installEvents(database.uri);
  await database.sql.unsafe(`alter database ${database.name} set events.durable_by = 'wal:${slot}'`);
  const sql = await sessionWith(scope, database);
  await sendDurable(sql, "no slot yet");
  assert.deepEqual(await stored(database), ["no slot yet"]);
  const proxy = await scope.readyProxy(options);
  await waitForPrinted(proxy, 1);
  await sql.begin(async (transaction) => {
    await transaction`insert into items values (1)`;
    await transaction`select events.send_message('pgchannel1', 'by the WAL', 'key', true)`;
    await transaction`insert into items values (2)`;
  });
  await sql.begin(async (transaction) => {
    await transaction`select events.send_message('pgchannel1', 'rolled back', 'key', true)`;
    throw new Error("roll back");
  }).catch(() => {});
  await sendDurable(sql, '{"a": 1}', "");
  const large = "large ".repeat(500_000);
  await sendDurable(sql, large);
  const events = await waitForPrinted(proxy, 6);
  assert.deepEqual(events.map(summary), [
    "key: no slot yet",
    "public.items.insert 1",
    "key: by the WAL",
    "public.items.insert 2",
    ': {"a": 1}',
    `key: ${large}`,
  ]);
  assert.equal(events[0]?.id, "1", "the row's id");
  for (const { id } of events.slice(1)) assert.match(id, /^[0-9A-F]+\/[0-9A-F]+-\d+$/, "an id of the WAL");
  // A key that the form key|message cannot carry goes by the table all the same.
  await sendDurable(sql, "message", "a|b");
  const more = await waitForPrinted(proxy, 7);
  assert.deepEqual([more[6]?.id, more[6]?.routing_key, more[6]?.text], ["2", "a|b", "message"]);
});

scenario("without the setting, or without that slot, the table is used", async (scope) => {
  const { database, slot, options } = await setUp(scope);
  await installEvents(database.uri);
  const otherSlot = uniqueName("slot");
  await database.sql`select pg_create_logical_replication_slot(${otherSlot}, 'test_decoding')`;
  const proxy = await scope.readyProxy(options);
  const settings = [undefined, "", "table", "wal", "wal:", "wal:nothing", `wal:${otherSlot}`, `WAL:${slot}`, "walrus"];
  for (const setting of settings) {
    await sendDurable(await sessionWith(scope, database, setting), `by ${setting}`);
  }
  const elsewhere = await scope.database(await sharedServer("postgres"));
  await installEvents(elsewhere.uri);
  await sendDurable(await sessionWith(scope, elsewhere, `wal:${slot}`), "the slot is of another database");
  assert.deepEqual(await stored(elsewhere), ["the slot is of another database"]);
  const events = await waitForPrinted(proxy, settings.length);
  assert.deepEqual(
    events.map(({ id, text }) => [id, text]),
    settings.map((setting, i) => [`${i + 1}`, `by ${setting}`]),
  );
});
