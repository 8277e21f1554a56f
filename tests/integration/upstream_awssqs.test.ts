import assert from "node:assert/strict";
import process from "node:process";
import { after, test } from "node:test";
import type { AwsSqsConfig } from "../../src/config/config.ts";
import { ChannelRejectedError, PermanentError, TransientError } from "../../src/core/errors.ts";
import { structuredEvent } from "../../src/core/cloudevents.ts";
import { AwsGate } from "../support/aws_gate.ts";
import {
  AWS_ENV,
  consumeSqs,
  createQueue,
  startAwsEmulator,
  startLambda,
  useAwsCredentials,
} from "../support/aws_servers.ts";
import { RunningLane } from "../support/running_lane.ts";
import {
  carriesText,
  COMMON_CONFIG,
  notifyEvent,
  TestLane,
  upstreamContract,
  walEvent,
} from "../support/upstream_contract.ts";

useAwsCredentials();

const TARGET = { type: "queue", name: "contract" };
const TIMEOUT = { timeout: 180_000 };
const MAX_BYTES = 1_048_576;

function config(uri: string, fields: Partial<AwsSqsConfig> = {}): AwsSqsConfig {
  return { ...COMMON_CONFIG, kind: "awssqs", uri, concurrency: 1, ...fields };
}

const emulator = startAwsEmulator().then(async (server) => {
  await createQueue(server.uri, TARGET.name);
  return server;
});
after(async () => await (await emulator).stop());

upstreamContract({
  title: "awssqs",
  target: TARGET,
  startServer: () => emulator,
  config: (uri) => config(uri),
  consume: (uri) => consumeSqs(uri, TARGET.name),
  keyOf: ({ routingKey }) => routingKey,
  volume: 300,
  carries: (event) => carriesText(event, MAX_BYTES),
  clientCertificateConfig: undefined,
  refusedLogin: async () => {
    const server = await startLambda("another secret");
    return { config: config(server.uri), secret: AWS_ENV.AWS_SECRET_ACCESS_KEY, close: () => server.stop() };
  },
});

/** A queue of its own. */
async function queue(name: string): Promise<{ uri: string; target: { type: string; name: string } }> {
  const { uri } = await emulator;
  await createQueue(uri, name);
  return { uri, target: { type: "queue", name } };
}

async function gated(name: string, body: (gate: AwsGate, target: { type: string; name: string }) => Promise<void>) {
  const { uri, target } = await queue(name);
  const gate = await AwsGate.start(uri);
  try {
    await body(gate, target);
  } finally {
    await gate.close();
  }
}

test("awssqs: messages carry their properties as attributes", TIMEOUT, async () => {
  const { uri, target } = await queue("attributes");
  const consumer = await consumeSqs(uri, target.name);
  const lane = await TestLane.open(config(uri), [target]);
  const event = walEvent(`{"action":"I"}`);
  lane.send(target, event, notifyEvent("no key"));
  await lane.answered();
  const [first, second] = await consumer.waitFor(2);
  assert.deepEqual(first!.attributes, {
    id: event.id,
    type: "wal",
    content_type: "application/json",
    timestamp: "1700000000123",
    routing_key: "public.orders.insert",
  });
  assert.equal(second!.attributes["content_type"], "text/plain; charset=utf-8");
  assert.ok(!("routing_key" in second!.attributes));
  await lane.close();
  await consumer.close();
});

test("awssqs: a CloudEvent says in its attributes what it is", TIMEOUT, async () => {
  const { uri, target } = await queue("cloudevents");
  const consumer = await consumeSqs(uri, target.name);
  const lane = await TestLane.open(config(uri, { cloudEventsSource: "/shop" }), [target]);
  // The lane is given events in this form.
  const event = structuredEvent(walEvent(`{"action":"I"}`), "/shop");
  lane.send(target, event);
  await lane.answered();
  const [message] = await consumer.waitFor(1);
  assert.equal(message!.attributes["content_type"], "application/cloudevents+json");
  assert.equal(JSON.parse(message!.text).id, event.id);
  await lane.close();
  await consumer.close();
});

test("awssqs: a FIFO queue groups by routing key, keeps their order and drops repeats", TIMEOUT, async () => {
  const { uri, target } = await queue("ordered.fifo");
  const consumer = await consumeSqs(uri, target.name);
  const keys = ["a", "b.c", "", "ünï cödé", "x".repeat(200)];
  const events = Array.from(
    { length: 200 },
    (_, i) => walEvent(`{"n":${i}}`, { routingKey: keys[i % keys.length]! }),
  );
  for (const round of [1, 2]) {
    const lane = await TestLane.open(config(uri), [target]);
    lane.send(target, ...events);
    await lane.answered();
    // Behind them in every group.
    lane.send(target, ...keys.map((routingKey) => walEvent(`end of round ${round}`, { routingKey })));
    await lane.answered();
    await lane.close();
  }
  const isEnd = ({ text }: { text: string }) => text === "end of round 2";
  const received = await consumer.waitFor((messages) => messages.filter(isEnd).length === keys.length);
  assert.equal(received.length, events.length + 2 * keys.length);
  for (const key of keys) {
    const wanted = events.filter(({ routingKey }) => routingKey === key);
    const messages = received.filter((message) => message.key === key && message.text.startsWith("{"));
    assert.deepEqual(messages.map(({ deduplicationId }) => deduplicationId), wanted.map(({ id }) => id));
    const groups = new Set(messages.map(({ groupId }) => groupId));
    assert.equal(groups.size, 1);
    const [group = ""] = groups;
    assert.match(group, /^[\x21-\x7e]{1,128}$/);
    if (key === "a" || key === "b.c") assert.equal(group, key);
  }
  assert.equal(new Set(received.map(({ groupId }) => groupId)).size, keys.length);
  await consumer.close();
});

test("awssqs: batches stay within 1 MiB, and the queue's own limit holds for each message", TIMEOUT, async () => {
  await gated("large", async (gate, target) => {
    const lane = await TestLane.open(config(gate.uri), [target]);
    lane.send(
      target,
      ...Array.from({ length: 7 }, () => walEvent("x".repeat(300_000))),
      walEvent("x".repeat(MAX_BYTES)),
    );
    await lane.answered();
    assert.deepEqual(lane.sent.slice(0, 7).map(({ outcome }) => outcome), Array(7).fill("acknowledged"));
    assert.match(lane.sent[7]!.refusal ?? "", /^it has 1048\d{3} bytes with its attributes; the limit is 1048576$/);
    assert.equal(gate.actions.filter((action) => action === "SendMessageBatch").length, 3);
    await lane.close();
  });
});

test("awssqs: characters that are not allowed are refused, with their name", TIMEOUT, async () => {
  const { uri, target } = await queue("characters");
  const lane = await TestLane.open(config(uri), [target]);
  lane.send(
    target,
    walEvent("bell \u0007"),
    walEvent("not a character \uffff"),
    walEvent("fine", { routingKey: "\u0001" }),
    walEvent("tab \t and 🐘 \ufffd"),
  );
  await lane.answered();
  assert.deepEqual(lane.sent.map(({ refusal }) => /U\+\w+/.exec(refusal ?? "")?.[0]), [
    "U+0007",
    "U+FFFF",
    "U+0001",
    undefined,
  ]);
  await lane.close();
});

test(
  "awssqs: entries that fail, throttling and 5xx are sent again in order, and nothing is dropped",
  TIMEOUT,
  async () => {
    await gated("faulty", async (gate, target) => {
      const { uri } = await emulator;
      const consumer = await consumeSqs(uri, target.name);
      gate.judge = (action, count) => {
        if (action !== "SendMessageBatch") return undefined;
        switch (count) {
          case 2:
            return { failEntries: [3, 7], code: "InternalError", sendersFault: false };
          case 4:
            return { status: 503, code: "ServiceUnavailable" };
          case 5:
            return { status: 400, code: "RequestThrottled" };
          case 6:
            return { failEntries: [0], code: "ThrottlingException", sendersFault: true };
          case 7:
            return { status: 403, code: "AccessDeniedException" };
        }
      };
      const lane = await RunningLane.start(config(gate.uri, { onReject: "drop" }), [target]);
      const events = Array.from({ length: 100 }, (_, i) => walEvent(`{"n":${i}}`));
      lane.push(target, ...events);
      await lane.settled(100);
      await consumer.waitFor(100);
      await lane.stop();
      await consumer.close();
      assert.equal(lane.lane.counts.dropped, 0);
      assert.equal(lane.lane.counts.connections, 6);
      const numbers = consumer.received.map(({ text }) => Number(/\d+/.exec(text)));
      assert.deepEqual(numbers.toSorted((a, b) => a - b), events.map((_, i) => i));
      // Only those that failed alone come after others of their batch, and before all later batches.
      const late = [13, 17, 28];
      const rest = (list: readonly number[]) => list.filter((number) => !late.includes(number));
      assert.deepEqual(rest(numbers), rest(events.map((_, i) => i)));
      assert.deepEqual(numbers.slice(18, 20), [13, 17]);
    });
  },
);

test("awssqs: one message that the service refuses is found in its batch, and the others arrive", TIMEOUT, async () => {
  await gated("poisoned", async (gate, target) => {
    const consumer = await consumeSqs((await emulator).uri, target.name);
    gate.judge = (action, count) => {
      if (action !== "SendMessageBatch") return undefined;
      if (count === 1) return { failEntries: [4], code: "InvalidMessageContents", sendersFault: true };
      if (count === 2) return { status: 400, code: "InvalidParameterValue" };
      // Sent one at a time then.
      return count === 5 ? { status: 400, code: "InvalidParameterValue" } : undefined;
    };
    const lane = await RunningLane.start(config(gate.uri, { onReject: "drop", maxInFlight: 10 }), [target]);
    const events = Array.from({ length: 30 }, (_, i) => walEvent(`{"n":${i}}`));
    lane.push(target, ...events);
    await lane.settled(30);
    await consumer.waitFor(28);
    await lane.stop();
    await consumer.close();
    assert.equal(lane.lane.counts.dropped, 2);
    assert.deepEqual(
      consumer.received.map(({ text }) => Number(/\d+/.exec(text))),
      events.map((_, i) => i).filter((i) => i !== 4 && i !== 12),
    );
    assert.ok(
      lane.log.texts.some((text) => /refused event .*: Amazon SQS refused it: InvalidMessageContents/.test(text)),
    );
  });
});

test(
  "awssqs: a session that may no longer send ends with the remedy; a batch that is refused blames an event",
  TIMEOUT,
  async () => {
    await gated("ended", async (gate, target) => {
      const cases: [{ status: number; code: string }, new (...args: string[]) => Error, RegExp][] = [
        [{ status: 403, code: "AccessDeniedException" }, PermanentError, /allow these credentials .*sqs:SendMessage$/],
        [{ status: 400, code: "AWS.SimpleQueueService.NonExistentQueue" }, PermanentError, /create it, or correct/],
        [{ status: 403, code: "ExpiredTokenException" }, PermanentError, /refused a login: ExpiredTokenException/],
        [{ status: 500, code: "InternalFailure" }, TransientError, /failed: InternalFailure/],
        [{ status: 400, code: "ThrottlingException" }, TransientError, /ThrottlingException/],
        [
          { status: 400, code: "InvalidParameterValue" },
          ChannelRejectedError,
          /refused a batch: InvalidParameterValue/,
        ],
      ];
      for (const [verdict, type, expected] of cases) {
        gate.judge = (action) => action === "SendMessageBatch" ? verdict : undefined;
        const lane = await TestLane.open(config(gate.uri), [target]);
        lane.send(target, walEvent("1"), walEvent("2"));
        const cause = await lane.lost();
        assert.equal(cause.constructor, type, String(cause));
        assert.match(cause.message, expected);
        assert.equal(lane.unanswered, 2);
      }
    });
  },
);

test("awssqs: what is wrong at the start is permanent and names the remedy", TIMEOUT, async () => {
  await gated("start", async (gate, target) => {
    const permanent = (name: string, expected: RegExp) =>
      assert.rejects(TestLane.open(config(gate.uri), [{ type: "queue", name }]), (error) => {
        assert.ok(error instanceof PermanentError, String(error));
        assert.match(error.message, expected);
        assert.doesNotMatch(error.message, /\n/);
        return true;
      });
    await permanent("nowhere", /^Amazon SQS at 127\.0\.0\.1:\d+ answered for queue:nowhere: .*; create it, or correct/);
    gate.judge = () => ({ status: 403, code: "AccessDeniedException", message: "User: x is not authorized" });
    await permanent(target.name, /not authorized; allow these credentials sqs:GetQueueUrl, sqs:GetQueueAttributes and/);
    gate.judge = () => ({ status: 400, code: "InvalidParameterValue" });
    await permanent(
      target.name,
      /^Amazon SQS at .* refused queue:start: InvalidParameterValue.*; correct bridge_channels$/,
    );
    for (const verdict of [{ status: 503, code: "ServiceUnavailable" }, { status: 400, code: "RequestThrottled" }]) {
      gate.judge = () => verdict;
      await assert.rejects(TestLane.open(config(gate.uri), [target]), TransientError);
    }
  });
});

test("awssqs: without credentials the error says where they may stand", TIMEOUT, async () => {
  const { uri } = await emulator;
  const kept = { ...process.env };
  for (const name of Object.keys(process.env)) if (name.startsWith("AWS_")) delete process.env[name];
  Object.assign(process.env, {
    AWS_EC2_METADATA_DISABLED: "true",
    AWS_CONFIG_FILE: "/none",
    AWS_SHARED_CREDENTIALS_FILE: "/none",
  });
  try {
    await assert.rejects(TestLane.open(config(uri), [TARGET]), (error) => {
      assert.ok(error instanceof PermanentError, String(error));
      assert.match(error.message, /^no credentials for Amazon SQS at .*AWS_ACCESS_KEY_ID.*AWS_PROFILE.* a role/);
      return true;
    });
  } finally {
    delete process.env["AWS_CONFIG_FILE"];
    delete process.env["AWS_SHARED_CREDENTIALS_FILE"];
    Object.assign(process.env, kept);
  }
});
