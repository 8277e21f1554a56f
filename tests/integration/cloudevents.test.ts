/** `format=cloudevents` on every upstream, read by the parser of the official SDK. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { CloudEvent, type CloudEventV1, HTTP, MQTT, type MQTTMessage } from "cloudevents";
import { structuredEvent } from "../../src/core/cloudevents.ts";
import { consumeAmqp, consumeMqtt, type Consumer, consumeRedis, consumeRedisStream } from "../support/consumers.ts";
import { scenario, uniqueName } from "../support/scenario.ts";
import { notifyEvent, walEvent } from "../support/upstream_contract.ts";
import { until } from "../support/wait.ts";
import { consumeWebhook, startWebhookReceiver } from "../support/webhook_receiver.ts";

const SOURCE = "/databases/s%C3%BC%C3%9F";

/** Of a message in structured mode. */
function structured(body: string): CloudEventV1<unknown> {
  return one(HTTP.toEvent({ headers: { "content-type": "application/cloudevents+json" }, body }));
}

function one<T>(events: T | T[]): T {
  assert.ok(!Array.isArray(events));
  return events;
}

scenario("every upstream sends CloudEvents that the official parser takes", async (scope) => {
  const { mosquitto, rabbitmq, redis } = await scope.servers;
  const name = uniqueName("ce");
  const receiver = scope.keep(await startWebhookReceiver());
  const exchange = await scope.exchange();
  const { uri, sql } = await scope.database();
  const topics = (target: string) => `wal2json->${target}, events->${target}`;
  const upstreams: Record<string, Record<string, string>> = {
    stdout: { kind: "stdout", bridge_channels: topics("topic:t") },
    redis: { kind: "redis", uri: redis.uri, bridge_channels: topics(`topic:${name}`) },
    stream: { kind: "redis", uri: redis.uri, bridge_channels: topics(`stream:${name}`) },
    mqtt4: { kind: "mqtt", uri: mosquitto.uri, bridge_channels: topics(`topic:${name}.4`) },
    mqtt5: { kind: "mqtt", uri: mosquitto.uri, protocol_version: "5", bridge_channels: topics(`topic:${name}.5`) },
    amqp: { kind: "amqp", uri: rabbitmq.uri, bridge_channels: topics(`exchange:${exchange}`), headers: "true" },
    hook: { kind: "webhook", allow_private_addresses: "true", bridge_channels: topics(`url:${receiver.uri}/one`) },
    hooks: {
      kind: "webhook",
      allow_private_addresses: "true",
      batch: "10",
      bridge_channels: topics(`url:${receiver.uri}/many`),
    },
  };
  const env: Record<string, string> = {
    "PGPROXY_DATABASE-URI": uri,
    "PGPROXY_DATABASE-REPLICATION_SLOT": uniqueName("slot"),
    "PGPROXY_DATABASE-WAL2JSON_PARAMS": `"format-version" '2', "include-transaction" '0', "pretty-print" '1'`,
  };
  for (const [upstream, keys] of Object.entries(upstreams)) {
    for (const [key, value] of Object.entries({ ...keys, format: "cloudevents", cloudevents_source: SOURCE })) {
      env[`PGPROXY_UPSTREAM-${upstream}-${key.toUpperCase()}`] = value;
    }
  }
  const kept = <T extends { close(): unknown }>(consumer: T) => scope.keep(consumer);
  const pubsub = kept(await consumeRedis(redis.uri, name));
  const stream = kept(await consumeRedisStream(redis.uri, name));
  const mqtt4 = kept(await consumeMqtt(mosquitto.uri, [`${name}.4`, `${name}.4.greeting`]));
  const mqtt5 = kept(await consumeMqtt(mosquitto.uri, [`${name}.5`, `${name}.5.greeting`], { protocolVersion: 5 }));
  const amqp = kept(await consumeAmqp(rabbitmq.uri, { exchange }));
  const requests = kept(consumeWebhook(receiver));
  const proxy = await scope.readyProxy({ env });
  await sql`create table orders (n numeric, t text)`;
  await sql`insert into orders values (12345678901234567890.10, ${'ü "quoted" \n'})`;
  await sql.notify("events", "greeting|hello, 🐘");

  const parsed: Record<string, () => CloudEventV1<unknown>[]> = {
    stdout: () => proxy.stdout.split("\n").slice(0, -1).map(structured),
    redis: () => pubsub.received.map(({ text }) => structured(text)),
    stream: () => stream.received.map(({ text }) => structured(text)),
    mqtt4: () => mqtt4.received.map(({ text }) => structured(text)),
    mqtt5: () => mqtt5.received.map(mqttEvent),
    amqp: () => amqp.received.map(amqpEvent),
    hook: () =>
      requests.received.filter(({ path }) => path === "/one").map(({ headers, text }) =>
        one(HTTP.toEvent({ headers, body: text }))
      ),
    hooks: () =>
      requests.received.filter(({ path }) => path === "/many").flatMap(({ headers, text }) => {
        return HTTP.toEvent({ headers, body: text });
      }),
  };
  for (const [upstream, events] of Object.entries(parsed)) {
    await until(() => events().length >= 2, { what: () => `two events of ${upstream}, which are ${events().length}` });
    const seen = events();
    assert.equal(seen.length, 2, upstream);
    const row = seen.find(({ type }) => type === "pg_event_proxy.insert");
    const notification = seen.find(({ type }) => type === "pg_event_proxy.notify");
    assert.ok(row !== undefined && notification !== undefined, upstream);
    // Throws for what breaks the specification.
    for (const event of seen) new CloudEvent({ ...event }, true);
    // In headers of HTTP it is percent-encoded, which the SDK leaves as it is.
    assert.equal(upstream === "hook" ? decodeURIComponent(row.source) : row.source, SOURCE, upstream);
    assert.match(row.id, /^[0-9A-F]+\/[0-9A-F]+-1$/, upstream);
    assert.equal(row.subject, "public.orders.insert", upstream);
    assert.equal(row.channel, "wal2json", upstream);
    assert.equal(row.datacontenttype, "application/json", upstream);
    assert.ok(Math.abs(Date.parse(row.time ?? "") - Date.now()) < 120_000, upstream);
    const data = (typeof row.data === "string" ? JSON.parse(row.data) : row.data) as Record<string, unknown>;
    assert.equal(data.table, "orders", upstream);
    assert.equal(notification.data, "hello, 🐘", upstream);
    assert.equal(notification.subject, "greeting", upstream);
    assert.equal(notification.datacontenttype, "text/plain; charset=utf-8", upstream);
  }
  const ids = Object.values(parsed).map((events) => events().map(({ id }) => id).sort().join());
  assert.equal(new Set(ids).size, 1, "the same events have the same ids everywhere");
  // What the parser reads as a number is in the message with all its digits.
  assert.match(pubsub.received.find(({ text }) => text.includes("insert"))?.text ?? "", /12345678901234567890\.10/);
  await dropStream(redis.uri, stream, name);
});

async function dropStream(uri: string, consumer: Consumer, name: string): Promise<void> {
  await consumer.close();
  const { Redis } = await import("ioredis");
  const client = new Redis(uri);
  await client.del(name);
  client.disconnect();
}

/** MQTT 5 in binary mode: the SDK wants the user properties and the content type as its own MQTT client would give them. */
function mqttEvent(
  { text, properties }: Awaited<ReturnType<typeof consumeMqtt>>["received"][number],
): CloudEventV1<unknown> {
  const userProperties = Object.fromEntries(
    Object.entries(properties?.userProperties ?? {}).map(([name, value]) => [name, String(value)]),
  );
  const contentType = properties?.contentType ?? "";
  const message: MQTTMessage<string> = {
    headers: { ...userProperties, datacontenttype: contentType },
    body: text,
    PUBLISH: { "Content Type": contentType },
    payload: text,
    "User Properties": userProperties,
  };
  return one(MQTT.toEvent(message));
}

/** The SDK has no AMQP: its class checks the attributes. */
function amqpEvent(
  { text, properties }: Awaited<ReturnType<typeof consumeAmqp>>["received"][number],
): CloudEventV1<unknown> {
  const attributes = Object.entries(properties.headers ?? {}).filter(([name]) => name.startsWith("cloudEvents_"));
  const named = Object.fromEntries(attributes.map(([name, value]) => [name.slice("cloudEvents_".length), value]));
  return new CloudEvent({
    ...named as { type: string; source: string },
    datacontenttype: properties.contentType,
    data: text,
  }, true);
}

test("structured: JSON stays byte for byte, text is a string, and other bytes are base64", () => {
  const json = structuredEvent(walEvent('{"a":1.50,\r\n "b":[12345678901234567890]}'), "/s");
  assert.ok(String(json.payload).endsWith(',"data":{"a":1.50,   "b":[12345678901234567890]}}'), String(json.payload));
  assert.equal(String(json.payload).includes("\n"), false);
  const text = structured(String(structuredEvent(notifyEvent('say "hi"\n\u2028'), "/s").payload));
  assert.equal(text.data, 'say "hi"\n\u2028');
  assert.equal(text.subject, undefined);
  const bytes = new Uint8Array([0, 0xff, 0xc3, 0x28]);
  const binary = structured(String(structuredEvent(notifyEvent(bytes), "/s").payload));
  assert.equal(binary.data_base64, Buffer.from(bytes).toString("base64"));
  const begin = structured(String(structuredEvent(walEvent('{"action":"B"}', { routingKey: "begin" }), "/s").payload));
  assert.equal(begin.type, "pg_event_proxy.begin");
});
