import assert from "node:assert/strict";
import { test } from "node:test";
import { describeFault, planSoak } from "./soak_plan.ts";

const HOUR_MS = 3_600_000;

test("the same seed gives the same faults at the same times, another seed others", () => {
  assert.deepEqual(planSoak(7, HOUR_MS), planSoak(7, HOUR_MS));
  assert.notDeepEqual(planSoak(7, HOUR_MS), planSoak(8, HOUR_MS));
  assert.deepEqual(planSoak(7, HOUR_MS).filter(({ atMs }) => atMs < HOUR_MS / 2), planSoak(7, HOUR_MS / 2));
});

test("every kind of fault comes up, at every place, in order", () => {
  const plan = planSoak(1, HOUR_MS);
  const kinds = new Set(plan.map(({ fault }) => fault.kind));
  assert.equal(kinds.size, 19);
  const cut = plan.filter(({ fault }) => fault.kind === "connections cut").map(({ fault }) => describeFault(fault));
  assert.deepEqual([...new Set(cut)].sort(), [
    "connections cut (amqp)",
    "connections cut (mqtt)",
    "connections cut (postgres)",
    "connections cut (redis)",
  ]);
  assert.deepEqual(plan.map(({ atMs }) => atMs), plan.map(({ atMs }) => atMs).sort((a, b) => a - b));
});
