import assert from "node:assert/strict";
import { before, test } from "node:test";
import { Redis } from "ioredis";
import mqtt from "mqtt";
import { consumeAmqp, consumeMqtt, consumeRedis, withAmqpChannel } from "./consumers.ts";
import { type SharedServers, sharedServers, startRabbitmq } from "./servers.ts";

const BYTES = Buffer.from([0, 255, 10, 0xf0, 0x9f, 0x90, 0x98]);

let servers: SharedServers;
before(async () => {
  servers = await sharedServers();
});

test("the AMQP consumer records key, bytes and properties, from an exchange and from a queue", async () => {
  const { uri } = servers.rabbitmq;
  const fromExchange = await consumeAmqp(uri, { exchange: "amq.topic", pattern: "consumers.*" });
  const fromQueue = await consumeAmqp(uri, { queue: "consumers-test", declare: true });
  await withAmqpChannel(uri, async (channel) => {
    channel.publish("amq.topic", "other.key", Buffer.from("not for us"));
    channel.publish("amq.topic", "consumers.key", BYTES, { messageId: "1", deliveryMode: 2 });
    channel.sendToQueue("consumers-test", Buffer.from("text"));
    await fromExchange.waitFor(1);
    await fromQueue.waitFor((received) => received.some(({ text }) => text === "text"));
  });
  assert.equal(fromExchange.received.length, 1);
  const [message] = fromExchange.received;
  assert.deepEqual(message?.payload, BYTES);
  assert.equal(message?.routingKey, "consumers.key");
  assert.equal(message?.properties.messageId, "1");
  assert.equal(message?.properties.deliveryMode, 2);
  await fromExchange.close();
  await fromQueue.close();
  await assert.rejects(withAmqpChannel(uri, (channel) => channel.checkQueue("consumers-test")), /NOT_FOUND/);
});

test("the AMQP consumer comes back after the broker was killed", { timeout: 180_000 }, async () => {
  const server = await startRabbitmq();
  try {
    const consumer = await consumeAmqp(server.uri, { queue: "survivor", declare: true });
    await server.kill();
    await server.start();
    await withAmqpChannel(server.uri, async (channel) => {
      channel.sendToQueue("survivor", Buffer.from("after"));
      await consumer.waitFor(1);
    });
    await consumer.close();
  } finally {
    await server.stop();
  }
});

test("the MQTT consumer records topic, bytes and quality of service", async () => {
  const { uri } = servers.mosquitto;
  const consumer = await consumeMqtt(uri, "consumers/+");
  const client = await mqtt.connectAsync(uri);
  await client.publishAsync("consumers/a", BYTES, { qos: 1 });
  const [message] = await consumer.waitFor(1);
  assert.deepEqual(message?.payload, BYTES);
  assert.equal(message?.topic, "consumers/a");
  assert.equal(message?.qos, 1);
  await client.endAsync();
  await consumer.close();
});

test("the Redis consumer records channel and bytes, by name and by pattern", async () => {
  const { uri } = servers.redis;
  const byName = await consumeRedis(uri, ["consumers:a", "consumers:b"]);
  const byPattern = await consumeRedis(uri, { pattern: "consumers:*" });
  const client = new Redis(uri);
  await client.publish("consumers:a", BYTES);
  await client.publish("consumers:b", "two");
  await byName.waitFor(2);
  await byPattern.waitFor(2);
  for (const { received } of [byName, byPattern]) {
    assert.deepEqual(received.map(({ channel }) => channel), ["consumers:a", "consumers:b"]);
    assert.deepEqual(received[0]?.payload, BYTES);
  }
  await assert.rejects(byName.waitFor(3, 50), /waited 0.05 s for 3 messages, received 2, the last:\n {2}consumers:a/);
  await client.quit();
  await byName.close();
  await byPattern.close();
});
