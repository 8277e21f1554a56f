/** What is delivered of the WAL is, byte for byte and in order, what the server itself decodes with the same options. */

import assert from "node:assert/strict";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import type postgres from "postgres";
import { consumeAmqp, consumeMqtt, consumeRedis, type MqttMessage } from "../support/consumers.ts";
import { iniText, printedEvents, scenario, type TestDatabase, uniqueName } from "../support/scenario.ts";
import { TcpRelay } from "../support/tcp_relay.ts";
import { until } from "../support/wait.ts";

type Sql = postgres.Sql;

interface DecodedRecord {
  readonly lsn: string;
  readonly data: string;
}

interface Step {
  readonly title: string;
  readonly run: (sql: Sql) => Promise<unknown>;
}

async function createTables(sql: Sql): Promise<void> {
  await sql`
    create table kinds (
      id int primary key, f8 float8, f4 float4, big bigint, num numeric, fixed numeric(30, 10), bin bytea, ints int[],
      texts text[], nested int[][], j json, jb jsonb, at timestamptz, span interval, u uuid, yes boolean, t text,
      c char(5), r int4range, addr inet, bits bit(3)
    )`;
  await sql`create table toasted (id int primary key, small int, large text)`;
  await sql`alter table toasted alter large set storage external`;
  await sql`create table keyless (a int, b text)`;
  await sql`create table keyless_full (a int, b text)`;
  await sql`alter table keyless_full replica identity full`;
  await sql`create table keyed (id int primary key, b text)`;
  await sql`create table child (id int primary key, parent int references keyed)`;
  await sql`create table parts (id int primary key, b text) partition by range (id)`;
  await sql`create table part_1 partition of parts for values from (0) to (100)`;
  await sql`create table part_2 partition of parts for values from (100) to (200)`;
  await sql.unsafe(`create schema "Weird.Schema ""q"" ☃"`);
  await sql.unsafe(
    `create table "Weird.Schema ""q"" ☃"."Tä\\ble.x|""y" ("co""l.1" int primary key, "back\\slash" text, "🐘" text)`,
  );
}

const STEPS: readonly Step[] = [
  {
    title: "numbers that a JSON round trip would change",
    run: async (sql) => {
      await sql.unsafe(`insert into kinds (id, f8, f4, big, num, fixed) values
        (1, 'NaN', 'Infinity', 9007199254740993, 'NaN', 1.1),
        (2, '-Infinity', 1.1, -9223372036854775808, 123456789012345678901234567890.123456789000, 0),
        (3, 1e300, 1e-30, 0, 1.50000, 12345678901234567890.1234567890),
        (4, -0.0, 0.1, 9223372036854775807, 0.000, -1.5)`);
    },
  },
  {
    title: "bytes, arrays, json, ranges and text of every sort",
    run: async (sql) => {
      await sql.unsafe(String.raw`insert into kinds
        (id, bin, ints, texts, nested, j, jb, at, span, u, yes, t, c, r, addr, bits) values
        (10, '\x00ff7c22005c', '{1,NULL,3}', '{"a|b","c\"d","e\\f",NULL,"","{}"}', '{{1,2},{3,4}}', '{"k" : "a|b", "k": 1.0}',
         '{"k":"a|b","n":1.000,"u":"\u00e9\"\\"}', '2024-02-29 12:34:56.789+02', '1 year 2 mons -3 days 04:05:06.7',
         'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', true, E'tab\tnewline\nreturn\rquote"back\\slash/\u0001\u2028 end', 'ab',
         '[1,5)', '::1/128', B'101'),
        (11, '', '{}', '{}', '{}', 'null', '[]', 'infinity', '0', null, false, '', '', 'empty', '10.0.0.0/8', B'000'),
        (12, null, null, null, null, '"|"', '"|"', '-infinity', null, null, null, 'signup|not a key', null, null, null, null)`);
      await sql.unsafe(`insert into kinds (id, t) values (13, '🐘👩‍👩‍👧‍👦é e\u0301 ‮rtl ​ 𝄞 \uFFFD')`);
      await sql.unsafe(`insert into kinds (id, t) select 100 + i, chr(i) from generate_series(1, 160) i`);
    },
  },
  {
    title: "a value of 1 MB, then a row whose TOASTed value stays as it was",
    run: async (sql) => {
      await sql`insert into toasted select 1, 1, string_agg(md5(i::text), '|') from generate_series(1, 31776) i`;
      await sql`update toasted set small = 2 where id = 1`;
      await sql`update toasted set id = 7 where id = 1`;
      await sql`insert into toasted values (2, 1, repeat('🐘', 262144))`;
      await sql`delete from toasted where id = 7`;
    },
  },
  {
    title: "tables without a key",
    run: async (sql) => {
      for (const table of ["keyless", "keyless_full"]) {
        await sql.unsafe(`insert into ${table} values (1, 'x'), (2, null)`);
        await sql.unsafe(`update ${table} set b = 'y' where a = 1`);
        await sql.unsafe(`delete from ${table}`);
      }
    },
  },
  {
    title: "COPY",
    run: async (sql) => {
      const lines = Array.from({ length: 2_000 }, (_, i) => `${i + 1_000}\tcopied | ${i}\\t"🐘"\n`);
      await pipeline(Readable.from(lines), await sql`copy keyed (id, b) from stdin`.writable());
    },
  },
  {
    title: "subtransactions",
    run: (sql) =>
      sql.begin(async (sql) => {
        await sql`insert into keyed values (1, 'kept')`;
        await sql`savepoint a`;
        await sql`insert into keyed values (2, 'rolled back')`;
        await sql`rollback to a`;
        await sql`insert into keyed values (3, 'kept')`;
        await sql`savepoint b`;
        await sql`update keyed set b = 'changed' where id = 1`;
        await sql`savepoint c`;
        await sql`insert into keyed values (4, 'kept')`;
        await sql`release b`;
      }),
  },
  {
    title: "a transaction that is rolled back",
    run: async (sql) => {
      const failed = sql.begin(async (sql) => {
        await sql`insert into keyed values (50, 'never')`;
        throw new Error("rolled back by the test");
      });
      await assert.rejects(failed, /rolled back by the test/);
    },
  },
  { title: "two interleaved transactions", run: interleave },
  {
    title: "names with dots, quotes, bars, backslashes and characters beyond ASCII",
    run: async (sql) => {
      const table = `"Weird.Schema ""q"" ☃"."Tä\\ble.x|""y"`;
      await sql.unsafe(`insert into ${table} values (1, 'a', 'b'), (2, null, '|')`);
      await sql.unsafe(`update ${table} set "🐘" = 'c' where "co""l.1" = 1`);
      await sql.unsafe(`delete from ${table} where "co""l.1" = 2`);
      await sql.unsafe(`truncate ${table}`);
    },
  },
  {
    title: "partitions",
    run: async (sql) => {
      await sql`insert into parts values (1, 'first'), (101, 'second')`;
      await sql`update parts set id = 102 where id = 1`;
    },
  },
  {
    title: "TRUNCATE of several tables, and with those that depend on them",
    run: async (sql) => {
      await sql`insert into child values (1, 3)`;
      await sql`truncate keyless, keyless_full, kinds`;
      await sql`truncate keyed cascade`;
    },
  },
  {
    title: "logical messages inside and outside of transactions",
    run: async (sql) => {
      await sql`select pg_logical_emit_message(true, 'prefix', 'k|a "transactional" message 🐘')`;
      await sql`select pg_logical_emit_message(false, 'prefix', 'outside of any')`;
      await sql`select pg_logical_emit_message(true, 'wal2json', 'k|with the name of the WAL channel')`;
      await sql.begin(async (sql) => {
        await sql`insert into keyed values (60, 'before')`;
        await sql`select pg_logical_emit_message(true, 'pre"fix', repeat('long ', 50000))`;
        await sql`select pg_logical_emit_message(false, 'prefix', 'overtakes its transaction')`;
        await sql`insert into keyed values (61, 'after')`;
      });
      await sql`select pg_logical_emit_message(false, '', '')`;
    },
  },
  {
    title: "definitions among the changes",
    run: async (sql) => {
      await sql`alter table keyed add extra numeric default 1.10`;
      await sql`insert into keyed values (70, 'after alter')`;
      await sql`create table made_meanwhile as select 1 as one`;
      await sql`alter table keyed drop extra`;
    },
  },
  {
    title: "an upsert and a moved key",
    run: async (sql) => {
      await sql`insert into keyed values (70, 'again') on conflict (id) do update set b = excluded.b`;
      await sql`update keyed set id = 71 where id = 70`;
      await sql`delete from keyed`;
    },
  },
];

/** The one that begins first commits last. */
async function interleave(sql: Sql): Promise<void> {
  const [one, two] = [await sql.reserve(), await sql.reserve()];
  try {
    await one`begin`;
    await two`begin`;
    for (let i = 0; i < 50; i++) {
      await one`insert into keyed values (${10_000 + i}, 'one')`;
      await two`insert into keyed values (${20_000 + i}, 'two')`;
    }
    await two`commit`;
    await sql`insert into keyed values (30000, 'a third in between')`;
    await one`commit`;
  } finally {
    one.release();
    two.release();
  }
}

/** The last record of all: both sides are read up to it. */
const END = "the end of the test";

async function runSteps(sql: Sql): Promise<void> {
  for (const step of STEPS) {
    try {
      await step.run(sql);
    } catch (error) {
      throw new Error(`${step.title}: ${error}`, { cause: error });
    }
  }
  await sql`select pg_logical_emit_message(true, 'end', ${END})`;
}

/** What the server decodes for itself, up to the commit of the last transaction. */
async function decodedByServer(
  sql: Sql,
  slot: string,
  options: Readonly<Record<string, string>>,
): Promise<DecodedRecord[]> {
  const list = Object.entries(options).flat();
  const rows = await sql<DecodedRecord[]>`
    select lsn, data from pg_logical_slot_get_changes(${slot}, null, null, variadic ${sql.array(list)}::text[])`;
  const end = rows.findIndex(({ data }) => data.includes(END));
  assert.ok(end > 0, "the last record");
  return rows.slice(0, end + 1);
}

async function createSlots(sql: Sql, names: readonly string[]): Promise<void> {
  for (const name of names) await sql`select pg_create_logical_replication_slot(${name}, 'wal2json')`;
}

interface Variant {
  readonly name: string;
  readonly options: Readonly<Record<string, string>>;
}

/** Each is read through a slot and an upstream of its own. */
const VARIANTS: readonly Variant[] = [
  { name: "plain", options: { "format-version": "2", "include-types": "0" } },
  {
    name: "everything",
    options: {
      "format-version": "2",
      "include-types": "1",
      "include-typmod": "1",
      "include-type-oids": "1",
      // Not include-default: what wal2json says of a column that is dropped soon after depends on when it decodes.
      "include-not-null": "1",
      "include-pk": "1",
      "include-xids": "1",
      "include-timestamp": "1",
      "include-lsn": "1",
    },
  },
  {
    name: "positions",
    options: { "format-version": "2", "include-lsn": "1", "include-column-positions": "1", "include-origin": "1" },
  },
  { name: "untransacted", options: { "format-version": "2", "include-types": "0", "include-transaction": "0" } },
  {
    name: "filtered",
    options: {
      "format-version": "2",
      "actions": "insert,delete,truncate",
      "filter-tables": "public.kinds,*.keyless",
      "filter-msg-prefixes": "prefix",
    },
  },
  { name: "pretty", options: { "format-version": "2", "pretty-print": "1" } },
];

/** With `\"`, as the manual has it. */
function formatOptions(options: Readonly<Record<string, string>>): string {
  return Object.entries(options).map(([name, value]) => `\\"${name}\\" '${value}'`).join(" , ");
}

scenario("every kind of change arrives as the server decodes it, for every option and upstream", async (scope) => {
  const { rabbitmq, mosquitto, redis } = await scope.servers;
  const { name, uri, sql } = await scope.database();
  await createTables(sql);
  const slotOf = (variant: string) => `${name}_${variant}`;
  await createSlots(sql, VARIANTS.flatMap(({ name }) => [slotOf(name), `${slotOf(name)}_reference`]));
  const exchange = await scope.exchange();
  const topic = uniqueName("topic");
  const amqp = scope.keep(await consumeAmqp(rabbitmq.uri, { exchange }));
  const mqtt = scope.keep(await consumeMqtt(mosquitto.uri, topic, { protocolVersion: 5 }));
  const published = scope.keep(await consumeRedis(redis.uri, topic));

  const plain = { replication_slot: slotOf("plain") };
  const sections: Record<string, Record<string, string>> = {
    database: { uri },
    "upstream.rabbitmq": {
      ...plain,
      kind: "amqp",
      uri: rabbitmq.uri,
      bridge_channels: `wal2json->exchange:${exchange}`,
    },
    "upstream.mosquitto": {
      ...plain,
      kind: "mqtt",
      uri: mosquitto.uri,
      protocol_version: "5",
      bridge_channels: `wal2json->topic:${topic}`,
    },
    "upstream.redis": { ...plain, kind: "redis", uri: redis.uri, bridge_channels: `wal2json->topic:${topic}` },
  };
  for (const { name, options } of VARIANTS) {
    sections[`upstream.${name}`] = {
      kind: "stdout",
      replication_slot: slotOf(name),
      ...name === "plain" ? {} : { wal2json_params: formatOptions(options) },
      bridge_channels: `wal2json->topic:${name}`,
    };
  }
  const proxy = await scope.readyProxy({ args: ["--config", "all.ini"], files: { "all.ini": iniText(sections) } });
  await runSteps(sql);

  let plainRecords: DecodedRecord[] = [];
  let plainIds: string[] = [];
  for (const { name, options } of VARIANTS) {
    const expected = await decodedByServer(sql, `${slotOf(name)}_reference`, options);
    await until(
      () => proxy.stdout.split("\n").slice(0, -1).some((line) => line.includes(END) && line.includes(`"${name}"`)),
      {
        what: `the end of ${name} to be printed`,
      },
    );
    const printed = printedEvents(proxy, name).slice(0, expected.length);
    sameTexts(printed.map(({ text }) => text), expected.map(({ data }) => data), name);
    assert.deepEqual(
      printed.map(({ routing_key }) => routing_key),
      expected.map(({ data }) => routingKeyOf(data)),
      name,
    );
    checkIds(printed.map(({ id }) => id), expected, name);
    if (name === "plain") {
      plainRecords = expected;
      plainIds = printed.map(({ id }) => id);
    }
    if (name === "untransacted") {
      const changes = plainIds.filter((_, i) => !/^{"action":"[BC]"}$/.test(plainRecords[i]?.data ?? ""));
      assert.deepEqual(printed.map(({ id }) => id), changes, "ids do not depend on the options");
    }
  }

  const texts = plainRecords.map(({ data }) => data);
  const bytes = texts.map((text) => Buffer.from(text));
  const fromAmqp = (await amqp.waitFor(texts.length)).slice(0, texts.length);
  sameBytes(fromAmqp.map(({ payload }) => payload), bytes, "amqp");
  assert.deepEqual(fromAmqp.map(({ properties }) => properties.messageId), plainIds);
  assert.deepEqual(fromAmqp.map(({ routingKey }) => routingKey), texts.map(routingKeyOf));
  const fromMqtt = (await mqtt.waitFor(texts.length)).slice(0, texts.length);
  sameBytes(fromMqtt.map(({ payload }) => payload), bytes, "mqtt");
  assert.deepEqual(fromMqtt.map(idOf), plainIds);
  const fromRedis = (await published.waitFor(texts.length)).slice(0, texts.length);
  sameBytes(fromRedis.map(({ payload }) => payload), bytes, "redis");
}, { timeoutMs: 120_000 });

function sameTexts(seen: readonly string[], wanted: readonly string[], what: string): void {
  const differs = wanted.findIndex((text, i) => seen[i] !== text);
  if (differs !== -1) {
    const [is, should] = [seen[differs] ?? "", wanted[differs] ?? ""];
    let at = 0;
    while (at < should.length && is[at] === should[at]) at++;
    const from = Math.max(0, at - 150);
    assert.fail(
      `${what}, record ${differs}, from byte ${from}: ${cut(is.slice(from))} instead of ${cut(should.slice(from))}`,
    );
  }
  assert.equal(seen.length, wanted.length, what);
}

function sameBytes(seen: readonly Buffer[], wanted: readonly Buffer[], what: string): void {
  const differs = wanted.findIndex((bytes, i) => !bytes.equals(seen[i] ?? Buffer.alloc(0)));
  if (differs !== -1) {
    const text = (bytes: Buffer | undefined) => cut(bytes?.toString("latin1"));
    assert.fail(`${what}, record ${differs}: ${text(seen[differs])} instead of ${text(wanted[differs])}`);
  }
  assert.equal(seen.length, wanted.length, what);
}

function cut(text: string | undefined): string {
  return text === undefined ? "nothing" : text.slice(0, 300);
}

/** By a full parse, where the program looks at the first bytes only. */
function routingKeyOf(record: string): string {
  const { action, schema, table } = JSON.parse(record) as Record<string, string>;
  const words: Record<string, string> = { I: "insert", U: "update", D: "delete", T: "truncate" };
  switch (action) {
    case "B":
      return "begin";
    case "C":
      return "commit";
    case "M":
      return "message";
    default:
      return `${schema}.${table}.${words[action ?? ""]}`;
  }
}

/** `<first LSN of the transaction>-<ordinal>`, no two alike; the server tells the LSN with the BEGIN record. */
function checkIds(ids: readonly string[], records: readonly DecodedRecord[], what: string): void {
  assert.equal(new Set(ids).size, ids.length, `${what}: ids are unique`);
  let lsn = "";
  let ordinal = 0;
  records.forEach(({ lsn: at, data }, i) => {
    const { action, transactional } = JSON.parse(data) as Record<string, unknown>;
    assert.match(ids[i] ?? "", /^[0-9A-F]+\/[0-9A-F]+-(\d+|m)$/, what);
    if (action === "M" && transactional === false) {
      assert.ok(ids[i]?.endsWith("-m"), `${what}: ${ids[i]}`);
      return;
    }
    if (action === "B") [lsn, ordinal] = [at, 0];
    else ordinal++;
    if (lsn !== "") assert.equal(ids[i], `${lsn}-${ordinal}`, what);
  });
}

function idOf(message: MqttMessage): string | undefined {
  const id = message.properties?.userProperties?.id;
  return typeof id === "string" ? id : undefined;
}

scenario("what was sent and not acknowledged is sent again after SIGKILL, with the same ids", async (scope) => {
  const { rabbitmq, mosquitto } = await scope.servers;
  const { name, uri, sql } = await scope.database();
  await sql`create table t (id int primary key, filler text)`;
  const queue = await scope.queue();
  const topic = uniqueName("topic");
  const amqp = scope.keep(await consumeAmqp(rabbitmq.uri, { queue }));
  const mqtt = scope.keep(await consumeMqtt(mosquitto.uri, topic, { protocolVersion: 5 }));
  const relays = [
    scope.keep(await TcpRelay.start({ targetPort: rabbitmq.port })),
    scope.keep(await TcpRelay.start({ targetPort: mosquitto.port })),
  ] as const;
  const config = iniText({
    database: { uri, replication_slot: name },
    "upstream.rabbitmq": {
      kind: "amqp",
      uri: relays[0].uriOf(rabbitmq.uri),
      bridge_channels: `wal2json->queue:${queue}`,
    },
    "upstream.mosquitto": {
      kind: "mqtt",
      uri: relays[1].uriOf(mosquitto.uri),
      protocol_version: "5",
      bridge_channels: `wal2json->topic:${topic}`,
    },
  });
  const options = { args: ["config.ini"], files: { "config.ini": config } };
  const first = await scope.readyProxy(options);
  await sql`insert into t values (0, 'before')`;
  await amqp.waitFor(3);
  await confirmedPast(name, sql);

  // From here on the brokers take everything, and the program hears nothing of it.
  for (const relay of relays) relay.swallow(["toClient"]);
  await sql`insert into t select i, repeat('x', 100) from generate_series(1, 10) i`;
  await sql`update t set filler = 'changed' where id <= 3`;
  // Below 20, which is all that Mosquitto lets a client of MQTT 5 have unanswered.
  const again = 12 + 6;
  const unanswered = 3 + again;
  await amqp.waitFor(unanswered);
  await mqtt.waitFor(unanswered);
  assert.deepEqual(await first.kill("SIGKILL"), { code: null, signal: "SIGKILL" });

  const second = await scope.readyProxy(options);
  await amqp.waitFor(unanswered + again);
  await mqtt.waitFor(unanswered + again);
  assert.deepEqual(await second.stop(), { code: 0, signal: null });
  const messages = [
    amqp.received.map(({ properties, text }) => ({ id: String(properties.messageId), text })),
    mqtt.received.map((message) => ({ id: idOf(message), text: message.text })),
  ];
  for (const all of messages) {
    assert.equal(all.length, unanswered + again);
    assert.deepEqual(all.slice(unanswered), all.slice(3, unanswered));
    assert.equal(new Set(all.map(({ id }) => id)).size, unanswered);
  }
});

/** Waits until the slot has confirmed everything written so far. */
async function confirmedPast(slot: string, sql: TestDatabase["sql"]): Promise<void> {
  const [now] = await sql<{ lsn: string }[]>`select pg_current_wal_lsn() as lsn`;
  await until(async () => {
    const [row] = await sql<{ past: boolean }[]>`
      select confirmed_flush_lsn >= ${now?.lsn ?? ""} as past from pg_replication_slots where slot_name = ${slot}`;
    return row?.past;
  }, { what: `slot ${slot} to confirm ${now?.lsn}` });
}
