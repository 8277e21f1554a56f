import assert from "node:assert/strict";
import { test } from "node:test";
import { PermanentError } from "../../src/core/errors.ts";
import { OutageLog } from "../../src/core/outage_log.ts";
import { LogRecorder } from "./log_recorder.ts";

/** Stands in for `Date.now`, in milliseconds. */
class Clock {
  readonly #real = Date.now;
  nowMs = 1_700_000_000_000;

  constructor() {
    Date.now = () => this.nowMs;
  }

  [Symbol.dispose](): void {
    Date.now = this.#real;
  }
}

test("an outage has a line at its beginning, one each 30 s, and one at its end", () => {
  using clock = new Clock();
  const recorder = new LogRecorder();
  const outage = new OutageLog(recorder.logger, "the broker");
  assert.equal(outage.ongoing, false);
  outage.recovered("not told");
  for (let second = 0; second <= 65; second++) {
    outage.failed(new Error("connection\nrefused"));
    clock.nowMs += 1000;
  }
  assert.equal(outage.ongoing, true);
  outage.recovered("3 events are sent again");
  assert.equal(outage.ongoing, false);
  outage.recovered("not told");
  assert.deepEqual(recorder.lines, [
    { level: "warn", text: "the broker is not available: connection refused; retrying" },
    {
      level: "warn",
      text: "the broker is still not available after 30 s and 31 failures: connection refused; retrying",
    },
    {
      level: "warn",
      text: "the broker is still not available after 60 s and 61 failures: connection refused; retrying",
    },
    { level: "info", text: "the broker is back after 66 s; 3 events are sent again" },
  ]);
});

test("what only the operator can mend has a line as soon as it shows, and once", () => {
  using clock = new Clock();
  const recorder = new LogRecorder();
  const outage = new OutageLog(recorder.logger, "it");
  for (let second = 0; second < 10; second++) {
    clock.nowMs += 1000;
    outage.failed(second < 2 ? "connection refused" : new PermanentError("the slot is lost: drop it"));
  }
  outage.failed("connection refused");
  outage.failed(new PermanentError("the slot is lost: drop it"));
  outage.recovered();
  outage.failed(new PermanentError("the slot is lost: drop it"));
  assert.deepEqual(recorder.lines, [
    { level: "warn", text: "it is not available: connection refused; retrying" },
    {
      level: "error",
      text: "it is still not available after 2 s and 3 failures: the slot is lost: drop it; retrying",
    },
    { level: "info", text: "it is back after 9 s" },
    { level: "error", text: "it is not available: the slot is lost: drop it; retrying" },
  ]);
});

test("the next outage counts from its own beginning", () => {
  using clock = new Clock();
  const recorder = new LogRecorder();
  const outage = new OutageLog(recorder.logger, "it");
  outage.failed("first");
  clock.nowMs += 1500;
  outage.recovered();
  outage.failed("second");
  clock.nowMs += 30_000;
  outage.failed("second");
  assert.deepEqual(recorder.texts, [
    "it is not available: first; retrying",
    "it is back after 1.5 s",
    "it is not available: second; retrying",
    "it is still not available after 30 s and 2 failures: second; retrying",
  ]);
});

test("what comes and goes is told of five times, then once in 30 s, with what was left out", () => {
  using clock = new Clock();
  const recorder = new LogRecorder();
  const outage = new OutageLog(recorder.logger, "it");
  const flap = (seconds: number) => {
    for (let i = 0; i < seconds * 10; i++) {
      outage.failed("reset");
      clock.nowMs += 50;
      outage.recovered();
      clock.nowMs += 50;
    }
  };
  flap(20);
  assert.equal(recorder.lines.length, 10, "five failures and five recoveries");
  flap(3600);
  assert.ok(recorder.lines.length <= 10 + 2 * 121, `${recorder.lines.length} lines in an hour`);
  assert.match(
    recorder.texts.at(-2)!,
    /^it is not available, after \d+ failures not listed, between which it was back: reset/,
  );
  const lines = recorder.lines.length;
  clock.nowMs += 600_000;
  outage.failed("reset");
  outage.recovered();
  assert.equal(recorder.lines.length, lines + 2, "after ten quiet minutes each outage is told again");
});

test("an outage that lasts is told of, also where it began unseen among others", () => {
  using clock = new Clock();
  const recorder = new LogRecorder();
  const outage = new OutageLog(recorder.logger, "it");
  for (let i = 0; i < 10; i++) {
    outage.failed("reset");
    outage.recovered();
  }
  const lines = recorder.lines.length;
  outage.failed("refused");
  assert.equal(recorder.lines.length, lines);
  clock.nowMs += 30_000;
  outage.failed("refused");
  outage.recovered();
  assert.match(recorder.texts.at(-2)!, /^it is still not available after 30 s .*: refused/);
  assert.match(recorder.texts.at(-1)!, /^it is back after 30 s/);
});
