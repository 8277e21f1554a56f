import assert from "node:assert/strict";
import { test } from "node:test";
import { Routes } from "../../src/core/routes.ts";
import { CountedCompletion, LaneHarness, makeEvent } from "./scripted_upstream.ts";

test("an event goes to every binding of its channel, and to no other", () => {
  const [first, second] = [new LaneHarness(), new LaneHarness()];
  const routes = new Routes();
  routes.add("c", first.lane, { type: "topic", name: "a" });
  routes.add("c", first.lane, { type: "topic", name: "b" });
  routes.add("c", second.lane, { type: "topic", name: "a" });
  routes.add("other", second.lane, { type: "topic", name: "o" });
  const completion = new CountedCompletion();
  assert.equal(routes.emit(makeEvent("e1"), completion), 3);
  assert.deepEqual([completion.retained, first.lane.waiting, second.lane.waiting], [3, 2, 1]);
  assert.equal(routes.emit({ ...makeEvent("e2"), channel: "unbound" }, completion), 0);
  assert.deepEqual(routes.channels, ["c", "other"]);
  assert.deepEqual([routes.accepts("c"), routes.accepts("C"), routes.accepts("unbound")], [true, false, false]);
});

test("relief comes once, when no lane is congested any more, also where another became so meanwhile", async () => {
  const lanes = [new LaneHarness({ maxInFlightBytes: 1 }), new LaneHarness({ maxInFlightBytes: 1 })];
  const routes = new Routes();
  const target = { type: "topic", name: "t" };
  for (const [i, { lane }] of lanes.entries()) routes.add(`c${i}`, lane, target);
  let reliefs = 0;
  routes.onRelief(() => reliefs++);
  assert.equal(reliefs, 1, "at once where none is congested");
  const [first, second] = lanes as [LaneHarness, LaneHarness];
  first.run();
  second.run();
  first.push("e1");
  assert.equal(routes.congested, true);
  routes.onRelief(() => reliefs++);
  const sessions = [await first.session(1), await second.session(1)] as const;
  await first.unanswered(sessions[0], "e1");
  second.push("e2");
  await second.unanswered(sessions[1], "e2");
  sessions[0].acknowledge("e1");
  assert.equal(reliefs, 1);
  sessions[1].acknowledge("e2");
  assert.deepEqual([reliefs, routes.congested], [2, false]);
  await first.stop();
  await second.stop();
});
