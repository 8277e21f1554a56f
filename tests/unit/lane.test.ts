import assert from "node:assert/strict";
import { test } from "node:test";
import { PermanentError, TransientError } from "../../src/core/errors.ts";
import { until } from "../support/wait.ts";
import { HurriedTimers } from "./hurried_timers.ts";
import { CountedCompletion, type HarnessOptions, LaneHarness, makeEvent, settle, TARGET } from "./scripted_upstream.ts";

const ids = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, i) => `e${from + i}`);

/** Runs `body` with a lane that is connected, and checks the contract of the session at the end. */
function laneTest(what: string, options: HarnessOptions, body: (harness: LaneHarness) => Promise<void>): void {
  test(what, async () => {
    using _timers = new HurriedTimers();
    const harness = new LaneHarness(options);
    const running = harness.run();
    try {
      await body(harness);
    } finally {
      await harness.stop();
      await running;
    }
    assert.deepEqual(harness.upstream.breaches, []);
    for (const [id, { retained, released }] of harness.completions) {
      assert.equal(retained, 1, `${id} was retained ${retained} times`);
      assert.ok(released <= 1, `${id} was released ${released} times`);
    }
  });
}

laneTest("events go out in order, as many as the window holds, with one flush each time", {}, async (harness) => {
  const session = await harness.session(1);
  harness.push(...ids(1, 7));
  await harness.unanswered(session, "e1", "e2", "e3");
  assert.equal(session.flushes, 1);
  assert.deepEqual([harness.lane.inFlight, harness.lane.waiting], [3, 7]);
  session.acknowledge("e1");
  await harness.unanswered(session, "e2", "e3", "e4");
  session.acknowledge("e2", "e3");
  await harness.unanswered(session, "e4", "e5", "e6");
  assert.equal(session.flushes, 3);
  session.acknowledgeAll();
  await harness.unanswered(session, "e7");
  session.acknowledgeAll();
  assert.deepEqual(session.ids, ids(1, 7));
  assert.deepEqual(harness.released, ids(1, 7));
  assert.deepEqual(harness.lane.counts, { delivered: 7, resent: 0, dropped: 0, connections: 1 });
  assert.deepEqual([harness.lane.inFlight, harness.lane.waiting, harness.lane.bytes], [0, 0, 0]);
});

laneTest("events that were pushed before the connection wait for it", {}, async (harness) => {
  harness.push("e1", "e2");
  const session = await harness.session(1);
  await harness.unanswered(session, "e1", "e2");
});

laneTest("acknowledgements out of order each make room", {}, async (harness) => {
  const session = await harness.session(1);
  harness.push(...ids(1, 6));
  await harness.unanswered(session, "e1", "e2", "e3");
  session.acknowledge("e3");
  await harness.unanswered(session, "e1", "e2", "e4");
  session.acknowledge("e2");
  await harness.unanswered(session, "e1", "e4", "e5");
  assert.deepEqual(harness.released, ["e2", "e3"]);
  assert.equal(harness.lane.waiting, 6, "the first holds back all that follow from being forgotten");
  session.acknowledge("e1");
  await harness.unanswered(session, "e4", "e5", "e6");
  session.acknowledgeAll();
  assert.equal(harness.lane.waiting, 0);
});

laneTest("after a loss what is not acknowledged is sent again, in its old order, and nothing else", {
  maxInFlight: 5,
}, async (harness) => {
  const first = await harness.session(1);
  harness.push(...ids(1, 8));
  await harness.unanswered(first, ...ids(1, 5));
  first.acknowledge("e1", "e3");
  await harness.unanswered(first, "e2", "e4", "e5", "e6", "e7");
  first.lose();
  assert.equal(harness.lane.ready, false);
  const second = await harness.session(2);
  await harness.unanswered(second, "e2", "e4", "e5", "e6", "e7");
  assert.equal(harness.lane.ready, true);
  assert.deepEqual(harness.lane.counts, { delivered: 2, resent: 5, dropped: 0, connections: 2 });
  second.acknowledgeAll();
  await harness.unanswered(second, "e8");
  second.acknowledgeAll();
  assert.deepEqual(harness.released, ids(1, 8));
});

laneTest("what an old session says later is ignored", {}, async (harness) => {
  const first = await harness.session(1);
  harness.push(...ids(1, 4));
  await harness.unanswered(first, "e1", "e2", "e3");
  first.lose();
  const second = await harness.session(2);
  await harness.unanswered(second, "e1", "e2", "e3");
  first.acknowledge("e1");
  first.refuse("e2");
  await settle();
  assert.deepEqual(harness.released, []);
  assert.equal(harness.lane.ready, true);
  second.acknowledgeAll();
  await harness.unanswered(second, "e4");
  assert.deepEqual(harness.released, ["e1", "e2", "e3"]);
});

laneTest("a delivery that is answered twice counts once", {}, async (harness) => {
  const session = await harness.session(1);
  harness.push("e1");
  await harness.unanswered(session, "e1");
  const [delivery] = session.published;
  session.acknowledge("e1");
  delivery!.acknowledge(session);
  delivery!.refuse(session, "too late");
  assert.equal(harness.lane.counts.delivered, 1);
  assert.equal(harness.lane.inFlight, 0);
  assert.equal(harness.lane.ready, true);
});

laneTest(
  "a session that is lost again and again resends the same events and loses none",
  { maxInFlight: 2 },
  async (harness) => {
    harness.push(...ids(1, 6));
    for (let number = 1; number <= 6; number++) {
      const session = await harness.session(number);
      await until(() => session.unanswered.size > 0, { what: "an event", intervalMs: 1 });
      session.acknowledge(`e${number}`);
      session.lose();
    }
    await until(() => harness.released.length === 6, { what: "all events", intervalMs: 1 });
    assert.deepEqual(harness.released, ids(1, 6));
  },
);

laneTest("a session that acknowledges within publish keeps order and window", {}, async (harness) => {
  const session = await harness.session(1);
  harness.upstream.onPublish = (delivery, session) => session.acknowledge(delivery.event.id);
  const many = ids(1, 20_000);
  harness.push(...many);
  await until(() => harness.lane.waiting === 0, { what: "all events", intervalMs: 1 });
  assert.deepEqual(session.ids, many);
  assert.equal(harness.lane.counts.delivered, many.length);
});

laneTest("a session that acknowledges every other event within publish loses none", {}, async (harness) => {
  const session = await harness.session(1);
  harness.upstream.onPublish = ({ event: { id } }, session) => {
    if (Number(id.slice(1)) % 2 === 0) session.acknowledge(id);
    else queueMicrotask(() => session.acknowledge(id));
  };
  const many = ids(1, 20_000);
  harness.push(...many);
  await until(() => harness.lane.waiting === 0, { what: "all events", intervalMs: 1 });
  assert.deepEqual(session.ids, many);
});

laneTest("a session that is lost within publish is neither used nor flushed again", {}, async (harness) => {
  await harness.session(1);
  let losses = 0;
  harness.upstream.onPublish = ({ event }, session) => {
    if (event.id === "e2" && losses++ === 0) session.lose();
  };
  harness.push("e1", "e2", "e3");
  const second = await harness.session(2);
  await harness.unanswered(second, "e1", "e2", "e3");
  assert.deepEqual(harness.upstream.sessions[0]!.ids, ["e1", "e2"]);
});

laneTest("a session that is lost before the lane has it is given up", {}, async (harness) => {
  await harness.session(1);
  harness.upstream.onConnect = (session) => {
    if (harness.upstream.sessions.length < 4) session.lose();
  };
  harness.push("e1");
  harness.upstream.sessions[0]!.lose();
  const session = await harness.session(4);
  await harness.unanswered(session, "e1");
  assert.equal(harness.lane.ready, true);
  assert.equal(harness.log.texts.filter((text) => text.includes("is back after")).length, 1);
});

laneTest(
  "the memory bound congests the lane until a quarter of it is free",
  { maxInFlightBytes: 4 * 1400 },
  async (harness) => {
    const { lane } = harness;
    const session = await harness.session(1);
    const push = (id: string) => lane.push(makeEvent(id, 1000), TARGET, new CountedCompletion());
    const reliefs: string[] = [];
    for (const id of ids(1, 3)) push(id);
    assert.equal(lane.congested, false);
    push("e4");
    assert.equal(lane.congested, true);
    lane.onRelief(() => reliefs.push("first"));
    lane.onRelief(() => reliefs.push("second"));
    await harness.unanswered(session, "e1", "e2", "e3");
    session.acknowledge("e1");
    assert.deepEqual([lane.congested, reliefs], [true, []], "three quarters are still held");
    session.acknowledge("e2");
    assert.deepEqual([lane.congested, reliefs], [false, ["first", "second"]]);
    await harness.unanswered(session, "e3", "e4");
    session.acknowledgeAll();
    assert.equal(reliefs.length, 2, "a listener is called once");
  },
);

laneTest(
  "an event larger than the bound congests the lane and passes alone",
  { maxInFlightBytes: 100 },
  async (harness) => {
    const session = await harness.session(1);
    harness.push("e1");
    assert.equal(harness.lane.congested, true);
    await harness.unanswered(session, "e1");
    session.acknowledge("e1");
    assert.equal(harness.lane.congested, false);
  },
);

laneTest("drained waits for the last acknowledgement, or for its signal", {}, async (harness) => {
  const session = await harness.session(1);
  await harness.lane.drained(new AbortController().signal);
  harness.push("e1", "e2");
  await harness.unanswered(session, "e1", "e2");
  let drained = false;
  const waiting = harness.lane.drained(new AbortController().signal).then(() => drained = true);
  session.acknowledge("e2");
  await settle();
  assert.equal(drained, false);
  session.acknowledge("e1");
  await waiting;
  harness.push("e3");
  const deadline = new AbortController();
  const aborted = harness.lane.drained(deadline.signal);
  deadline.abort();
  await aborted;
});

laneTest("the lane is drained by what a loss had already settled", {}, async (harness) => {
  const session = await harness.session(1);
  harness.push("e1", "e2");
  await harness.unanswered(session, "e1", "e2");
  const drained = harness.lane.drained(new AbortController().signal);
  session.acknowledge("e1");
  session.lose();
  const second = await harness.session(2);
  await harness.unanswered(second, "e2");
  second.acknowledge("e2");
  await drained;
});

test("what cannot connect is tried again, and the first attempt is reported however it ended", async () => {
  using _timers = new HurriedTimers();
  const harness = new LaneHarness();
  harness.upstream.connectErrors.push(
    new TransientError("refused"),
    new Error("any other"),
    new TransientError("again"),
  );
  harness.run();
  await harness.attempted.promise;
  assert.equal(harness.upstream.attempts, 1);
  assert.equal(harness.lane.ready, false);
  await harness.session(1);
  assert.equal(harness.upstream.attempts, 4);
  await until(() => harness.lane.ready, { what: "readiness", intervalMs: 1 });
  assert.deepEqual(harness.log.texts.map((text) => text.replace(/after [\d.]+ s/, "after N s")), [
    'test upstream "scripted" is not available: refused; retrying',
    'test upstream "scripted" is back after N s; 0 events are sent again or wait',
  ]);
  await harness.stop();
});

test("a permanent fault before any session is thrown", async () => {
  using _timers = new HurriedTimers();
  const harness = new LaneHarness();
  harness.upstream.connectErrors.push(new PermanentError("no such exchange"));
  await assert.rejects(harness.run(), /no such exchange/);
  assert.equal(harness.upstream.attempts, 1);
});

laneTest("a permanent fault after a good start is retried like any other", {}, async (harness) => {
  const first = await harness.session(1);
  harness.upstream.connectErrors.push(new PermanentError("login refused"), new PermanentError("login refused"));
  harness.push("e1");
  first.lose();
  const second = await harness.session(2);
  assert.equal(harness.upstream.attempts, 4);
  await harness.unanswered(second, "e1");
});

test("a stop while connecting closes the session that comes too late", async () => {
  const harness = new LaneHarness();
  const gate = Promise.withResolvers<void>();
  harness.upstream.gate = gate.promise;
  harness.push("e1");
  const running = harness.run();
  await until(() => harness.upstream.attempts === 1, { what: "an attempt", intervalMs: 1 });
  harness.abort();
  gate.resolve();
  await running;
  const [session] = harness.upstream.sessions;
  assert.deepEqual([session?.closed, session?.ids], [true, []]);
  assert.equal(harness.lane.ready, false);
});

test("after the stop nothing more is published, though the session is open until it is closed", async () => {
  const harness = new LaneHarness();
  const running = harness.run();
  const session = await harness.session(1);
  harness.push(...ids(1, 5));
  await harness.unanswered(session, "e1", "e2", "e3");
  harness.abort();
  await running;
  session.acknowledge("e1");
  await settle();
  assert.deepEqual(session.ids, ["e1", "e2", "e3"]);
  assert.deepEqual(harness.released, ["e1"], "acknowledgements still count");
  await harness.lane.close(0);
  assert.equal(session.closed, true);
  assert.deepEqual(harness.upstream.breaches, []);
});

test("readiness is told whenever it changes", async () => {
  using _timers = new HurriedTimers();
  const harness = new LaneHarness();
  harness.run();
  const first = await harness.session(1);
  await until(() => harness.lane.ready, { what: "readiness", intervalMs: 1 });
  first.lose();
  await harness.session(2);
  await until(() => harness.lane.ready, { what: "readiness", intervalMs: 1 });
  assert.deepEqual(harness.readiness, [true, false, true]);
  await harness.stop();
});

/** The pauses, in milliseconds, that the lane asked for between `sessions` sessions, each lost by `lose`. */
async function pausesBetween(sessions: number, acknowledge: boolean): Promise<{ pausesMs: number[]; lines: string[] }> {
  using timers = new HurriedTimers();
  const harness = new LaneHarness();
  harness.run();
  for (let number = 1; number <= sessions; number++) {
    const session = await harness.session(number);
    if (acknowledge) {
      harness.push(`e${number}`);
      await harness.unanswered(session, `e${number}`);
      session.acknowledgeAll();
    }
    await until(() => harness.lane.ready, { what: "readiness", intervalMs: 1 });
    session.lose();
  }
  await harness.session(sessions + 1);
  await harness.stop();
  return { pausesMs: timers.requestedMs, lines: harness.log.texts };
}

test("an upstream that ends every session at once is called less and less often, and told of in a few lines", async () => {
  const { pausesMs, lines } = await pausesBetween(20, false);
  assert.ok(pausesMs.slice(-5).every((ms) => ms >= 1000), `pauses at the end: ${pausesMs.slice(-5).join(", ")}`);
  assert.ok(lines.length <= 11, `${lines.length} lines for 20 losses`);
});

test("an upstream that had acknowledged something is called again at once", async () => {
  const { pausesMs } = await pausesBetween(10, true);
  assert.ok(pausesMs.every((ms) => ms <= 100), `pauses: ${pausesMs.join(", ")}`);
});
