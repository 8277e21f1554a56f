import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { ChannelRejectedError } from "../../src/core/errors.ts";
import { until } from "../support/wait.ts";
import { HurriedTimers } from "./hurried_timers.ts";
import { LaneHarness, type ScriptedSession, settle } from "./scripted_upstream.ts";

type Step =
  | { readonly kind: "push"; readonly count: number }
  | { readonly kind: "acknowledge" | "refuse"; readonly which: number }
  | { readonly kind: "acknowledge all" | "lose" | "reject channel" | "wait" };

const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 3, arbitrary: fc.record({ kind: fc.constant("push" as const), count: fc.integer({ min: 1, max: 6 }) }) },
  { weight: 6, arbitrary: fc.record({ kind: fc.constant("acknowledge" as const), which: fc.nat(20) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("refuse" as const), which: fc.nat(20) }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("acknowledge all" as const) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("lose" as const) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("reject channel" as const) }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant("wait" as const) }) },
);

interface Scenario {
  readonly maxInFlight: number;
  readonly onReject: "stop" | "drop";
  /** Whether the steps run without the lane getting a turn in between. */
  readonly breathless: boolean;
  /** Events whose number divides by it are acknowledged within publish; 0: none. */
  readonly atOnce: number;
  readonly steps: readonly Step[];
}

const scenario: fc.Arbitrary<Scenario> = fc.record({
  maxInFlight: fc.integer({ min: 1, max: 7 }),
  onReject: fc.constantFrom("stop" as const, "drop" as const),
  breathless: fc.boolean(),
  atOnce: fc.constantFrom(0, 0, 2, 3),
  steps: fc.array(step, { maxLength: 60 }),
});

/** Follows what the lane publishes and what became of it. */
class Observer {
  readonly #harness: LaneHarness;
  readonly faults: string[] = [];
  readonly acknowledged = new Set<string>();
  pushed = 0;
  #highest = -1;

  constructor(harness: LaneHarness, atOnce: number) {
    this.#harness = harness;
    harness.upstream.onBeforePublish = ({ event }, session) => this.#check(event.id, session);
    harness.upstream.onPublish = ({ event: { id } }, session) => {
      if (atOnce > 0 && Number(id) % atOnce === 0) this.acknowledge(session, id);
    };
  }

  push(count: number): void {
    for (let i = 0; i < count; i++) this.#harness.push(String(this.pushed++));
  }

  acknowledge(session: ScriptedSession, id: string): void {
    if (!session.lost) this.acknowledged.add(id);
    session.acknowledge(id);
  }

  /** Nothing is sent while an earlier event is neither settled nor with the same session. */
  #check(id: string, session: ScriptedSession): void {
    const number = Number(id);
    const withSession = new Set(session.unansweredIds);
    for (let earlier = 0; earlier < number; earlier++) {
      const settled = this.#harness.completions.get(String(earlier))!.released > 0;
      if (!settled && !withSession.has(String(earlier))) this.faults.push(`${id} overtook ${earlier}`);
    }
    if (this.#harness.completions.get(id)!.released > 0) this.faults.push(`${id} was sent after it was settled`);
    if (number > this.#highest + 1) this.faults.push(`${id} was first sent after ${this.#highest}`);
    this.#highest = Math.max(this.#highest, number);
  }
}

function perform(step: Step, session: ScriptedSession | undefined, observer: Observer): void {
  if (step.kind === "push") return observer.push(step.count);
  if (session === undefined || session.lost) return;
  const unanswered = session.unansweredIds;
  switch (step.kind) {
    case "acknowledge": {
      const id = unanswered[step.which % unanswered.length];
      if (id !== undefined) observer.acknowledge(session, id);
      break;
    }
    case "refuse": {
      const id = unanswered[step.which % unanswered.length];
      if (id !== undefined) session.refuse(id);
      break;
    }
    case "acknowledge all":
      for (const id of unanswered) observer.acknowledge(session, id);
      break;
    case "lose":
      session.lose();
      break;
    case "reject channel":
      session.lose(new ChannelRejectedError("rejected"));
      break;
  }
}

async function play({ maxInFlight, onReject, breathless, atOnce, steps }: Scenario): Promise<void> {
  const harness = new LaneHarness({ maxInFlight, onReject, maxInFlightBytes: 2000 });
  const observer = new Observer(harness, atOnce);
  const running = harness.run();
  await harness.session(1);
  for (const step of steps) {
    perform(step, harness.upstream.sessions.at(-1), observer);
    if (!breathless || step.kind === "wait") await settle();
  }
  await until(() => {
    const session = harness.upstream.sessions.at(-1)!;
    if (!session.lost) { for (const id of session.unansweredIds) observer.acknowledge(session, id); }
    return harness.lane.waiting === 0;
  }, {
    what: () => `the lane to be empty; ${harness.lane.waiting} wait, ${harness.lane.inFlight} are in flight`,
    intervalMs: 1,
    timeoutMs: 10_000,
  });
  await harness.lane.drained(new AbortController().signal);
  await harness.stop();
  await running;
  assert.deepEqual(observer.faults, []);
  assert.deepEqual(harness.upstream.breaches, []);
  const { lane, completions } = harness;
  assert.deepEqual([lane.inFlight, lane.bytes, lane.congested], [0, 0, false]);
  for (const [id, { retained, released }] of completions) assert.deepEqual([retained, released], [1, 1], id);
  assert.equal(lane.counts.delivered + lane.counts.dropped, observer.pushed);
  if (onReject === "stop") assert.equal(observer.acknowledged.size, observer.pushed, "each was acknowledged");
}

test("whatever the upstream does, every event is settled once, none is overtaken, and the window is kept", async () => {
  using _timers = new HurriedTimers();
  await fc.assert(fc.asyncProperty(scenario, play), { numRuns: 150 });
});
