import assert from "node:assert/strict";
import { after, test } from "node:test";
import type { AwsSnsConfig } from "../../src/config/config.ts";
import { PermanentError, TransientError } from "../../src/core/errors.ts";
import { AwsGate } from "../support/aws_gate.ts";
import {
  AWS_ENV,
  consumeSqs,
  createTopic,
  startAwsEmulator,
  startLambda,
  topicArn,
  useAwsCredentials,
} from "../support/aws_servers.ts";
import { RunningLane } from "../support/running_lane.ts";
import { carriesText, COMMON_CONFIG, TestLane, upstreamContract, walEvent } from "../support/upstream_contract.ts";

useAwsCredentials();

const TARGET = { type: "topic", name: topicArn("contract") };
const TIMEOUT = { timeout: 180_000 };
const MAX_BYTES = 262_144;

function config(uri: string, fields: Partial<AwsSnsConfig> = {}): AwsSnsConfig {
  return { ...COMMON_CONFIG, kind: "awssns", uri, concurrency: 1, ...fields };
}

const emulator = startAwsEmulator().then(async (server) => {
  await createTopic(server.uri, "contract");
  return server;
});
after(async () => await (await emulator).stop());

upstreamContract({
  title: "awssns",
  target: TARGET,
  startServer: () => emulator,
  config: (uri) => config(uri),
  consume: (uri) => consumeSqs(uri, "contract"),
  keyOf: ({ routingKey }) => routingKey,
  volume: 300,
  carries: (event) => carriesText(event, MAX_BYTES),
  clientCertificateConfig: undefined,
  refusedLogin: async () => {
    const server = await startLambda("another secret");
    return { config: config(server.uri), secret: AWS_ENV.AWS_SECRET_ACCESS_KEY, close: () => server.stop() };
  },
});

test("awssns: a FIFO topic groups by routing key, drops repeats, and carries the attributes", TIMEOUT, async () => {
  const { uri } = await emulator;
  const target = { type: "topic", name: await createTopic(uri, "ordered.fifo") };
  const consumer = await consumeSqs(uri, "ordered.fifo");
  const keys = ["orders.insert", "", "ünï"];
  const events = Array.from({ length: 60 }, (_, i) => walEvent(`{"n":${i}}`, { routingKey: keys[i % keys.length]! }));
  for (const round of [1, 2]) {
    const lane = await TestLane.open(config(uri), [target]);
    lane.send(target, ...events);
    await lane.answered();
    lane.send(target, ...keys.map((routingKey) => walEvent(`end of round ${round}`, { routingKey })));
    await lane.answered();
    await lane.close();
  }
  const isEnd = ({ text }: { text: string }) => text === "end of round 2";
  const received = await consumer.waitFor((messages) => messages.filter(isEnd).length === keys.length);
  assert.equal(received.length, events.length + 2 * keys.length);
  for (const key of keys) {
    const messages = received.filter((message) => message.key === key && message.text.startsWith("{"));
    const wanted = events.filter(({ routingKey }) => routingKey === key).map(({ id }) => id);
    assert.deepEqual(messages.map(({ deduplicationId }) => deduplicationId), wanted);
    assert.deepEqual(messages.map(({ attributes }) => attributes["id"]), wanted);
    assert.equal(new Set(messages.map(({ groupId }) => groupId)).size, 1);
  }
  await consumer.close();
});

test("awssns: batches stay within 256 KB; throttling and 5xx are sat out in order", TIMEOUT, async () => {
  const { uri } = await emulator;
  const target = { type: "topic", name: await createTopic(uri, "faulty") };
  const gate = await AwsGate.start(uri);
  const consumer = await consumeSqs(uri, "faulty");
  try {
    gate.judge = (action, count) => {
      if (action !== "PublishBatch") return undefined;
      if (count === 2) return { status: 503, code: "InternalFailure" };
      return count === 3 ? { status: 429, code: "Throttled" } : undefined;
    };
    const lane = await RunningLane.start(config(gate.uri, { onReject: "drop" }), [target]);
    const events = Array.from({ length: 12 }, (_, i) => walEvent(`{"n":${i},"text":"${"x".repeat(100_000)}"}`));
    lane.push(target, ...events, walEvent("x".repeat(MAX_BYTES)));
    await lane.settled(13);
    await consumer.waitFor(events.length);
    await lane.stop();
    assert.deepEqual(consumer.received.map(({ text }) => text), events.map(({ payload }) => String(payload)));
    // Two to a batch, and two batches that were not taken.
    assert.equal(gate.actions.filter((action) => action === "PublishBatch").length, 8);
    assert.equal(lane.lane.counts.dropped, 1);
  } finally {
    await consumer.close();
    await gate.close();
  }
});

test("awssns: what is wrong at the start is permanent and names the remedy", TIMEOUT, async () => {
  const gate = await AwsGate.start((await emulator).uri);
  try {
    const permanent = (name: string, expected: RegExp) =>
      assert.rejects(TestLane.open(config(gate.uri), [{ type: "topic", name }]), (error) => {
        assert.ok(error instanceof PermanentError, String(error));
        assert.match(error.message, expected);
        return true;
      });
    await permanent(
      topicArn("nowhere"),
      /^Amazon SNS at .* answered for topic:arn:.*nowhere: .*; create it, or correct/,
    );
    gate.judge = () => ({ status: 403, code: "AuthorizationError", message: "User: x is not authorized" });
    await permanent(TARGET.name, /not authorized; allow these credentials sns:GetTopicAttributes and sns:Publish$/);
    gate.judge = () => ({ status: 429, code: "Throttled" });
    await assert.rejects(TestLane.open(config(gate.uri), [TARGET]), TransientError);
  } finally {
    await gate.close();
  }
});
