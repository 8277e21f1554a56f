import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { test } from "node:test";
import fc from "fast-check";
import type { Event } from "../../src/core/event.ts";
import { LaneMeter } from "../../src/core/lane_meter.ts";
import { LATENCY_BOUNDS_MS, LatencyHistogram, quantileMs } from "../../src/core/latency.ts";
import type { Completion } from "../../src/core/source.ts";
import { commitTimeOf } from "../../src/postgres/wal2json.ts";

test("a latency falls into the first bucket whose bound it does not exceed", () => {
  fc.assert(fc.property(fc.integer({ min: -1000, max: 2 ** 40 }), (ms) => {
    const histogram = new LatencyHistogram();
    histogram.record(ms);
    const wanted = LATENCY_BOUNDS_MS.findIndex((bound) => ms <= bound);
    assert.equal(histogram.buckets.indexOf(1), wanted < 0 ? LATENCY_BOUNDS_MS.length : wanted);
    assert.equal(histogram.sumMs, Math.max(0, ms));
    assert.equal(histogram.count, 1);
  }));
});

test("a quantile lies in the bucket of the value that it is of", () => {
  assert.equal(quantileMs([], 0.5), undefined);
  const values = fc.array(fc.integer({ min: 0, max: 2 ** 17 }), { minLength: 1 });
  fc.assert(fc.property(values, fc.constantFrom(0.01, 0.5, 0.99, 1), (all, quantile) => {
    const histogram = new LatencyHistogram();
    for (const ms of all) histogram.record(ms);
    const exact = all.toSorted((a, b) => a - b)[Math.max(0, Math.ceil(all.length * quantile - 1e-9) - 1)]!;
    const upper = LATENCY_BOUNDS_MS.find((bound) => exact <= bound)!;
    const told = quantileMs(histogram.buckets, quantile)!;
    assert.ok(told <= upper && told >= (upper === 1 ? 0 : upper / 2), `${told} of ${exact}, ${all}`);
  }));
});

function eventOf(channel: string, bytes: number, receivedAtMs: number): Event {
  return { id: "1", type: "notify", channel, routingKey: "", payload: Buffer.alloc(bytes), json: false, receivedAtMs };
}

const plain: Completion = { retain: () => {}, release: () => {} };

test("deliveries are counted by channel, and timed from the commit where it is known", () => {
  const meter = new LaneMeter();
  const nowMs = Date.now();
  meter.delivered(eventOf("a", 10, nowMs - 100), plain);
  meter.delivered(eventOf("b", 5, nowMs), { ...plain, committedAtMs: nowMs - 5_000 });
  meter.delivered(eventOf("a", 1, nowMs), plain);
  meter.resent(eventOf("b", 1, nowMs));
  meter.dropped(eventOf("c", 1, nowMs));
  assert.deepEqual(Object.fromEntries(meter.channels), {
    a: { delivered: 2, deliveredBytes: 11, resent: 0, dropped: 0 },
    b: { delivered: 1, deliveredBytes: 5, resent: 1, dropped: 0 },
    c: { delivered: 0, deliveredBytes: 0, resent: 0, dropped: 1 },
  });
  assert.equal(meter.sinceReceipt.count, 2);
  assert.equal(meter.sinceCommit.count, 1);
  assert.ok(meter.sinceCommit.sumMs >= 5_000 && meter.sinceReceipt.sumMs < 5_000);
  assert.equal(meter.lastDelivered?.payload.length, 1);
  meter.delivered(eventOf("a", 10_000_000, nowMs), plain);
  assert.equal(meter.lastDelivered, undefined, "a large event is not kept");
});

test("the commit time is read in every time zone", () => {
  const at = (timestamp: string) => {
    const record = Buffer.from(`xx{"action":"B","xid":7,"timestamp":"${timestamp}"}`);
    return commitTimeOf(record, 2, record.length);
  };
  const noon = Date.UTC(2026, 10, 22, 12, 0, 0, 123);
  assert.equal(at("2026-11-22 12:00:00.123456+00"), noon);
  assert.equal(at("2026-11-22 17:30:00.123+05:30"), noon);
  assert.equal(at("2026-11-22 07:00:00.123-05"), noon);
  assert.equal(at("2026-11-22 12:00:00+00"), noon - 123);
  assert.equal(at("infinity"), undefined);
  const without = Buffer.from(`{"action":"B"}`);
  assert.equal(commitTimeOf(without, 0, without.length), undefined);
});
