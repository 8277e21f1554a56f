/** Targets filled in from the event, and headers of notifications: the program on real servers. */

import assert from "node:assert/strict";
import { consumeAmqp, consumeMqtt, withAmqpChannel } from "../support/consumers.ts";
import { runProxy } from "../support/proxy.ts";
import { bridgeEnv, scenario, uniqueName } from "../support/scenario.ts";
import { TcpRelay } from "../support/tcp_relay.ts";
import { until } from "../support/wait.ts";
import { consumeWebhook, startWebhookReceiver } from "../support/webhook_receiver.ts";

const PARAMS = `"format-version" '2', "include-transaction" '0'`;

scenario("each table has a topic of its own, over MQTT and HTTP", async (scope) => {
  const { mosquitto } = await scope.servers;
  const root = uniqueName("wal");
  const receiver = scope.keep(await startWebhookReceiver());
  const consumer = scope.keep(await consumeMqtt(mosquitto.uri, `${root}/#`));
  const requests = scope.keep(consumeWebhook(receiver));
  const { uri, sql } = await scope.database();
  const env = {
    "PGPROXY_DATABASE-URI": uri,
    "PGPROXY_DATABASE-REPLICATION_SLOT": uniqueName("slot"),
    "PGPROXY_DATABASE-WAL2JSON_PARAMS": PARAMS,
    "PGPROXY_UPSTREAM-M-KIND": "mqtt",
    "PGPROXY_UPSTREAM-M-URI": mosquitto.uri,
    "PGPROXY_UPSTREAM-M-BRIDGE_CHANNELS":
      `wal2json->topic:${root}/{schema}/{table}/{action}, events->topic:${root}/{channel}/{key}`,
    "PGPROXY_UPSTREAM-W-KIND": "webhook",
    "PGPROXY_UPSTREAM-W-ALLOW_PRIVATE_ADDRESSES": "true",
    "PGPROXY_UPSTREAM-W-BRIDGE_CHANNELS": `wal2json->url:${receiver.uri}/{schema}/{table}?do={action}`,
  };
  await scope.readyProxy({ env });
  await sql.unsafe(`create schema "a.b"; create table "a.b"."c/+#ü" (n int primary key); create table plain (n int)`);
  await sql.unsafe(`insert into "a.b"."c/+#ü" values (1); insert into plain values (1); delete from "a.b"."c/+#ü"`);
  await sql.notify("events", "sign.up|hello");
  await sql.notify("events", "no key");
  await consumer.waitFor(5);
  await requests.waitFor(3);
  const topics = consumer.received.map(({ topic }) => topic.slice(root.length));
  const wanted = ["/a.b/c/__ü/insert", "/public/plain/insert", "/a.b/c/__ü/delete"];
  assert.deepEqual(topics.filter((topic) => !topic.startsWith("/events")), wanted);
  assert.deepEqual(topics.filter((topic) => topic.startsWith("/events")), ["/events/sign.up", "/events/_"]);
  assert.deepEqual(requests.received.map(({ path }) => path), [
    "/a.b/c%2F%2B%23%C3%BC?do=insert",
    "/public/plain?do=insert",
    "/a.b/c%2F%2B%23%C3%BC?do=delete",
  ]);
});

scenario(
  "amqp: a queue and an exchange for each table are made by declare=true, and refused without",
  async (scope) => {
    const { rabbitmq } = await scope.servers;
    const name = uniqueName("per");
    const names = [`${name}.one`, `${name}.two`];
    scope.defer(() =>
      withAmqpChannel(rabbitmq.uri, async (channel) => {
        for (const each of names) await channel.deleteExchange(each);
        for (const each of names) await channel.deleteQueue(each);
      })
    );
    const { uri, sql } = await scope.database();
    const bridge = {
      uri,
      slot: uniqueName("slot"),
      params: PARAMS,
      kind: "amqp",
      upstreamUri: rabbitmq.uri,
      bindings: `wal2json->queue:${name}.{table}, wal2json->exchange:${name}.{table}`,
    };
    const proxy = await scope.readyProxy({ env: bridgeEnv({ ...bridge, more: { declare: "true" } }) });
    await sql`create table one (n int)`;
    await sql`create table two (n int)`;
    await sql`create table three (n int)`;
    for (let n = 0; n < 3; n++) await sql`with a as (insert into one values (${n})) insert into two values (${n})`;
    const queues = await Promise.all(names.map(async (queue) => {
      await until(() => withAmqpChannel(rabbitmq.uri, (channel) => channel.checkQueue(queue)), {
        what: `queue ${queue}`,
      });
      return await consumeAmqp(rabbitmq.uri, { queue });
    }));
    for (const queue of queues) {
      scope.keep(queue);
      const values = (await queue.waitFor(3)).map(({ text }) => JSON.parse(text).columns[0].value);
      assert.deepEqual([...new Set(values)], [0, 1, 2]);
    }
    await proxy.stop();
    const dropping = await scope.readyProxy({ env: bridgeEnv({ ...bridge, more: { on_reject: "drop" } }) });
    await sql`insert into three values (1)`;
    await sql`insert into one values (9)`;
    await queues[0]!.waitFor((received) => received.some(({ text }) => text.includes('"value":9')));
    const dropped = dropping.log.filter(({ text }) => /on_reject=drop/.test(text)).map(({ text }) => text);
    assert.equal(dropped.length, 2, dropped.join("\n"));
    assert.ok(dropped.every((text) => /\.three.*create it, or set declare=true/.test(text)), dropped.join("\n"));
  },
);

scenario("amqp: headers=true takes headers from notifications, also after a reconnect", async (scope) => {
  const { rabbitmq } = await scope.servers;
  const exchange = await scope.exchange();
  const consumer = scope.keep(await consumeAmqp(rabbitmq.uri, { exchange }));
  const relay = scope.keep(await TcpRelay.start({ targetPort: rabbitmq.port }));
  const { uri, sql } = await scope.database();
  const bindings = `events->exchange:${exchange}`;
  const bridge = { uri, kind: "amqp", upstreamUri: relay.uriOf(rabbitmq.uri), bindings, more: { headers: "true" } };
  const proxy = await scope.readyProxy({ env: bridgeEnv(bridge) });
  const sent = [
    'signup|Content-Language: de; X-Tenant: acme, inc|{"ü":1}',
    "plain|no headers here",
    "bars|one|two: three|four",
    "empty||text",
    '{"a":"b|X: y|z"}',
    "|X-Only: header|no key",
  ];
  const check = (from: number) => {
    const got = consumer.received.slice(from).map(({ key, text, properties }) => {
      return [key, properties.headers, text, properties.contentType];
    });
    assert.deepEqual(got, [
      ["signup", { "Content-Language": "de", "X-Tenant": "acme, inc" }, '{"ü":1}', "application/json"],
      ["plain", {}, "no headers here", "text/plain; charset=utf-8"],
      ["bars", {}, "one|two: three|four", "text/plain; charset=utf-8"],
      ["empty", {}, "text", "text/plain; charset=utf-8"],
      ["", {}, '{"a":"b|X: y|z"}', "application/json"],
      ["", { "X-Only": "header" }, "no key", "text/plain; charset=utf-8"],
    ]);
  };
  for (const payload of sent) await sql.notify("events", payload);
  await consumer.waitFor(6);
  check(0);
  relay.refuse();
  await proxy.waitForLog(/is not available/);
  for (const payload of sent) await sql.notify("events", payload);
  relay.heal();
  await consumer.waitFor(12);
  check(6);
});

scenario("a target that no event could have is told at the start", async () => {
  const cases: [string, Record<string, string>, RegExp][] = [
    ["webhook", { bindings: "a->url:https://{key}.example.com/" }, /placeholder before its path; write a fixed host/],
    ["webhook", { bindings: "a->url:ftp://example.com/" }, /no URL of HTTP; wanted https:\/\/host\/path/],
    ["webhook", { bindings: "a->url:https://u:hunter2@example.com/" }, /set token or extra_headers instead/],
    [
      "webhook",
      { bindings: "a->url:https://example.com/", secret: "whsec_c2hvcnQ=" },
      /has 5 bytes; .* asks for 24 to 64/,
    ],
    ["webhook", { bindings: "a->url:https://example.com/", secret: "n0t-base64!" }, /is no whsec_ followed by base64/],
    ["webhook", { bindings: "a->url:https://example.com/", extra_headers: "no colon" }, /wanted Name: value; Other/],
    ["stdout", { bindings: "a->topic:x", cloudevents_source: "a shop" }, /is no URI reference; wanted one like/],
    ["stdout", { bindings: "a->topic:{table}" }, /only events of the channel wal2json have a \{table\}/],
  ];
  for (const [kind, { bindings = "", ...more }, expected] of cases) {
    const { code, stderr } = await runProxy({
      env: bridgeEnv({ uri: "postgresql://127.0.0.1:1/none", kind, bindings, more }),
    });
    assert.equal(code, 2, stderr);
    assert.match(stderr, expected);
    assert.doesNotMatch(stderr, /c2hvcnQ|n0t-base64/);
  }
});
