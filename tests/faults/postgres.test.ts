/** PostgreSQL stopped in each of its ways, and its walsender ended in the middle of a large transaction. */

import assert from "node:assert/strict";
import { after } from "node:test";
import { scenario } from "../support/scenario.ts";
import { until } from "../support/wait.ts";
import { freeze, restartPostgres, terminateWalsender } from "./faults.ts";
import { Plant, WAL_SENDER_TIMEOUT_MS } from "./plant.ts";
import { report, Trial } from "./trial.ts";

const LARGE_ROWS = 15_000;

const plant = Plant.start({ kinds: ["mqtt", "redis"] });
after(async () => await (await plant).stop());

for (const how of ["fast", "immediate", "kill"] as const) {
  const title = { fast: "stopped fast", immediate: "stopped immediately", kill: "killed" }[how];
  scenario(`PostgreSQL ${title} while writes go on, twice`, async (scope) => {
    const trial = await Trial.start(scope, await plant);
    await trial.startProxy();
    const writers = trial.startWriters();
    const tookMs: number[] = [];
    for (let time = 0; time < 2; time++) {
      await trial.flows("mqtt", 30);
      tookMs.push(Math.round(await restartPostgres(trial.plant.postgres, how)));
    }
    await trial.flows("mqtt", 30);
    report(`PostgreSQL ${title} in ${tookMs.join(" and ")} ms`, await trial.finish());
    assert.ok(writers.committed.length > 0);
  });
}

scenario("PostgreSQL frozen for longer than wal_sender_timeout", async (scope) => {
  const trial = await Trial.start(scope, await plant);
  await trial.startProxy();
  trial.startWriters();
  await trial.flows("mqtt", 30);
  await freeze(trial.plant.postgres, 1.7 * WAL_SENDER_TIMEOUT_MS);
  await trial.flows("mqtt", 30);
  await trial.notificationPasses("mqtt");
  report("PostgreSQL frozen", await trial.finish());
});

scenario("the walsender terminated in the middle of a large transaction, again and again", async (scope) => {
  const trial = await Trial.start(scope, await plant);
  await trial.startProxy();
  trial.startWriters({ pauseMs: 150 });
  await trial.flows("redis", 20);
  await trial.sql`insert into orders select -2, i, 'large' from generate_series(1, ${LARGE_ROWS}::int) i`;
  for (let time = 0; time < 3; time++) {
    // Further each time, so that what was delivered before is passed and gone beyond.
    await trial.flows("redis", 1_500 * (time + 1));
    await until(() => terminateWalsender(trial), { what: "a walsender to terminate" });
  }
  const verdicts = await trial.finish(60_000);
  report("walsender terminated 3 times", verdicts);
  assert.ok(verdicts.get("redis")!.repeats >= 1_500, "the large transaction was not begun anew");
}, { timeoutMs: 120_000 });
