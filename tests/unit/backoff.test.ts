import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { aborted, Backoff, sleep, unlessAborted } from "../../src/core/backoff.ts";

test("each delay lies between a tenth of its ceiling and the ceiling, which doubles up to the maximum", () => {
  fc.assert(fc.property(
    fc.integer({ min: 1, max: 1000 }),
    fc.integer({ min: 1, max: 100_000 }),
    fc.integer({ min: 1, max: 60 }),
    (firstMs, maxMs, attempts) => {
      const backoff = new Backoff(firstMs, maxMs);
      for (let i = 0; i < attempts; i++) {
        const ceilingMs = Math.min(maxMs, firstMs * 2 ** i);
        const delayMs = backoff.nextMs();
        assert.ok(delayMs >= ceilingMs * 0.1 && delayMs <= ceilingMs, `attempt ${i}: ${delayMs} of ${ceilingMs}`);
      }
    },
  ));
});

test("delays begin at 100 ms, end at 10 s, and differ", () => {
  const backoff = new Backoff();
  assert.ok(backoff.nextMs() <= 100);
  for (let i = 0; i < 2000; i++) backoff.nextMs();
  const late = Array.from({ length: 50 }, () => backoff.nextMs());
  assert.ok(late.every((delayMs) => delayMs >= 1_000 && delayMs <= 10_000));
  assert.ok(new Set(late).size > 40, "no jitter");
  backoff.reset();
  assert.ok(backoff.nextMs() <= 100);
});

/** A signal that tells how many listeners it has. */
function countingSignal() {
  const controller = new AbortController();
  const { signal } = controller;
  let listeners = 0;
  const add = signal.addEventListener.bind(signal);
  const remove = signal.removeEventListener.bind(signal);
  signal.addEventListener = (...args: Parameters<typeof add>) => (listeners++, add(...args));
  signal.removeEventListener = (...args: Parameters<typeof remove>) => (listeners--, remove(...args));
  return { controller, signal, listeners: () => listeners };
}

test("sleep ends with its time or its signal, and leaves no listener", async () => {
  const { controller, signal, listeners } = countingSignal();
  await sleep(1, signal);
  assert.equal(listeners(), 0);
  const long = sleep(3_600_000, signal);
  assert.equal(listeners(), 1);
  controller.abort();
  await long;
  assert.equal(listeners(), 0);
  await sleep(3_600_000, signal);
  await aborted(signal);
});

test("unlessAborted gives the value, the error, or undefined, and leaves no listener", async () => {
  const { controller, signal, listeners } = countingSignal();
  assert.equal(await unlessAborted(Promise.resolve("value"), signal), "value");
  await assert.rejects(unlessAborted(Promise.reject(new Error("fault")), signal), /fault/);
  assert.equal(listeners(), 0);
  const never = unlessAborted(new Promise<string>(() => {}), signal);
  controller.abort();
  assert.equal(await never, undefined);
  assert.equal(await unlessAborted(new Promise<string>(() => {}), signal), undefined);
  assert.equal(listeners(), 0);
});
