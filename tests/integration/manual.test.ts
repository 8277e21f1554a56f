/** Every example of the manual, word for word: only hosts, ports and credentials are those of the test's servers. */

import assert from "node:assert/strict";
import { type AmqpMessage, consumeAmqp, consumeMqtt, consumeRedis } from "../support/consumers.ts";
import { mosquittoWithPassword } from "../support/mosquitto_password.ts";
import type { ProxyOptions } from "../support/proxy.ts";
import { iniText, scenario, type Scope, type TestDatabase, uniqueName } from "../support/scenario.ts";
import { until } from "../support/wait.ts";

const EVENT_SOURCE = String.raw`
PGPROXY_LOCAL-POSTGRESQL_URI=postgresql://username:password@domain.tld:port/database
PGPROXY_LOCAL-REPLICATION_SLOT=my_replication_slot
PGPROXY_LOCAL-WAL2JSON_PARAMS=\"format-version\" '2' , \"include-types\" '1'
`;

const UPSTREAMS = {
  amqp: `
PGPROXY_LOCAL-UPSTREAM=amqp
PGPROXY_LOCAL-UPSTREAM_CONFIG-URI=amqp://user:pass@rabbitmq//
PGPROXY_LOCAL-UPSTREAM_CONFIG-BRIDGE_CHANNELS=events->exchange:amq.topic, wal2json->exchange:amq.topic
PGPROXY_LOCAL-UPSTREAM_CONFIG-DELIVERY_MODE=1 # message delivery mode, 1 = non-persistent, 2 = persistent
`,
  redis: `
PGPROXY_LOCAL-UPSTREAM=redis
PGPROXY_LOCAL-UPSTREAM_CONFIG-URI=redis://redis:6379
PGPROXY_LOCAL-UPSTREAM_CONFIG-BRIDGE_CHANNELS=events->topic:events, wal2json->topic:wal
`,
  mqtt: `
PGPROXY_LOCAL-UPSTREAM=mqtt
PGPROXY_LOCAL-UPSTREAM_CONFIG-URI=tcp://mosquitto:1883
PGPROXY_LOCAL-UPSTREAM_CONFIG-BRIDGE_CHANNELS=events->topic:events, wal2json->topic:wal
PGPROXY_LOCAL-UPSTREAM_CONFIG-USERNAME=username
PGPROXY_LOCAL-UPSTREAM_CONFIG-PASSWORD=password
`,
} as const;
type Kind = keyof typeof UPSTREAMS;

/** The variables of an example; each of `replaced` must occur. */
function variables(text: string, replaced: Readonly<Record<string, string>>): Record<string, string> {
  for (const [placeholder, value] of Object.entries(replaced)) {
    assert.ok(text.includes(placeholder), placeholder);
    text = text.replace(placeholder, () => value);
  }
  const entries = text.trim().split("\n").filter((line) => line !== "").map((line) => {
    const equals = line.indexOf("=");
    return [line.slice(0, equals), line.slice(equals + 1)] as const;
  });
  return Object.fromEntries(entries);
}

type Form = "variables with hyphens" | "variables with __" | "ini, a section per bridge" | "ini, named upstreams";
const FORMS: readonly Form[] = [
  "variables with hyphens",
  "variables with __",
  "ini, a section per bridge",
  "ini, named upstreams",
];

/** The same example in each of the forms that the configuration has. */
function inForm(form: Form, env: Readonly<Record<string, string>>): ProxyOptions {
  const settings = Object.entries(env).map(([name, value]) => {
    const [, section = "", key = ""] = /^PGPROXY_LOCAL-((?:UPSTREAM_CONFIG-)?)(.+)$/.exec(name) ?? [];
    return { inConfig: section !== "", key: key.toLowerCase(), value };
  });
  const pick = (wanted: (setting: (typeof settings)[number]) => boolean) =>
    Object.fromEntries(settings.filter(wanted).map(({ key, value }) => [key, value]));
  switch (form) {
    case "variables with hyphens":
      return { env };
    case "variables with __":
      return {
        env: Object.fromEntries(Object.entries(env).map(([name, value]) => [name.replaceAll("-", "__"), value])),
      };
    case "ini, a section per bridge":
      return withIni({
        local: pick(({ inConfig }) => !inConfig),
        "local.upstream_config": pick(({ inConfig }) => inConfig),
      });
    case "ini, named upstreams": {
      const { postgresql_uri, upstream, ...database } = pick(({ inConfig }) => !inConfig);
      return withIni({
        database: { uri: postgresql_uri ?? "", ...database },
        "upstream.mine": { kind: upstream ?? "", ...pick(({ inConfig }) => inConfig) },
      });
    }
  }
}

function withIni(sections: Readonly<Record<string, Readonly<Record<string, string>>>>): ProxyOptions {
  return { args: ["config.ini"], files: { "config.ini": iniText(sections) } };
}

interface Setup {
  readonly database: TestDatabase;
  readonly table: string;
  readonly env: Record<string, string>;
  readonly slot: string;
}

/** A database, a role with no more than REPLICATION, and the variables of the example for them. */
async function setUp(scope: Scope, kind: Kind, upstreamUri: Readonly<Record<string, string>>): Promise<Setup> {
  const database = await scope.database();
  const table = uniqueName("signups");
  await database.sql.unsafe(`create table ${table} (id int primary key, name text)`);
  const role = await scope.role(database);
  const slot = uniqueName("my_replication_slot");
  const env = variables(EVENT_SOURCE + UPSTREAMS[kind], {
    "postgresql://username:password@domain.tld:port/database": role.uri,
    my_replication_slot: slot,
    ...upstreamUri,
  });
  return { database, table, env, slot };
}

/** Sends a notification and inserts a row. */
async function send({ database: { sql }, table }: Setup): Promise<void> {
  await sql`select pg_notify('events', ${`signup|of ${table}`})`;
  await sql.unsafe(`insert into ${table} values (1, 'Ann')`);
}

/** The slot and the parameters, as the database sees them. */
async function checkDatabase({ database, slot }: Setup): Promise<void> {
  const [row] = await database.sql`
    select plugin, database, active, temporary from pg_replication_slots where slot_name = ${slot}`;
  assert.deepEqual({ ...row }, { plugin: "wal2json", database: database.name, active: true, temporary: false });
  const [walsender] = await database.sql<{ query: string }[]>`
    select query from pg_stat_activity where backend_type = 'walsender' and datname = ${database.name}`;
  assert.match(walsender?.query ?? "", /^START_REPLICATION SLOT "my_replication_slot_\w+" LOGICAL 0\/0 \(/);
  assert.match(walsender?.query ?? "", /"format-version" '2', "include-types" '1'/);
  const names = await database.sql<{ application_name: string }[]>`
    select distinct application_name from pg_stat_activity
    where datname = ${database.name} and pid <> pg_backend_pid() and usename <> current_user`;
  assert.deepEqual(names.map((name) => name.application_name), ["pg-event-proxy"]);
}

function checkRow(text: string, table: string): void {
  const record = JSON.parse(text) as Record<string, unknown>;
  assert.deepEqual(record, {
    action: "I",
    schema: "public",
    table,
    columns: [{ name: "id", type: "integer", value: 1 }, { name: "name", type: "text", value: "Ann" }],
  });
}

for (const form of FORMS) {
  scenario(`RabbitMQ as the manual configures it: ${form}`, async (scope) => {
    const { rabbitmq } = await scope.servers;
    const setup = await setUp(scope, "amqp", { "amqp://user:pass@rabbitmq//": `${rabbitmq.uri}//` });
    const consumer = scope.keep(await consumeAmqp(rabbitmq.uri, { exchange: "amq.topic" }));
    await scope.readyProxy(inForm(form, setup.env));
    await checkDatabase(setup);
    const before = Math.floor(Date.now() / 1000);
    await send(setup);
    const ours = ({ text }: AmqpMessage) => text.includes(setup.table);
    const received = await consumer.waitFor((all) => all.filter(ours).length >= 2);
    const notification = received.find(({ text }) => text === `of ${setup.table}`);
    assert.equal(notification?.routingKey, "signup");
    assert.equal(notification?.exchange, "amq.topic");
    const insert = received.find(({ routingKey }) => routingKey === `public.${setup.table}.insert`);
    checkRow(insert?.text ?? "", setup.table);
    const properties = [notification, insert].map((message) => message?.properties);
    const common = { deliveryMode: 1, appId: "pg-event-proxy" };
    const wanted = [
      { ...common, type: "notify", contentType: "text/plain; charset=utf-8" },
      { ...common, type: "wal", contentType: "application/json" },
    ];
    for (const [i, one] of properties.entries()) {
      const { deliveryMode, appId, type, contentType } = one ?? {};
      assert.deepEqual({ deliveryMode, appId, type, contentType }, wanted[i]);
      assert.ok(one?.timestamp >= before && one?.timestamp <= Date.now() / 1000, `timestamp ${one?.timestamp}`);
    }
    assert.match(properties[0]?.messageId, /^n-.+-\d+$/);
    assert.match(properties[1]?.messageId, /^[0-9A-F]+\/[0-9A-F]+-1$/);
    const transaction = properties[1]?.messageId.replace(/1$/, "");
    const records = await consumer.waitFor((all) =>
      all.some(({ properties }) => properties.messageId === `${transaction}2`)
    );
    const keyOf = (ordinal: number) =>
      records.find(({ properties }) => properties.messageId === `${transaction}${ordinal}`)?.routingKey;
    assert.deepEqual([keyOf(0), keyOf(2)], ["begin", "commit"]);
  });

  scenario(`Redis as the manual configures it: ${form}`, async (scope) => {
    const { redis } = await scope.servers;
    const setup = await setUp(scope, "redis", { "redis://redis:6379": redis.uri });
    const consumer = scope.keep(await consumeRedis(redis.uri, ["events", "wal"]));
    await scope.readyProxy(inForm(form, setup.env));
    await checkDatabase(setup);
    await send(setup);
    const received = await consumer.waitFor((all) => all.filter(({ text }) => text.includes(setup.table)).length >= 2);
    const ours = received.filter(({ text }) => text.includes(setup.table));
    assert.equal(ours.find(({ channel }) => channel === "events")?.text, `of ${setup.table}`);
    checkRow(ours.find(({ channel }) => channel === "wal")?.text ?? "", setup.table);
  });

  scenario(`MQTT as the manual configures it: ${form}`, async (scope) => {
    const { uri: mosquitto } = await mosquittoWithPassword(scope, "username", "password");
    const setup = await setUp(scope, "mqtt", { "tcp://mosquitto:1883": mosquitto.replace("mqtt://", "tcp://") });
    const consumer = scope.keep(await consumeMqtt(mosquitto, "#", { username: "username", password: "password" }));
    await scope.readyProxy(inForm(form, setup.env));
    await checkDatabase(setup);
    await send(setup);
    const received = await consumer.waitFor(4);
    assert.equal(received.find(({ topic }) => topic === "events.signup")?.text, `of ${setup.table}`);
    const wal = received.filter(({ topic }) => topic === "wal").map(({ text }) => text);
    assert.equal(wal.length, 3);
    checkRow(wal[1] ?? "", setup.table);
    assert.ok(received.every(({ qos }) => qos === 1));
  });
}

scenario("NOTIFY pgchannel, 'signup|A new user signup' goes by its key to RabbitMQ and to MQTT", async (scope) => {
  const { rabbitmq, mosquitto } = await scope.servers;
  const database = await scope.database();
  await scope.exchange("events");
  const queue = await scope.queue();
  const exchanged = scope.keep(await consumeAmqp(rabbitmq.uri, { exchange: "events" }));
  const queued = scope.keep(await consumeAmqp(rabbitmq.uri, { queue }));
  const topics = scope.keep(await consumeMqtt(mosquitto.uri, ["events", "events.signup", "events.k"]));
  await scope.readyProxy(withIni({
    database: { uri: database.uri },
    "upstream.rabbitmq": {
      kind: "amqp",
      uri: rabbitmq.uri,
      bridge_channels: `pgchannel->exchange:events, pgchannel->queue:${queue}`,
    },
    "upstream.mosquitto": { kind: "mqtt", uri: mosquitto.uri, bridge_channels: "pgchannel->topic:events" },
  }));
  const sent = [
    { payload: "signup|A new user signup", key: "signup", message: "A new user signup", json: false },
    { payload: "My message", key: "", message: "My message", json: false },
    { payload: '{"choice":"a|b"}', key: "", message: '{"choice":"a|b"}', json: true },
    { payload: '["a|b"]', key: "", message: '["a|b"]', json: true },
    { payload: '"a|b"', key: "", message: '"a|b"', json: true },
    { payload: 'k|{"choice":"a|b"}', key: "k", message: '{"choice":"a|b"}', json: true },
    { payload: "k|a|b", key: "k", message: "a|b", json: false },
    { payload: "|b", key: "", message: "b", json: false },
    { payload: "k|", key: "k", message: "", json: false },
    { payload: "k|Zürich 🐘", key: "k", message: "Zürich 🐘", json: false },
    { payload: `k|${"x".repeat(7_997)}`, key: "k", message: "x".repeat(7_997), json: false },
  ];
  await database.sql.unsafe("NOTIFY pgchannel, 'signup|A new user signup'");
  for (const { payload } of sent.slice(1)) await database.sql`select pg_notify('pgchannel', ${payload})`;
  const messages = sent.map(({ message }) => message);
  const received = await exchanged.waitFor(sent.length);
  assert.deepEqual(received.map(({ routingKey }) => routingKey), sent.map(({ key }) => key));
  assert.deepEqual(received.map(({ text }) => text), messages);
  assert.deepEqual(
    received.map(({ properties }) => properties.contentType),
    sent.map(({ json }) => json ? "application/json" : "text/plain; charset=utf-8"),
  );
  assert.equal(new Set(received.map(({ properties }) => properties.messageId)).size, sent.length);
  const inQueue = await queued.waitFor(sent.length);
  assert.deepEqual(inQueue.map(({ text }) => text), messages);
  assert.ok(inQueue.every(({ exchange, routingKey }) => exchange === "" && routingKey === queue));
  const inTopics = await topics.waitFor(sent.length);
  assert.deepEqual(inTopics.map(({ topic }) => topic), sent.map(({ key }) => key === "" ? "events" : `events.${key}`));
  assert.deepEqual(inTopics.map(({ text }) => text), messages);
});

for (const [mode, wanted] of [["1", 1], ["2", 2], [undefined, 2]] as const) {
  scenario(`DELIVERY_MODE ${mode ?? "by default"} is seen on the message`, async (scope) => {
    const { rabbitmq } = await scope.servers;
    const database = await scope.database();
    const queue = await scope.queue();
    const consumer = scope.keep(await consumeAmqp(rabbitmq.uri, { queue }));
    await scope.readyProxy({
      env: {
        "PGPROXY_LOCAL-POSTGRESQL_URI": database.uri,
        "PGPROXY_LOCAL-UPSTREAM": "amqp",
        "PGPROXY_LOCAL-UPSTREAM_CONFIG-URI": rabbitmq.uri,
        "PGPROXY_LOCAL-UPSTREAM_CONFIG-BRIDGE_CHANNELS": `events->queue:${queue}, wal2json->queue:${queue}`,
        "PGPROXY_LOCAL-REPLICATION_SLOT": database.name,
        ...mode === undefined ? {} : { "PGPROXY_LOCAL-UPSTREAM_CONFIG-DELIVERY_MODE": mode },
      },
    });
    await database.sql`notify events, 'one'`;
    await database.sql`create table t ()`;
    const received = await consumer.waitFor(3);
    assert.deepEqual(received.map(({ properties }) => properties.deliveryMode), [wanted, wanted, wanted]);
  });
}

scenario("without a slot name and parameters the manual's defaults hold", async (scope) => {
  const { redis } = await scope.servers;
  const database = await scope.database();
  await database.sql`create table t (id int primary key)`;
  const topic = uniqueName("topic");
  const consumer = scope.keep(await consumeRedis(redis.uri, topic));
  await scope.readyProxy({
    env: {
      "PGPROXY_LOCAL-POSTGRESQL_URI": database.uri,
      "PGPROXY_LOCAL-UPSTREAM": "redis",
      "PGPROXY_LOCAL-UPSTREAM_CONFIG-URI": redis.uri,
      "PGPROXY_LOCAL-UPSTREAM_CONFIG-BRIDGE_CHANNELS": `wal2json->topic:${topic}`,
    },
  });
  const [slot] = await database.sql`select slot_name from pg_replication_slots where database = ${database.name}`;
  assert.equal(slot?.slot_name, "pg_event_proxy");
  await database.sql`insert into t values (1)`;
  const received = await consumer.waitFor(3);
  const [, row] = received.map(({ text }) => text);
  assert.equal(row, '{"action":"I","schema":"public","table":"t","columns":[{"name":"id","value":1}]}');
});

scenario("NOTIFY wal2json is no row change, and the WAL binding takes none", async (scope) => {
  const { redis } = await scope.servers;
  const database = await scope.database();
  const topic = uniqueName("topic");
  const consumer = scope.keep(await consumeRedis(redis.uri, { pattern: `${topic}*` }));
  await scope.readyProxy({
    env: {
      "PGPROXY_LOCAL-POSTGRESQL_URI": database.uri,
      "PGPROXY_LOCAL-REPLICATION_SLOT": database.name,
      "PGPROXY_LOCAL-UPSTREAM": "redis",
      "PGPROXY_LOCAL-UPSTREAM_CONFIG-URI": redis.uri,
      "PGPROXY_LOCAL-UPSTREAM_CONFIG-BRIDGE_CHANNELS": `events->topic:${topic}_events, wal2json->topic:${topic}_wal`,
    },
  });
  await database.sql`notify wal2json, 'not this'`;
  await database.sql`notify events, 'this'`;
  await database.sql`create table t ()`;
  const received = await consumer.waitFor((all) => {
    return all.some(({ text }) => text === '{"action":"C"}') && all.some(({ text }) => text === "this");
  });
  assert.equal(received.filter(({ text }) => text.includes("not this")).length, 0);
  const listening = await database.sql<{ query: string }[]>`
    select query from pg_stat_activity where datname = ${database.name} and query ilike 'listen%'`;
  assert.ok(listening.every(({ query }) => !query.includes("wal2json")));
});

scenario("the helpers of the manual find the program by its application name", async (scope) => {
  const database = await scope.database();
  const proxy = await scope.readyProxy({
    env: {
      "PGPROXY_LOCAL-POSTGRESQL_URI": database.uri,
      "PGPROXY_LOCAL-UPSTREAM": "stdout",
      "PGPROXY_LOCAL-UPSTREAM_CONFIG-BRIDGE_CHANNELS": "events->topic:events",
    },
  });
  const sessions = () =>
    database.sql`select 1 from pg_stat_activity
      where application_name = 'pg-event-proxy' and datname = ${database.name} and backend_type = 'client backend'`;
  assert.equal((await sessions()).length, 1);
  assert.deepEqual(await proxy.stop(), { code: 0, signal: null });
  await until(async () => (await sessions()).length === 0, { what: "the session to be gone" });
});
