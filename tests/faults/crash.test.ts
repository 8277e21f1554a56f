/** The program killed at any moment: whatever it had read and not delivered is delivered by the next one. */

import assert from "node:assert/strict";
import process from "node:process";
import { after } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { scenario } from "../support/scenario.ts";
import { Plant } from "./plant.ts";
import { between, randomFrom } from "./random.ts";
import { report, Trial } from "./trial.ts";

const KILLS = 20;

const plant = Plant.start();
after(async () => await (await plant).stop());

scenario(`${KILLS} times SIGKILL while writes go on`, async (scope) => {
  const trial = await Trial.start(scope, await plant);
  const random = randomFrom(20);
  let proxy = await trial.startProxy();
  trial.startWriters();
  for (let kill = 0; kill < KILLS; kill++) {
    await delay(between(random, 0, 400));
    await proxy.kill("SIGKILL");
    // Every fourth time at a random moment of the start instead of during the work.
    proxy = scope.proxy(trial.proxyOptions());
    if (kill % 4 === 3) continue;
    await proxy.waitForReady(30_000);
  }
  await proxy.waitForReady(30_000);
  const verdicts = await trial.finish(90_000);
  report(`killed ${KILLS} times`, verdicts);
  for (const [kind, { repeats }] of verdicts) assert.ok(repeats > 0, `${kind}: no kill hit an event on its way`);
}, { timeoutMs: 240_000 });

scenario("the program frozen for longer than wal_sender_timeout, beside one that stands by", async (scope) => {
  const trial = await Trial.start(scope, await plant);
  const proxy = await trial.startProxy();
  trial.startWriters();
  await trial.flows("redis");
  const standby = scope.proxy(trial.proxyOptions());
  await standby.waitForLog(/source wal .* stands by/);
  process.kill(proxy.pid, "SIGSTOP");
  scope.defer(() => process.kill(proxy.pid, "SIGCONT"));
  // PostgreSQL gives up the frozen one's session, and the other takes over.
  await standby.waitForLog(/source wal .* takes over after standing by/, 20_000);
  await trial.flows("redis");
  // It wakes with events in hand, which the other has sent or is sending.
  process.kill(proxy.pid, "SIGCONT");
  await proxy.waitForLog(/source wal .* stands by/, 20_000);
  report("frozen, and woken beside its successor", await trial.finish());
}, { timeoutMs: 240_000 });
