import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { InFlightRows } from "../../src/sources/outbox_in_flight.ts";
import { Tempo } from "../../src/sources/outbox_tempo.ts";
import { Pause } from "../../src/sources/pause.ts";
import { EVENTS_SQL, EVENTS_VERSION } from "../../src/sql/events.ts";
import { installScript } from "../../src/sql/install.ts";

test("the script is the file, and tells its version", () => {
  assert.equal(EVENTS_SQL, readFileSync(new URL("../../src/sql/events.sql", import.meta.url), "utf8"));
  assert.ok(EVENTS_VERSION >= 1);
  assert.match(EVENTS_SQL, new RegExp(`installed_version > ${EVENTS_VERSION} then`), "the guard against a newer one");
});

test("a role in the script is quoted", () => {
  assert.equal(installScript(), EVENTS_SQL);
  assert.ok(
    installScript('a"; drop table x').endsWith('grant select, delete on events.events to "a""; drop table x";\n'),
  );
});

test("a row is deletable when everybody who took it has let go, once", () => {
  const rows = new InFlightRows(3);
  let calls = 0;
  rows.onAcknowledged = () => calls++;
  const completion = rows.add("1");
  completion.retain();
  completion.retain();
  completion.release();
  assert.deepEqual([rows.size, rows.unacknowledged, rows.deletable], [1, 1, 0]);
  completion.release();
  assert.deepEqual([rows.size, rows.unacknowledged, rows.deletable], [1, 0, 1]);
  assert.equal(calls, 1);
  assert.ok(rows.has("1"), "until it is deleted it must not be handed out again");
  rows.deleted(rows.batch());
  assert.ok(!rows.has("1"));
  assert.deepEqual([rows.size, rows.deletable], [0, 0]);
});

test("rows are deleted in batches, the oldest acknowledgement first", () => {
  const rows = new InFlightRows(3);
  const held = ["1", "2", "3", "4", "5"].map((id) => {
    const completion = rows.add(id);
    completion.retain();
    return completion;
  });
  for (const i of [4, 0, 1, 2]) held[i]?.release();
  assert.equal(rows.unacknowledged, 1);
  const first = rows.batch();
  assert.deepEqual(first, ["5", "1", "2"]);
  held[3]?.release();
  rows.deleted(first);
  assert.deepEqual(rows.batch(), ["3", "4"]);
  assert.deepEqual([rows.size, rows.deletable, rows.has("5"), rows.has("4")], [2, 2, false, true]);
});

test("the drain is told of the first acknowledgement, of a full batch and of the last", () => {
  const rows = new InFlightRows(3);
  const told: number[] = [];
  rows.onAcknowledged = () => told.push(rows.deletable);
  const held = Array.from({ length: 8 }, (_, i) => {
    const completion = rows.add(String(i));
    completion.retain();
    return completion;
  });
  for (const completion of held) completion.release();
  assert.deepEqual(told, [1, 3, 6, 8]);
});

test("messages that come fast are looked for, others call", () => {
  const tempo = new Tempo();
  for (let i = 0; i < 100; i++) {
    tempo.found(1, i * 20);
    assert.equal(tempo.busy(i * 20), false, "50 a second");
  }
  let nowMs = 2_000;
  for (let i = 0; i < 100; i++) tempo.found(1, nowMs += 5);
  assert.equal(tempo.busy(nowMs), true, "200 a second");
  assert.equal(tempo.busy(nowMs + 100), true, "a short gap changes nothing");
  assert.equal(tempo.busy(nowMs + 200), false);
  assert.equal(tempo.busy(nowMs + 200), false);
  tempo.found(1_000, nowMs + 300);
  assert.equal(tempo.busy(nowMs + 300), true, "many at once");
});

test("looks that find nothing let it calm down", () => {
  const tempo = new Tempo();
  tempo.found(50, 1_000);
  for (let nowMs = 1_005; nowMs < 1_200; nowMs += 5) {
    tempo.found(0, nowMs);
    assert.equal(tempo.busy(nowMs), true, String(nowMs));
  }
  assert.equal(tempo.busy(1_200), false);
});

test("a pause ends when its time is up, when it is told to, and at once when it was told before", async () => {
  const pause = new Pause();
  const startedMs = performance.now();
  await pause.for(20);
  assert.ok(performance.now() - startedMs >= 15);
  const waiting = pause.for(60_000);
  pause.end();
  await waiting;
  pause.end();
  pause.end();
  await pause.for(60_000);
  const again = pause.for(30);
  assert.equal(await Promise.race([again.then(() => "over"), Promise.resolve("waiting")]), "waiting");
  await again;
});
