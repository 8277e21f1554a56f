/** Several bridges, upstreams, bindings and slots in one process. */

import assert from "node:assert/strict";
import { consumeAmqp, consumeMqtt, consumeRedis } from "../support/consumers.ts";
import {
  bridgeEnv,
  iniText,
  type PrintedEvent,
  printedEvents,
  scenario,
  uniqueName,
  waitForPrinted,
} from "../support/scenario.ts";

/** The ids of the rows that were inserted, in the order of arrival. */
function insertedIds(texts: readonly string[]): number[] {
  return texts.filter((text) => text.includes('"action":"I"')).map((text) => JSON.parse(text).columns[0].value);
}

function textsOf(events: readonly PrintedEvent[]): string[] {
  return events.map(({ text }) => text);
}

const RANGE = Array.from({ length: 200 }, (_, i) => i + 1);

scenario("bridges of several databases run in one process and do not mix", async (scope) => {
  const databases = [await scope.database(), await scope.database(), await scope.database()];
  for (const { sql } of databases) await sql`create table t (id int primary key, of text)`;
  const env = Object.assign(
    {},
    ...databases.map(({ uri, name }, i) =>
      bridgeEnv({
        uri,
        slot: name,
        kind: "stdout",
        bindings: `events->topic:events_${i}, wal2json->topic:wal_${i}`,
      }, `BRIDGE${i}`)
    ),
  );
  const proxy = await scope.readyProxy({ env });
  await Promise.all(databases.map(async ({ sql, name }) => {
    for (const id of RANGE.slice(0, 50)) {
      await sql`insert into t values (${id}, ${name})`;
      await sql`select pg_notify('events', ${`${name} ${id}`})`;
    }
  }));
  for (const [i, { name }] of databases.entries()) {
    const wal = await waitForPrinted(proxy, 150, { target: `wal_${i}` });
    assert.deepEqual(insertedIds(textsOf(wal)), RANGE.slice(0, 50));
    assert.ok(wal.filter(({ text }) => text.includes('"I"')).every(({ text }) => text.includes(`"${name}"`)));
    const events = await waitForPrinted(proxy, 50, { target: `events_${i}` });
    assert.deepEqual(textsOf(events), RANGE.slice(0, 50).map((id) => `${name} ${id}`));
  }
});

scenario("one slot feeds three upstreams, each in order", async (scope) => {
  const { rabbitmq, mosquitto, redis } = await scope.servers;
  const { name, uri, sql } = await scope.database();
  await sql`create table t (id int primary key)`;
  const queue = await scope.queue();
  const topic = uniqueName("topic");
  const consumers = [
    scope.keep(await consumeAmqp(rabbitmq.uri, { queue })),
    scope.keep(await consumeMqtt(mosquitto.uri, topic)),
    scope.keep(await consumeRedis(redis.uri, topic)),
  ];
  const config = iniText({
    database: { uri, replication_slot: name },
    "upstream.one": { kind: "amqp", uri: rabbitmq.uri, bridge_channels: `wal2json->queue:${queue}` },
    "upstream.two": { kind: "mqtt", uri: mosquitto.uri, bridge_channels: `wal2json->topic:${topic}` },
    "upstream.three": { kind: "redis", uri: redis.uri, bridge_channels: `wal2json->topic:${topic}` },
  });
  const proxy = await scope.readyProxy({ args: ["config.ini"], files: { "config.ini": config } });
  const slots = await sql`select slot_name from pg_replication_slots where database = ${name}`;
  assert.equal(slots.length, 1);
  for (const id of RANGE) await sql`insert into t values (${id})`;
  for (const consumer of consumers) {
    await consumer.waitFor(3 * RANGE.length);
    assert.deepEqual(insertedIds(consumer.received.map(({ text }) => text)), RANGE);
  }
  assert.deepEqual(await proxy.stop(), { code: 0, signal: null });
  for (const { received } of consumers) assert.equal(received.length, 3 * RANGE.length);
});

scenario("a channel in several bindings and upstreams goes to each of them", async (scope) => {
  const { rabbitmq, redis } = await scope.servers;
  const { name, uri, sql } = await scope.database();
  await sql`create table t (id int primary key)`;
  const [first, second] = [await scope.queue(), await scope.queue()];
  const topic = uniqueName("topic");
  const queued = [
    scope.keep(await consumeAmqp(rabbitmq.uri, { queue: first })),
    scope.keep(await consumeAmqp(rabbitmq.uri, { queue: second })),
  ];
  const published = scope.keep(await consumeRedis(redis.uri, { pattern: `${topic}*` }));
  const queues = [first, second].flatMap((queue) => [`events->queue:${queue}`, `wal2json->queue:${queue}`]);
  const topics = ["a", "b"].flatMap((end) => [`events->topic:${topic}_${end}`, `wal2json->topic:${topic}_${end}`]);
  const config = iniText({
    database: { uri, replication_slot: name },
    "upstream.queues": { kind: "amqp", uri: rabbitmq.uri, bridge_channels: queues.join(", ") },
    "upstream.topics": { kind: "redis", uri: redis.uri, bridge_channels: topics.join(", ") },
  });
  await scope.readyProxy({ args: ["config.ini"], files: { "config.ini": config } });
  await sql`notify events, 'to all'`;
  await sql`insert into t values (1)`;
  const wanted = ["to all", '{"action":"B"}', '"id"', '{"action":"C"}'].sort();
  const shortened = (texts: readonly string[]) => texts.map((text) => text.includes('"id"') ? '"id"' : text).sort();
  for (const consumer of queued) {
    assert.deepEqual(shortened((await consumer.waitFor(4)).map(({ text }) => text)), wanted);
  }
  const all = await published.waitFor(8);
  for (const end of ["a", "b"]) {
    const ofTopic = all.filter(({ channel }) => channel === `${topic}_${end}`);
    assert.deepEqual(shortened(ofTopic.map(({ text }) => text)), wanted);
  }
});

scenario("an upstream with a slot of its own has its own pace and parameters", async (scope) => {
  const { name, uri, sql } = await scope.database();
  await sql`create table t (id int primary key)`;
  const own = `${name}_own`;
  const config = iniText({
    database: { uri, replication_slot: name, wal2json_params: `"format-version" '2' , "include-types" '0'` },
    "upstream.common": { kind: "stdout", bridge_channels: "wal2json->topic:common" },
    "upstream.own": {
      kind: "stdout",
      bridge_channels: "wal2json->topic:own",
      replication_slot: own,
      wal2json_params: `"format-version" '2' , "include-types" '1' , "include-transaction" '0'`,
    },
  });
  const proxy = await scope.readyProxy({ args: ["config.ini"], files: { "config.ini": config } });
  const slots = await sql`select slot_name from pg_replication_slots where database = ${name} order by 1`;
  assert.deepEqual(slots.map(({ slot_name }) => slot_name), [name, own]);
  await sql`insert into t values (1), (2)`;
  const [one] = textsOf(await waitForPrinted(proxy, 2, { target: "own" }));
  assert.equal(
    one,
    '{"action":"I","schema":"public","table":"t","columns":[{"name":"id","type":"integer","value":1}]}',
  );
  const common = textsOf(await waitForPrinted(proxy, 4, { target: "common" }));
  assert.deepEqual(common, [
    '{"action":"B"}',
    '{"action":"I","schema":"public","table":"t","columns":[{"name":"id","value":1}]}',
    '{"action":"I","schema":"public","table":"t","columns":[{"name":"id","value":2}]}',
    '{"action":"C"}',
  ]);
  await proxy.stop();
  assert.equal(printedEvents(proxy, "own").length, 2);
});

scenario("without transaction records the position is confirmed all the same", async (scope) => {
  const { name, uri, sql } = await scope.database();
  await sql`create table t (id int primary key)`;
  const env = bridgeEnv({
    uri,
    slot: name,
    params: `"format-version" '2' , "include-transaction" 'off'`,
    kind: "stdout",
    bindings: "wal2json->topic:wal",
  });
  const first = await scope.readyProxy({ env });
  await sql`insert into t values (1)`;
  await sql`insert into t values (2)`;
  await waitForPrinted(first, 2);
  assert.deepEqual(await first.stop(), { code: 0, signal: null });
  const second = await scope.readyProxy({ env });
  await sql`insert into t values (3)`;
  await waitForPrinted(second, 1);
  assert.deepEqual(await second.stop(), { code: 0, signal: null });
  assert.deepEqual(insertedIds(textsOf(printedEvents(first))), [1, 2]);
  assert.deepEqual(insertedIds(textsOf(printedEvents(second))), [3]);
  assert.equal(printedEvents(second).length, 1);
});

scenario(
  "a logical message goes to the channel that its prefix names, in commit order with the rows",
  async (scope) => {
    const { rabbitmq } = await scope.servers;
    const { name, uri, sql } = await scope.database();
    await sql`create table t (id int primary key)`;
    const exchange = await scope.exchange();
    const consumer = scope.keep(await consumeAmqp(rabbitmq.uri, { exchange }));
    await scope.readyProxy({
      env: bridgeEnv({
        uri,
        slot: name,
        kind: "amqp",
        upstreamUri: rabbitmq.uri,
        bindings: `events->exchange:${exchange}, wal2json->exchange:${exchange}`,
      }),
    });
    await sql`select pg_logical_emit_message(true, 'events', 'k|m')`;
    await sql.begin(async (sql) => {
      await sql`insert into t values (1)`;
      await sql`select pg_logical_emit_message(true, 'events', '{"json":"a|b"}')`;
      await sql`insert into t values (2)`;
      await sql`select pg_logical_emit_message(true, 'unbound', 'k|a WAL event')`;
    });
    await sql`select pg_logical_emit_message(true, 'events', ${`big|"quoted" \\ 🐘 ${"x".repeat(100_000)}`})`;
    await sql`select pg_logical_emit_message(false, 'events', 'now|outside of any transaction')`;
    await sql`select pg_logical_emit_message(true, 'events', 'no key')`;
    const received = await consumer.waitFor((all) => all.some(({ text }) => text === "no key"));
    const seen = received.map(({ routingKey, text }) => `${routingKey}: ${text.slice(0, 90)}`)
      .filter((line) => !/^(begin|commit): /.test(line));
    assert.deepEqual(seen, [
      "k: m",
      'public.t.insert: {"action":"I","schema":"public","table":"t","columns":[{"name":"id","value":1}]}',
      ': {"json":"a|b"}',
      'public.t.insert: {"action":"I","schema":"public","table":"t","columns":[{"name":"id","value":2}]}',
      'message: {"action":"M","transactional":true,"prefix":"unbound","content":"k|a WAL event"}',
      `big: "quoted" \\ 🐘 ${"x".repeat(90 - 14)}`,
      "now: outside of any transaction",
      ": no key",
    ]);
    const messages = received.filter(({ properties }) => properties.type === "notify");
    assert.deepEqual(
      messages.map(({ properties }) => properties.contentType),
      ["text/plain; charset=utf-8", "application/json", ...Array(3).fill("text/plain; charset=utf-8")],
    );
    for (const { properties } of messages) assert.match(String(properties.messageId), /^[0-9A-F]+\/[0-9A-F]+-(\d+|m)$/);
    const ids = received.map(({ properties }) => properties.messageId);
    assert.equal(new Set(ids).size, ids.length);
  },
);

scenario("channel names and targets with unusual characters", async (scope) => {
  const { redis } = await scope.servers;
  const { uri, sql } = await scope.database();
  const topic = uniqueName("topic");
  const consumer = scope.keep(await consumeRedis(redis.uri, { pattern: `${topic}*` }));
  const channels = ["Events", "my channel", 'quo"ted', "it's", "a.b:c", "ünïcödé🐘", "x".repeat(63)];
  await scope.readyProxy({
    env: bridgeEnv({
      uri,
      kind: "redis",
      upstreamUri: redis.uri,
      bindings: channels.map((channel, i) => `${channel}->topic:${topic}:${i}:with:colons and blanks`).join(", "),
    }),
  });
  for (const channel of channels) await sql`select pg_notify(${channel}, ${`to ${channel}`})`;
  await sql`select pg_notify('events', 'the channel is called Events')`;
  const received = await consumer.waitFor(channels.length);
  assert.deepEqual(received.map(({ text }) => text), channels.map((channel) => `to ${channel}`));
  assert.deepEqual(received.map(({ channel }) => channel.split(":")[1]), channels.map((_, i) => String(i)));
});
