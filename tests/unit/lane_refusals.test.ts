import assert from "node:assert/strict";
import { test } from "node:test";
import { ChannelRejectedError, SilentEndError, TransientError } from "../../src/core/errors.ts";
import { until } from "../support/wait.ts";
import { HurriedTimers } from "./hurried_timers.ts";
import { type HarnessOptions, LaneHarness, type ScriptedSession, settle } from "./scripted_upstream.ts";

const ids = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, i) => `e${from + i}`);
const REJECTED = () => new ChannelRejectedError("NOT_FOUND - no exchange");

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
    for (const [id, { released }] of harness.completions) assert.ok(released <= 1, `${id}: ${released} releases`);
  });
}

laneTest(
  "a refused event is held: nothing overtakes it, it goes first and alone, and then all goes on",
  {},
  async (harness) => {
    const session = await harness.session(1);
    harness.push(...ids(1, 7));
    await harness.unanswered(session, "e1", "e2", "e3");
    session.refuse("e2");
    assert.equal(harness.lane.ready, false);
    session.acknowledge("e1");
    await settle();
    assert.deepEqual(session.unansweredIds, ["e3"], "the window is answered first");
    session.acknowledge("e3");
    await harness.unanswered(session, "e2");
    assert.equal(harness.lane.ready, true);
    session.refuse("e2", "it is still too large");
    await harness.unanswered(session, "e2");
    assert.deepEqual(harness.released, ["e1", "e3"]);
    session.acknowledge("e2");
    await harness.unanswered(session, "e4", "e5", "e6");
    assert.deepEqual(session.ids, ["e1", "e2", "e3", "e2", "e2", "e4", "e5", "e6"]);
    assert.equal(harness.lane.counts.dropped, 0);
    assert.match(
      harness.log.texts[0]!,
      /event e2 for topic:t was refused: it is too large; it is held and tried again/,
    );
    assert.match(harness.log.texts[1]!, /delivery to test upstream "scripted" is back/);
  },
);

laneTest("several refused events go again one at a time, in order", {}, async (harness) => {
  const session = await harness.session(1);
  harness.push(...ids(1, 5));
  await harness.unanswered(session, "e1", "e2", "e3");
  session.refuse("e3");
  session.refuse("e1");
  session.refuse("e2");
  await harness.unanswered(session, "e1");
  session.acknowledge("e1");
  await harness.unanswered(session, "e2");
  session.acknowledge("e2");
  await harness.unanswered(session, "e3");
  session.acknowledge("e3");
  await harness.unanswered(session, "e4", "e5");
});

laneTest("an event that is refused within publish is not overtaken", { maxInFlight: 5 }, async (harness) => {
  const session = await harness.session(1);
  let refusals = 0;
  harness.upstream.onPublish = ({ event }, session) => {
    if (event.id === "e2" && refusals++ < 2) session.refuse("e2");
  };
  harness.push(...ids(1, 4));
  await harness.unanswered(session, "e1");
  session.acknowledge("e1");
  await harness.unanswered(session, "e2");
  session.acknowledge("e2");
  await harness.unanswered(session, "e3", "e4");
  assert.deepEqual(session.ids, ["e1", "e2", "e2", "e2", "e3", "e4"]);
});

laneTest(
  "with on_reject=drop a refused event is counted, logged with its id and let go",
  { onReject: "drop" },
  async (harness) => {
    const session = await harness.session(1);
    harness.push(...ids(1, 5));
    await harness.unanswered(session, "e1", "e2", "e3");
    session.refuse("e2");
    await harness.unanswered(session, "e1", "e3", "e4");
    assert.equal(harness.lane.ready, true);
    session.acknowledgeAll();
    await harness.unanswered(session, "e5");
    session.acknowledgeAll();
    assert.deepEqual(harness.released, ids(1, 5));
    assert.deepEqual(harness.lane.counts, { delivered: 4, resent: 0, dropped: 1, connections: 1 });
    assert.deepEqual(harness.log.lines, [{
      level: "error",
      text: 'test upstream "scripted" refused event e2 for topic:t: it is too large; dropped, as on_reject=drop says',
    }]);
  },
);

laneTest(
  "with on_reject=drop events that are refused within publish are let go in one pass",
  { onReject: "drop" },
  async (harness) => {
    const session = await harness.session(1);
    harness.upstream.onPublish = ({ event }, session) => {
      if (Number(event.id.slice(1)) % 3 !== 0) session.refuse(event.id);
      else session.acknowledge(event.id);
    };
    harness.push(...ids(1, 3000));
    await until(() => harness.lane.waiting === 0, { what: "all events", intervalMs: 1 });
    assert.deepEqual([harness.lane.counts.delivered, harness.lane.counts.dropped], [1000, 2000]);
    assert.deepEqual(session.ids, ids(1, 3000));
  },
);

laneTest("a loss while an event is held resends it first", {}, async (harness) => {
  const first = await harness.session(1);
  harness.push(...ids(1, 5));
  await harness.unanswered(first, "e1", "e2", "e3");
  first.refuse("e1");
  first.acknowledge("e2");
  first.lose();
  const second = await harness.session(2);
  await harness.unanswered(second, "e1");
  second.acknowledge("e1");
  await harness.unanswered(second, "e3");
  second.acknowledge("e3");
  await harness.unanswered(second, "e4", "e5");
  second.acknowledgeAll();
  assert.deepEqual(harness.released, ids(1, 5));
  assert.equal(harness.lane.ready, true);
});

laneTest("a loss after the window was answered, while the held event pauses, resends it first", {}, async (harness) => {
  const first = await harness.session(1);
  harness.push("e1", "e2");
  await harness.unanswered(first, "e1", "e2");
  first.acknowledge("e2");
  first.refuse("e1");
  first.lose();
  const second = await harness.session(2);
  await harness.unanswered(second, "e1");
  assert.equal(harness.lane.ready, true);
});

test("a held event is not sent again after the stop", async () => {
  const harness = new LaneHarness();
  const running = harness.run();
  const session = await harness.session(1);
  harness.push("e1");
  await harness.unanswered(session, "e1");
  session.refuse("e1");
  harness.abort();
  await running;
  await settle();
  assert.deepEqual(session.ids, ["e1"]);
  assert.equal(harness.lane.ready, false);
  await harness.lane.close(0);
  assert.deepEqual(harness.upstream.breaches, []);
});

/** Answers like a broker that ends the channel whenever `poison` reaches it. */
function poisoned(harness: LaneHarness, poison: string, cause: () => Error): void {
  harness.upstream.onPublish = (_delivery, session) => queueMicrotask(() => answer(session));
  const answer = (session: ScriptedSession) => {
    for (const id of session.unansweredIds) {
      if (session.lost) return;
      if (id === poison) return session.lose(cause());
      session.acknowledge(id);
    }
  };
}

laneTest(
  "an event that ends the channel is found and held, and nothing overtakes it",
  { maxInFlight: 5 },
  async (harness) => {
    poisoned(harness, "e4", REJECTED);
    harness.push(...ids(1, 8));
    await until(() => harness.log.texts.some((text) => text.includes("event e4 for topic:t was refused")), {
      what: "e4 to be found",
      intervalMs: 1,
    });
    const found = harness.upstream.sessions.length;
    await harness.session(found + 2);
    const after = harness.upstream.sessions.slice(found);
    assert.ok(after.every((session) => session.ids.every((id) => id === "e4")), "it goes first and alone");
    assert.deepEqual(harness.released, ["e1", "e2", "e3"]);
    assert.ok(!harness.log.texts.some((text) => /event e[^4]/.test(text)), harness.log.texts.join("\n"));
    harness.upstream.onPublish = (delivery, session) => queueMicrotask(() => session.acknowledge(delivery.event.id));
    await until(() => harness.released.length === 8, { what: "all events", intervalMs: 1 });
  },
);

laneTest("an event that ends the channel is found and dropped, and the window opens again", {
  maxInFlight: 5,
  onReject: "drop",
}, async (harness) => {
  poisoned(harness, "e4", REJECTED);
  harness.push(...ids(1, 8));
  await until(() => harness.lane.waiting === 0, { what: "all events", intervalMs: 1 });
  assert.equal(harness.lane.counts.dropped, 1);
  assert.deepEqual(harness.released, ids(1, 8));
  harness.upstream.onPublish = () => {};
  harness.push(...ids(9, 15));
  const last = harness.upstream.sessions.at(-1)!;
  await harness.unanswered(last, ...ids(9, 13));
});

laneTest("a rejected channel whose offender is not alone makes the lane send one at a time, blaming none", {
  maxInFlight: 3,
  onReject: "drop",
}, async (harness) => {
  harness.push(...ids(1, 5));
  const first = await harness.session(1);
  await harness.unanswered(first, "e1", "e2", "e3");
  first.lose(REJECTED());
  const second = await harness.session(2);
  await harness.unanswered(second, "e1");
  second.acknowledge("e1");
  await harness.unanswered(second, "e2");
  second.acknowledge("e2");
  await harness.unanswered(second, "e3");
  second.acknowledge("e3");
  await harness.unanswered(second, "e4", "e5");
  assert.equal(harness.lane.counts.dropped, 0);
});

/** Loses `count` sessions in turn, each with an event in flight; returns what each held. */
async function loseSessions(
  harness: LaneHarness,
  from: number,
  count: number,
  cause: () => Error = () => new SilentEndError("the server closed it"),
): Promise<string[]> {
  const held: string[] = [];
  for (let number = from; number < from + count; number++) {
    const session = await harness.session(number);
    await until(() => session.unanswered.size > 0 && session.flushed > 0, { what: "an event", intervalMs: 1 });
    held.push(session.unansweredIds.join());
    session.lose(cause());
  }
  return held;
}

laneTest("sessions that end without an acknowledgement make the lane find the event that ends them", {
  onReject: "drop",
  silentRefusalMs: 0,
}, async (harness) => {
  harness.push(...ids(1, 4));
  assert.deepEqual(await loseSessions(harness, 1, 3), ["e1,e2,e3", "e1,e2,e3", "e1,e2,e3"]);
  assert.deepEqual(await loseSessions(harness, 4, 3), ["e1", "e1", "e1"], "three times alone before it is blamed");
  await until(() => harness.lane.counts.dropped === 1, { what: "e1 to be dropped", intervalMs: 1 });
  assert.deepEqual(harness.released, ["e1"]);
  const session = await harness.session(7);
  await harness.unanswered(session, "e2");
  session.acknowledge("e2");
  await harness.unanswered(session, "e3");
  session.acknowledge("e3");
  await harness.unanswered(session, "e4");
});

laneTest("an acknowledgement clears the suspicion", { onReject: "drop" }, async (harness) => {
  harness.push(...ids(1, 10));
  await loseSessions(harness, 1, 2);
  const third = await harness.session(3);
  await harness.unanswered(third, "e1", "e2", "e3");
  third.acknowledge("e1");
  third.lose();
  assert.deepEqual(await loseSessions(harness, 4, 3), ["e2,e3,e4", "e2,e3,e4", "e2,e3,e4"]);
  assert.deepEqual(await loseSessions(harness, 7, 1), ["e2"]);
  assert.equal(harness.lane.counts.dropped, 0);
});

laneTest(
  "a network that fails blames no event, however often",
  { onReject: "drop", silentRefusalMs: 0 },
  async (harness) => {
    harness.push(...ids(1, 4));
    const held = await loseSessions(harness, 1, 20, () => new TransientError("no answer to the heartbeat"));
    assert.deepEqual(new Set(held), new Set(["e1,e2,e3"]));
    const session = await harness.session(21);
    await harness.unanswered(session, "e1", "e2", "e3");
    assert.equal(harness.lane.counts.dropped, 0);
  },
);

laneTest(
  "a broker that ends every session at once for a while blames no event",
  { onReject: "drop" },
  async (harness) => {
    harness.push(...ids(1, 4));
    const held = await loseSessions(harness, 1, 20);
    assert.deepEqual(held.slice(3), Array.from({ length: 17 }, () => "e1"), "one at a time, to find out");
    const session = await harness.session(21);
    await harness.unanswered(session, "e1");
    session.acknowledge("e1");
    await harness.unanswered(session, "e2");
    assert.equal(harness.lane.counts.dropped, 0);
  },
);

laneTest("losses of an idle upstream blame no event", { onReject: "drop" }, async (harness) => {
  for (let number = 1; number <= 8; number++) (await harness.session(number)).lose();
  harness.push("e1", "e2");
  const session = await harness.session(9);
  await harness.unanswered(session, "e1", "e2");
  assert.equal(harness.lane.counts.dropped, 0);
});

laneTest("a single event in flight is not blamed for three losses, but for three more alone", {
  onReject: "drop",
  silentRefusalMs: 0,
}, async (harness) => {
  harness.push("e1");
  await loseSessions(harness, 1, 5);
  assert.equal(harness.lane.counts.dropped, 0);
  await loseSessions(harness, 6, 1);
  await until(() => harness.lane.counts.dropped === 1, { what: "e1 to be dropped", intervalMs: 1 });
});
