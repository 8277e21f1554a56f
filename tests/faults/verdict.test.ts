/** The judge judged: a suite whose verdict cannot fail proves nothing. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { type Arrival, complaints, type ExpectedEvent, judge } from "./verdict.ts";

const EXPECTED: readonly ExpectedEvent[] = [1, 2, 3, 4, 5].map((n) => ({
  id: `0/A-${n}`,
  text: `row ${n}`,
  label: `row ${n}`,
}));

function arrival(n: number, id: string | undefined = `0/A-${n}`): Arrival {
  return { id, text: `row ${n}` };
}

test("all in order, with repeats of what came before", () => {
  const verdict = judge(EXPECTED, [1, 2, 3, 2, 3, 4, 1, 5].map((n) => arrival(n)));
  assert.deepEqual(complaints("mqtt", verdict), []);
  assert.deepEqual([verdict.delivered, verdict.repeats], [5, 3]);
});

test("one missing in the middle, one at the end, all", () => {
  assert.deepEqual(judge(EXPECTED, [1, 2, 4, 5].map((n) => arrival(n))).missing, ["row 3"]);
  assert.deepEqual(judge(EXPECTED, [1, 2, 3, 4].map((n) => arrival(n))).missing, ["row 5"]);
  const none = judge(EXPECTED, []);
  assert.equal(none.missing.length, 5);
  assert.equal(complaints("amqp", none).length, 1);
  assert.match(complaints("amqp", none)[0]!, /^amqp: 5 of 5 events missing:\n {4}row 1/);
});

test("a first delivery that comes late", () => {
  const verdict = judge(EXPECTED, [1, 2, 4, 3, 5].map((n) => arrival(n)));
  assert.deepEqual(verdict.reordered, ["row 3 after row 4"]);
  assert.deepEqual(verdict.missing, []);
  assert.equal(complaints("redis", verdict).length, 1);
});

test("a repeat with another id, which is no repeat to its consumer", () => {
  const verdict = judge(EXPECTED, [...[1, 2, 3, 4, 5].map((n) => arrival(n)), arrival(2, "0/B-2")]);
  assert.deepEqual(verdict.conflicting, ["row 2 with id 0/B-2 instead of 0/A-2"]);
  assert.equal(complaints("amqp", verdict).length, 1);
});

test("two events under one id", () => {
  const verdict = judge(EXPECTED, [1, 2, 3, 4].map((n) => arrival(n)).concat(arrival(5, "0/A-4")));
  assert.deepEqual(verdict.conflicting, ["id 0/A-4 with another message than row 4"]);
  assert.deepEqual(verdict.missing, ["row 5"]);
});

test("what was never committed", () => {
  const verdict = judge(EXPECTED, [...[1, 2, 3, 4, 5].map((n) => arrival(n)), arrival(6)]);
  assert.deepEqual(verdict.foreign, ["0/A-6 row 6"]);
});

test("without ids, by what the messages say", () => {
  const withoutIds = (...rows: number[]) => rows.map((n) => ({ id: undefined, text: `row ${n}` }));
  assert.deepEqual(complaints("redis", judge(EXPECTED, withoutIds(1, 2, 2, 3, 4, 3, 5))), []);
  assert.deepEqual(judge(EXPECTED, withoutIds(2, 1, 3, 4, 5)).reordered, ["row 1 after row 2"]);
  assert.deepEqual(judge(EXPECTED, withoutIds(1, 2, 3, 5)).missing, ["row 4"]);
  assert.deepEqual(judge(EXPECTED, withoutIds(1, 2, 3, 4, 5, 6)).foreign, [" row 6"]);
});

test("only what the broker acknowledged is excused, and it is counted", () => {
  const verdict = judge(EXPECTED, [1, 3, 5].map((n) => arrival(n)), { excused: ({ id }) => id === "0/A-2" });
  assert.deepEqual(verdict.missing, ["row 4"]);
  assert.equal(verdict.lostByBroker, 1);
  assert.equal(complaints("mqtt", verdict).length, 1);
});

test("ids that are not unique are an error of the suite", () => {
  assert.throws(() => judge([EXPECTED[0]!, EXPECTED[0]!], []), /same id/);
});
