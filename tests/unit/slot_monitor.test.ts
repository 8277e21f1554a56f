import assert from "node:assert/strict";
import { test } from "node:test";
import { durationText, type SlotReading, timeUntilLostMs } from "../../src/sources/slot_monitor.ts";

function reading(atMs: number, walPosition: number, safeBytes: number | undefined): SlotReading {
  return { atMs, walPosition, safeBytes, retainedBytes: 0, lagBytes: 0, walStatus: "reserved" };
}

const TABLE: Array<[what: string, previous: SlotReading | undefined, now: SlotReading, leftMs: number | undefined]> = [
  ["a steady rate", reading(0, 1000, 9000), reading(1000, 2000, 8000), 8000],
  ["nothing left", reading(0, 1000, 9000), reading(1000, 2000, 0), 0],
  ["a limit that is passed", reading(0, 1000, 9000), reading(1000, 2000, -500), 0],
  ["no earlier reading", undefined, reading(0, 0, 100), undefined],
  ["no limit", reading(0, 0, undefined), reading(1000, 1000, undefined), undefined],
  ["nothing written", reading(0, 1000, 100), reading(1000, 1000, 100), undefined],
  ["a server that was restored to an earlier position", reading(0, 1000, 100), reading(1000, 500, 100), undefined],
  ["two readings at once", reading(5, 0, 100), reading(5, 50, 100), 2],
];

for (const [what, previous, now, leftMs] of TABLE) {
  test(`the time until a slot is lost, with ${what}`, () => {
    assert.equal(timeUntilLostMs(previous, now), leftMs);
  });
}

test("durations are told in the unit that fits", () => {
  const told = [0, 999, 89_999, 90_000, 5_399_999, 5_400_000, 86_400_000].map(durationText);
  assert.deepEqual(told, ["0 s", "1 s", "90 s", "2 min", "90 min", "2 h", "24 h"]);
});
