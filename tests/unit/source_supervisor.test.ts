import assert from "node:assert/strict";
import { test } from "node:test";
import { PermanentError, StandingByError, TransientError } from "../../src/core/errors.ts";
import type { RunOptions, Source } from "../../src/core/source.ts";
import { SourceSupervisor } from "../../src/core/source_supervisor.ts";
import { HurriedTimers } from "./hurried_timers.ts";
import { LogRecorder } from "./log_recorder.ts";

/** What one run of the source does. */
type Run = (options: RunOptions) => Promise<void>;

function supervise(runs: readonly Run[]) {
  const stop = new AbortController();
  const log = new LogRecorder();
  const states: string[] = [];
  let started = 0;
  const source: Source = {
    name: "scripted",
    silence: () => undefined,
    figures: { heardAtMs: undefined, droppedEvents: 0, slot: undefined },
    run: (options) => {
      const run = runs[started++];
      if (run !== undefined) return run(options);
      stop.abort();
      return Promise.resolve();
    },
  };
  const supervisor: SourceSupervisor = new SourceSupervisor(source, log.logger, () => {
    states.push(supervisor.open ? "open" : "closed");
  });
  const done = supervisor.run(stop.signal, new AbortController().signal);
  return { supervisor, done, log, states, starts: () => started };
}

const lostAfterOpening: Run = (options) => {
  options.onOpen();
  return Promise.reject(new TransientError("lost"));
};
const failing = (error: Error): Run => () => Promise.reject(error);

test("a source is started again whenever its connection is lost, and told of when it is back", async () => {
  using _timers = new HurriedTimers();
  const { done, log, states, starts } = supervise([
    lostAfterOpening,
    failing(new TransientError("refused")),
    failing(new Error("anything else")),
    (options) => Promise.resolve(options.onOpen()).then(() => Promise.reject(new PermanentError("slot lost"))),
  ]);
  await done;
  assert.equal(starts(), 5);
  assert.deepEqual(states, ["open", "closed", "closed", "closed", "open", "closed"]);
  assert.deepEqual(log.texts.map((text) => text.replace(/[\d.]+ s/, "N s")), [
    "source scripted is not available: lost; retrying",
    "source scripted is back after N s",
    "source scripted is not available: slot lost; retrying",
  ]);
});

test("a permanent fault before the first opening is thrown, also after passing ones", async () => {
  using _timers = new HurriedTimers();
  const { done, starts } = supervise([
    failing(new TransientError("starting up")),
    failing(new PermanentError("wal_level is replica")),
  ]);
  await assert.rejects(done, /wal_level is replica/);
  assert.equal(starts(), 2);
});

test("an instance that stands by looks soon, then every second, and says so once and when it takes over", async () => {
  using timers = new HurriedTimers();
  const standing = failing(new StandingByError("slot is held"));
  const { done, log, supervisor } = supervise([...Array.from({ length: 6 }, () => standing), lostAfterOpening]);
  await done;
  assert.deepEqual(timers.requestedMs.slice(0, 6), [100, 200, 400, 800, 1000, 1000]);
  assert.match(log.texts[0]!, /scripted stands by: slot is held; it takes over when that ends/);
  assert.match(log.texts[1]!, /scripted takes over after standing by/);
  assert.equal(log.texts.length, 3);
  assert.notEqual(supervisor.condition.state, "standing_by");
});

test("a source that is lost as soon as it opens is started less and less often", async () => {
  using timers = new HurriedTimers();
  const { done, log } = supervise(Array.from({ length: 20 }, () => lostAfterOpening));
  await done;
  assert.ok(timers.requestedMs.slice(-5).every((ms) => ms >= 1000), timers.requestedMs.join(", "));
  assert.ok(log.lines.length <= 11, `${log.lines.length} lines for 20 losses`);
});

test("a fault while stopping ends it without a word", async () => {
  const stop = new AbortController();
  const log = new LogRecorder();
  const source: Source = {
    name: "scripted",
    silence: () => undefined,
    figures: { heardAtMs: undefined, droppedEvents: 0, slot: undefined },
    run: () => {
      stop.abort();
      return Promise.reject(new PermanentError("any"));
    },
  };
  await new SourceSupervisor(source, log.logger, () => {}).run(stop.signal, stop.signal);
  assert.deepEqual(log.lines, []);
});
