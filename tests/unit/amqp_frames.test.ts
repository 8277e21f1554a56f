/** The encoder against amqplib's own decoder. */

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { type MessageToPublish, PublishEncoder } from "../../src/upstreams/amqp_frames.ts";

interface Frame {
  readonly type: number;
  readonly channel: number;
  readonly size: number;
  readonly rest: Buffer;
}
interface Decoded {
  readonly id?: number;
  readonly size?: number;
  readonly fields: Record<string, unknown>;
  readonly content?: Buffer;
}
const require = createRequire(import.meta.url);
// Not among what the package exports, hence by its file.
const { parseFrame, decodeFrame } = require(join(dirname(require.resolve("amqplib")), "lib/frame.js")) as {
  parseFrame(bytes: Buffer, maxBytes: number): (Frame & { payload: Buffer }) | false;
  decodeFrame(frame: Frame): Decoded;
};

function decodeAll(bytes: Buffer): Decoded[] {
  const frames: Decoded[] = [];
  let rest = bytes;
  while (rest.length > 0) {
    const frame = parseFrame(rest, 131_072);
    assert.ok(frame !== false, "the last frame is whole");
    assert.equal(frame.channel, 7);
    frames.push(decodeFrame(frame));
    rest = frame.rest;
  }
  return frames;
}

function message(changes: Partial<MessageToPublish> = {}): MessageToPublish {
  return {
    exchange: "amq.topic",
    routingKey: "public.orders.insert",
    mandatory: false,
    messageId: "0/1A2B3C-5",
    contentType: "application/json",
    type: "wal",
    timestamp: 1_795_000_000,
    payload: Buffer.from(`{"action":"I"}`),
    ...changes,
  };
}

function expectMessage(frames: Decoded[], expected: MessageToPublish, deliveryMode = 2): void {
  const method = frames.shift();
  assert.equal(method?.fields.exchange, expected.exchange);
  assert.equal(method?.fields.routingKey, expected.routingKey);
  assert.equal(method?.fields.mandatory, expected.mandatory);
  assert.equal(method?.fields.immediate, false);
  const header = frames.shift();
  assert.equal(header?.size, expected.payload.length);
  const { contentType, headers, deliveryMode: mode, messageId, timestamp, type, appId, ...others } = header.fields;
  assert.deepEqual({ contentType, headers, mode, messageId, timestamp, type, appId }, {
    contentType: expected.contentType,
    headers: {},
    mode: deliveryMode,
    messageId: expected.messageId,
    timestamp: expected.timestamp,
    type: expected.type,
    appId: "pg-event-proxy",
  });
  assert.ok(Object.values(others).every((value) => value === undefined), JSON.stringify(others));
  if (expected.payload.length === 0) return;
  const body = frames.shift();
  assert.deepEqual(Buffer.from(body!.content ?? body as unknown as Buffer), Buffer.from(expected.payload));
}

test("amqplib decodes what was encoded: names of all lengths, other alphabets, any payload", () => {
  const messages = [
    message(),
    message({ mandatory: true, exchange: "", routingKey: "jobs" }),
    message({ routingKey: "" }),
    message({ routingKey: "é".repeat(127), exchange: "x".repeat(255) }),
    message({ messageId: "идентификатор", type: "notify", contentType: "text/plain; charset=utf-8" }),
    message({ payload: Buffer.alloc(0) }),
    message({ payload: Buffer.from([0, 0xce, 0xff, 0xce]) }),
    message({ payload: Buffer.alloc(100_000, 0x61) }),
    message({ timestamp: 2 ** 33 + 5 }),
    message(),
  ];
  for (const deliveryMode of [1, 2] as const) {
    const encoder = new PublishEncoder(7, deliveryMode, "pg-event-proxy");
    const chunks: Buffer[] = [];
    for (const each of messages) {
      encoder.add(each);
      if (encoder.full) chunks.push(encoder.take());
    }
    chunks.push(encoder.take());
    const frames = decodeAll(Buffer.concat(chunks));
    for (const each of messages) expectMessage(frames, each, deliveryMode);
    assert.equal(frames.length, 0);
  }
});

test("what was taken is not written to again, over many slabs", () => {
  const encoder = new PublishEncoder(7, 1, "pg-event-proxy");
  const taken: Buffer[] = [];
  const sent: MessageToPublish[] = [];
  for (let i = 0; i < 3_000; i++) {
    const each = message({
      messageId: `0/${i}`,
      routingKey: `key ${i % 3}`,
      payload: Buffer.from("p".repeat(i % 700)),
    });
    sent.push(each);
    encoder.add(each);
    if (encoder.full || i % 5 === 0) taken.push(encoder.take());
  }
  taken.push(encoder.take());
  const frames = decodeAll(Buffer.concat(taken));
  for (const each of sent) expectMessage(frames, each, 1);
});

test("a name that is too long is an error, not a broken frame", () => {
  const encoder = new PublishEncoder(7, 1, "pg-event-proxy");
  assert.throws(() => encoder.add(message({ exchange: "x".repeat(256) })), /AMQP allows 255/);
  assert.throws(() => encoder.add(message({ messageId: "é".repeat(128) })), /AMQP allows 255/);
});
