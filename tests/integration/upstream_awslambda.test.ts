/** Against a stand-in (tests/support/lambda_stand_in_main.ts): no registry has an emulator of Lambda. */

import assert from "node:assert/strict";
import { isUtf8 } from "node:buffer";
import { after, test } from "node:test";
import type { AwsLambdaConfig } from "../../src/config/config.ts";
import { structuredEvent } from "../../src/core/cloudevents.ts";
import { PermanentError } from "../../src/core/errors.ts";
import { AWS_ENV, consumeLambda, startLambda, useAwsCredentials } from "../support/aws_servers.ts";
import { RunningLane } from "../support/running_lane.ts";
import { COMMON_CONFIG, notifyEvent, TestLane, upstreamContract, walEvent } from "../support/upstream_contract.ts";
import type { Event } from "../../src/core/event.ts";

useAwsCredentials();

const TARGET = { type: "function", name: "contract" };
const TIMEOUT = { timeout: 180_000 };

function config(uri: string, fields: Partial<AwsLambdaConfig> = {}): AwsLambdaConfig {
  return { ...COMMON_CONFIG, kind: "awslambda", uri, concurrency: 1, invocationType: "Event", ...fields };
}

const lambda = startLambda();
after(async () => await (await lambda).stop());

function isJson(payload: Uint8Array): boolean {
  try {
    JSON.parse(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(payload));
    return true;
  } catch {
    return false;
  }
}

/** Any text becomes a JSON string; what claims to be JSON has to be. */
function carries({ json, payload }: Event): boolean {
  if (payload.length >= 1_048_576) return false;
  return json ? isJson(payload) : isUtf8(payload);
}

upstreamContract({
  title: "awslambda",
  target: TARGET,
  startServer: () => lambda,
  config: (uri) => config(uri),
  consume: async () => await consumeLambda(await lambda),
  keyOf: ({ routingKey }) => routingKey,
  volume: 300,
  carries,
  clientCertificateConfig: undefined,
  refusedLogin: async () => {
    const server = await startLambda("another secret");
    return { config: config(server.uri), secret: AWS_ENV.AWS_SECRET_ACCESS_KEY, close: () => server.stop() };
  },
});

test("awslambda: the function gets id, type, channel and key; its name may be an ARN", TIMEOUT, async () => {
  const server = await lambda;
  const consumer = await consumeLambda(server);
  const target = { type: "function", name: "arn:aws:lambda:us-east-1:123456789012:function:on-event:live" };
  const lane = await TestLane.open(config(server.uri), [target]);
  const json = notifyEvent(`{"n": 1.10}`, { json: true, routingKey: "k" });
  const text = notifyEvent(`say "hi"\n`);
  lane.send(target, json, text);
  await lane.answered();
  const [first, second] = await consumer.waitFor(2);
  assert.equal(first!.name, target.name);
  assert.equal(first!.invocationType, "Event");
  assert.equal(
    first!.input,
    `{"id":${JSON.stringify(json.id)},"type":"notify","channel":"events","routing_key":"k","payload":{"n": 1.10}}`,
  );
  assert.deepEqual(JSON.parse(second!.input), {
    id: text.id,
    type: "notify",
    channel: "events",
    routing_key: "",
    payload: `say "hi"\n`,
  });
  await lane.close();
  await consumer.close();
});

test("awslambda: a CloudEvent is the function's input as it is", TIMEOUT, async () => {
  const server = await lambda;
  const consumer = await consumeLambda(server);
  const lane = await TestLane.open(config(server.uri, { cloudEventsSource: "/shop" }), [TARGET]);
  const event = structuredEvent(walEvent(`{"action":"I"}`), "/shop");
  lane.send(TARGET, event);
  await lane.answered();
  const [invocation] = await consumer.waitFor(1);
  assert.equal(invocation!.input, String(event.payload));
  await lane.close();
  await consumer.close();
});

test("awslambda: a function's error is a refusal, with its words", TIMEOUT, async () => {
  const server = await lambda;
  const consumer = await consumeLambda(server);
  const target = { type: "function", name: "failing" };
  const lane = await TestLane.open(config(server.uri, { invocationType: "RequestResponse" }), [target]);
  lane.send(target, walEvent(`{"n":1}`), walEvent(`{"n":"poison"}`), walEvent(`{"n":3}`));
  await lane.answered();
  assert.equal(lane.sent[0]!.outcome, "acknowledged");
  assert.equal(lane.sent[1]!.refusal, "AWS Lambda refused it: function error (Unhandled): TypeError: poisoned");
  assert.equal(lane.sent[2]!.outcome, "acknowledged");
  await consumer.waitFor(2);
  assert.deepEqual(consumer.received.map(({ text, invocationType }) => [text, invocationType]), [
    [`{"n":1}`, "RequestResponse"],
    [`{"n":3}`, "RequestResponse"],
  ]);
  await lane.close();
  await consumer.close();
});

test("awslambda: throttling is sat out, nothing is dropped; too much for an invocation is", TIMEOUT, async () => {
  const server = await lambda;
  const consumer = await consumeLambda(server);
  const target = { type: "function", name: "throttled" };
  const lane = await RunningLane.start(config(server.uri, { onReject: "drop" }), [target]);
  const events = Array.from({ length: 8 }, (_, i) => walEvent(`{"n":${i}}`));
  lane.push(target, ...events, walEvent(JSON.stringify("x".repeat(1_048_576))));
  await lane.settled(9);
  await lane.stop();
  await consumer.waitFor(8);
  assert.deepEqual(consumer.received.map(({ id }) => id), events.map(({ id }) => id));
  assert.equal(lane.lane.counts.dropped, 1);
  assert.ok(lane.lane.counts.connections > 4);
  await consumer.close();
});

test("awslambda: with concurrency, order is kept for each routing key", TIMEOUT, async () => {
  const server = await lambda;
  const consumer = await consumeLambda(server);
  const lane = await TestLane.open(config(server.uri, { concurrency: 8 }), [TARGET]);
  const keys = Array.from({ length: 20 }, (_, i) => `table${i}`);
  const events = Array.from({ length: 200 }, (_, i) => walEvent(`{"n":${i}}`, { routingKey: keys[i % 20]! }));
  lane.send(TARGET, ...events);
  await lane.answered();
  const received = await consumer.waitFor(events.length);
  for (const key of keys) {
    const numbers = received.filter((message) => message.key === key).map(({ text }) => Number(/\d+/.exec(text)));
    assert.deepEqual(numbers, numbers.toSorted((a, b) => a - b));
    assert.equal(numbers.length, 10);
  }
  await lane.close();
  await consumer.close();
});

test("awslambda: what is wrong at the start is permanent and names the remedy", TIMEOUT, async () => {
  const { uri } = await lambda;
  const permanent = (name: string, expected: RegExp) =>
    assert.rejects(TestLane.open(config(uri), [{ type: "function", name }]), (error) => {
      assert.ok(error instanceof PermanentError, String(error));
      assert.match(error.message, expected);
      return true;
    });
  await permanent(
    "missing",
    /^AWS Lambda at .* answered for function:missing: ResourceNotFound.*; create it, or correct/,
  );
  await permanent("denied", /is not authorized to invoke denied; allow these credentials lambda:InvokeFunction$/);
});
