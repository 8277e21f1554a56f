import assert from "node:assert/strict";
import type { Writable } from "node:stream";
import { after, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { connect } from "amqplib";
import type { AmqpConfig, TlsConfig } from "../../src/config/config.ts";
import { ChannelRejectedError, PermanentError, TransientError } from "../../src/core/errors.ts";
import type { Target } from "../../src/core/upstream.ts";
import { batchWrites, shortcutOf } from "../../src/upstreams/amqp.ts";
import { consumeAmqp, withAmqpChannel } from "../support/consumers.ts";
import { type Server, startRabbitmq } from "../support/servers.ts";
import {
  COMMON_CONFIG,
  NO_TLS,
  notifyEvent,
  TestLane,
  upstreamContract,
  walEvent,
} from "../support/upstream_contract.ts";

const EXCHANGE: Target = { type: "exchange", name: "amq.topic" };
const TIMEOUT = { timeout: 180_000 };

function config(uri: string, tls: TlsConfig = NO_TLS, more: Partial<AmqpConfig> = {}): AmqpConfig {
  return { ...COMMON_CONFIG, kind: "amqp", uri, tls, deliveryMode: 2, declare: false, headers: false, ...more };
}

let started: Promise<Server> | undefined;
const rabbitmq = () => started ??= startRabbitmq({ config: ["max_message_size = 100000"] });
after(async () => {
  await (await started)?.stop();
});

upstreamContract({
  title: "amqp exchange",
  target: EXCHANGE,
  startServer: startRabbitmq,
  config,
  consume: (uri) => consumeAmqp(uri, { exchange: EXCHANGE.name }),
  keyOf: ({ routingKey }) => routingKey,
  // The broker asks for one by itself, and verifies it.
  clientCertificateConfig: [],
  refusedLogin: async () => ({
    config: config((await rabbitmq()).uri.replace("guest:guest", "guest:a-wr0ng-s3cret")),
    secret: "a-wr0ng-s3cret",
    close: () => Promise.resolve(),
  }),
});

async function rejectsPermanently(amqpConfig: AmqpConfig, targets: Target[], expected: RegExp): Promise<void> {
  await assert.rejects(TestLane.open(amqpConfig, targets), (error) => {
    assert.ok(error instanceof PermanentError, String(error));
    assert.match(error.message, expected);
    return true;
  });
}

test("amqp: properties and routing keys of notifications and WAL events", TIMEOUT, async () => {
  const { uri } = await rabbitmq();
  const consumer = await consumeAmqp(uri, { exchange: EXCHANGE.name });
  for (const deliveryMode of [1, 2] as const) {
    const lane = await TestLane.open(config(uri, NO_TLS, { deliveryMode }), [EXCHANGE]);
    const wal = walEvent("{}", { id: "0/16B3748-3" });
    lane.send(EXCHANGE, wal, notifyEvent("text", { id: "n1", routingKey: "signup" }));
    await lane.answered();
    const received = (await consumer.waitFor(2)).splice(0);
    assert.deepEqual(received.map(({ routingKey }) => routingKey), ["public.orders.insert", "signup"]);
    const [first, second] = received.map(({ properties }) => properties);
    assert.equal(first?.messageId, "0/16B3748-3");
    assert.equal(first?.contentType, "application/json");
    assert.equal(first?.type, "wal");
    assert.equal(first?.appId, "pg-event-proxy");
    assert.equal(first?.timestamp, 1_700_000_000);
    assert.equal(first?.deliveryMode, deliveryMode);
    assert.equal(second?.messageId, "n1");
    assert.equal(second?.contentType, "text/plain; charset=utf-8");
    assert.equal(second?.type, "notify");
    await lane.close();
  }
  await consumer.close();
});

test("amqp: a queue gets its events through the default exchange", TIMEOUT, async () => {
  const { uri } = await rabbitmq();
  const queue = { type: "queue", name: "contract-queue" };
  const consumer = await consumeAmqp(uri, { queue: queue.name, declare: true });
  const lane = await TestLane.open(config(uri), [queue]);
  lane.send(queue, walEvent("1"), notifyEvent("2", { routingKey: "ignored" }));
  await lane.answered();
  const received = await consumer.waitFor(2);
  assert.deepEqual(received.map(({ exchange, routingKey, text }) => [exchange, routingKey, text]), [
    ["", queue.name, "1"],
    ["", queue.name, "2"],
  ]);
  await lane.close();
  await consumer.close();
});

test("amqp: a missing exchange or queue is permanent; declare=true makes it, durable", TIMEOUT, async () => {
  const { uri } = await rabbitmq();
  const exchange = { type: "exchange", name: "made.by.declare" };
  const queue = { type: "queue", name: "made by declare" };
  const remedy = "create it, or set declare=true";
  await rejectsPermanently(config(uri), [EXCHANGE, exchange], new RegExp(`exchange "made.by.declare" .*; ${remedy}$`));
  await rejectsPermanently(config(uri), [queue], new RegExp(`queue "made by declare" .*; ${remedy}$`));
  const declaring = config(uri, NO_TLS, { declare: true });
  const defaultExchange = { type: "exchange", name: "" };
  const targets = [defaultExchange, EXCHANGE, { type: "exchange", name: "amq.fanout" }, exchange, queue];
  const lane = await TestLane.open(declaring, targets);
  await withAmqpChannel(uri, async (channel) => {
    // Refused unless type and durability are as they are.
    await channel.assertExchange(exchange.name, "topic", { durable: true });
    await channel.assertQueue(queue.name, { durable: true });
    await channel.bindQueue(queue.name, exchange.name, "#");
  });
  const consumer = await consumeAmqp(uri, { queue: queue.name, declare: true });
  lane.send(exchange, walEvent("1"));
  lane.send(queue, walEvent("2"));
  lane.send(defaultExchange, notifyEvent("3", { routingKey: queue.name }));
  await lane.answered();
  assert.deepEqual((await consumer.waitFor(3)).map(({ text }) => text), ["1", "2", "3"]);
  await lane.close();
  const again = await TestLane.open(declaring, targets);
  await again.close();
  await consumer.close();
  await withAmqpChannel(uri, (channel) => channel.deleteExchange(exchange.name));
});

test("amqp: a queue that goes ends the session, and none opens before it is back", TIMEOUT, async () => {
  const { uri } = await rabbitmq();
  const queues = ["stays", "goes"].map((name) => ({ type: "queue", name }));
  const [stays, goes] = queues as [Target, Target];
  const lane = await TestLane.open(config(uri, NO_TLS, { declare: true }), queues);
  await withAmqpChannel(uri, (channel) => channel.deleteQueue(goes.name));
  const [kept] = lane.send(stays, walEvent("kept"));
  const [returned] = lane.send(goes, walEvent("returned"));
  const cause = await lane.lost();
  assert.match(cause.message, /returned a message \(NO_ROUTE\): queue "goes" is gone; create it again$/);
  assert.equal(returned!.outcome, undefined);
  assert.notEqual(typeof kept!.outcome, "object");
  await rejectsPermanently(config(uri), queues, /queue "goes" .*; create it, or set declare=true$/);
  await withAmqpChannel(uri, async (channel) => {
    assert.equal((await channel.checkQueue(stays.name)).messageCount, 1);
    await channel.deleteQueue(stays.name);
  });
});

test("amqp: a routing key longer than a short string is refused, the longest is not", TIMEOUT, async () => {
  const { uri } = await rabbitmq();
  const lane = await TestLane.open(config(uri), [EXCHANGE]);
  const keys = ["k".repeat(255), "k".repeat(256), "ü".repeat(127), "ü".repeat(128), ""];
  lane.send(EXCHANGE, ...keys.map((routingKey) => notifyEvent("x", { routingKey })));
  await lane.answered();
  assert.deepEqual(lane.sent.map(({ outcome }) => outcome === "acknowledged"), [true, false, true, false, true]);
  assert.match(lane.sent[3]!.refusal ?? "", /its routing key has 256 bytes; AMQP allows 255/);
  await lane.close();
});

test(
  "amqp: a message too large closes the channel: alone it is refused, among others it is looked for",
  TIMEOUT,
  async () => {
    const { uri } = await rabbitmq();
    const tooLarge = () => walEvent(Buffer.alloc(100_001, "x"));
    const alone = await TestLane.open(config(uri), [EXCHANGE]);
    alone.send(EXCHANGE, walEvent(Buffer.alloc(100_000, "x")));
    await alone.answered();
    const [refused] = alone.send(EXCHANGE, tooLarge());
    const cause = await alone.lost();
    assert.match(refused!.refusal ?? "", /^RabbitMQ closed the channel: PRECONDITION_FAILED - message size 100001/);
    assert.ok(!(cause instanceof ChannelRejectedError), String(cause));

    const among = await TestLane.open(alone.upstream, [EXCHANGE]);
    among.send(EXCHANGE, tooLarge(), walEvent("1"), walEvent("2"));
    assert.ok(await among.lost() instanceof ChannelRejectedError);
    assert.equal(among.sent[0]!.outcome, undefined);
    assert.deepEqual([alone.losses.length, among.losses.length], [1, 1]);
  },
);

test("amqp: an exchange that vanishes ends the session", TIMEOUT, async () => {
  const { uri } = await rabbitmq();
  const vanishing = { type: "exchange", name: "vanishing" };
  const lane = await TestLane.open(config(uri, NO_TLS, { declare: true }), [vanishing]);
  await withAmqpChannel(uri, (channel) => channel.deleteExchange(vanishing.name));
  lane.send(vanishing, walEvent("1"), walEvent("2"));
  const cause = await lane.lost();
  assert.ok(cause instanceof TransientError);
  assert.match(cause.message, /NOT_FOUND - no exchange 'vanishing'/);
  await rejectsPermanently(config(uri), [vanishing], /create it, or set declare=true$/);
});

test("amqp: a queue at its limit makes the session end, not the event be dropped", TIMEOUT, async () => {
  const { uri } = await rabbitmq();
  const queue = { type: "queue", name: "full" };
  await withAmqpChannel(uri, async (channel) => {
    await channel.assertQueue(queue.name, { durable: true, maxLength: 1, overflow: "reject-publish" });
    const lane = await TestLane.open(config(uri), [queue]);
    let last = lane;
    // The limit is not exact: RabbitMQ confirms what is on its way while the queue fills.
    lane.send(queue, ...Array.from({ length: 50 }, () => walEvent("x")));
    assert.match((await lane.lost()).message, /basic\.nack/);
    await channel.purgeQueue(queue.name);
    last = await TestLane.open(lane.upstream, [queue]);
    last.send(queue, walEvent("again"));
    await last.answered();
    await last.close();
    await channel.deleteQueue(queue.name);
  });
});

test("amqp: virtual hosts: the default by three spellings, a missing one is permanent", TIMEOUT, async () => {
  const { uri } = await rabbitmq();
  for (const path of ["", "/", "//", "/%2F", "/%2f"]) {
    const lane = await TestLane.open(config(uri + path), [EXCHANGE]);
    lane.send(EXCHANGE, walEvent("x"));
    await lane.answered();
    await lane.close();
  }
  await rejectsPermanently(
    config(`${uri}/no%20where`),
    [EXCHANGE],
    /refused user "guest" the virtual host "no where"; create it/,
  );
  await rejectsPermanently(
    config(`${uri}?heartbeat=soon`),
    [EXCHANGE],
    /heartbeat in uri is "soon"; write the seconds/,
  );
});

test("amqp: a frozen broker is found by its missing heartbeat", TIMEOUT, async () => {
  const server = await startRabbitmq();
  try {
    const lane = await TestLane.open(config(`${server.uri}?heartbeat=1`), [EXCHANGE]);
    server.freeze();
    lane.send(EXCHANGE, walEvent("x"));
    assert.match((await lane.lost(10_000)).message, /Heartbeat timeout/i);
    assert.equal(lane.unanswered, 1);
    server.thaw();
  } finally {
    await server.stop();
  }
});

test("amqp: a blocked connection is waited for", TIMEOUT, async () => {
  const server = await startRabbitmq({ config: ["vm_memory_high_watermark.absolute = 1"] });
  try {
    const lane = await TestLane.open(config(server.uri), [EXCHANGE]);
    lane.send(EXCHANGE, walEvent("x"));
    await delay(500);
    assert.equal(lane.unanswered, 1);
    await lane.close(500);
    assert.deepEqual(lane.losses, []);
  } finally {
    await server.stop();
  }
});

test("amqp: amqplib's multiplexer is where writes are batched, and corks are balanced", TIMEOUT, async () => {
  const connection = await connect((await rabbitmq()).uri);
  const { stream } = connection.connection as unknown as { stream: Writable };
  let writes = 0;
  const write = stream._write;
  stream._write = (...args) => (writes++, write.apply(stream, args));
  let batches = 0;
  const writev = stream._writev;
  if (writev) stream._writev = (...args) => (batches++, writev.apply(stream, args));
  assert.equal(batchWrites(connection), true);
  const channel = await connection.createConfirmChannel();
  assert.ok(shortcutOf(connection, channel, 1) !== undefined, "messages are encoded by PublishEncoder");
  writes = 0;
  for (let i = 0; i < 1_000; i++) channel.publish(EXCHANGE.name, "x", Buffer.from("x"));
  await channel.waitForConfirms();
  assert.ok(writes + batches < 50, `${writes} writes, ${batches} of many chunks`);
  assert.equal(stream.writableCorked, 0);
  await connection.close();
});
