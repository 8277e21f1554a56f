/** Each broker killed, restarted and frozen while writes go on. */

import assert from "node:assert/strict";
import { after } from "node:test";
import { scenario } from "../support/scenario.ts";
import { freeze, restartBroker } from "./faults.ts";
import { ALL_KINDS, Plant, WAL_SENDER_TIMEOUT_MS } from "./plant.ts";
import { report, Trial } from "./trial.ts";

const plant = Plant.start();
after(async () => await (await plant).stop());

for (const kind of ALL_KINDS) {
  scenario(`${kind} killed, shut down, and frozen for longer than wal_sender_timeout`, async (scope) => {
    const trial = await Trial.start(scope, await plant, { kinds: [kind] });
    const proxy = await trial.startProxy();
    trial.startWriters();
    await trial.flows(kind);
    await restartBroker(trial, kind, "kill");
    await trial.flows(kind);
    await restartBroker(trial, kind, "shutdown");
    await trial.flows(kind);
    await freeze(trial.plant.broker(kind), 1.7 * WAL_SENDER_TIMEOUT_MS);
    await trial.flows(kind);
    report("killed, shut down, frozen", await trial.finish());
    // The session with PostgreSQL has outlived it all: the walsender was answered while nothing was confirmed.
    assert.deepEqual(proxy.log.filter(({ text }) => /source wal .* is not available/.test(text)), []);
  }, { timeoutMs: 120_000 });
}
