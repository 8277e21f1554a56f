/** The ends that are meant: signals to the program, and a fast shutdown of PostgreSQL with the program attached. */

import assert from "node:assert/strict";
import process from "node:process";
import { after } from "node:test";
import { scenario } from "../support/scenario.ts";
import { until } from "../support/wait.ts";
import { restartPostgres } from "./faults.ts";
import { Plant } from "./plant.ts";
import { report, Trial } from "./trial.ts";

const LARGE_ROWS = 10_000;

const plant = Plant.start({ postgresSettings: { wal_sender_timeout: "60s" } });
after(async () => await (await plant).stop());

scenario("SIGTERM and SIGINT drain and confirm: exit 0, and the next start redelivers nothing", async (scope) => {
  const trial = await Trial.start(scope, await plant, { database: { shutdown_timeout: "60" } });
  let proxy = await trial.startProxy();
  trial.startWriters();
  for (const signal of ["SIGTERM", "SIGINT", "SIGTERM"] as const) {
    await Promise.all(trial.kinds.map((kind) => trial.flows(kind)));
    assert.deepEqual(await proxy.kill(signal), { code: 0, signal: null });
    proxy = await trial.startProxy();
  }
  // In the middle of a large transaction: it is read and delivered to its end.
  await trial.passMarker();
  await trial.sql`insert into orders select -4, i, 'large' from generate_series(1, ${LARGE_ROWS}::int) i`;
  await trial.flows("redis", 2_000);
  assert.deepEqual(await proxy.kill("SIGTERM"), { code: 0, signal: null });
  await trial.startProxy();
  const verdicts = await trial.finish();
  report("stopped 4 times by signals", verdicts);
  assert.deepEqual([...verdicts].map(([kind, { repeats }]) => [kind, repeats]), trial.kinds.map((kind) => [kind, 0]));
}, { timeoutMs: 120_000 });

/**
 * Writes rows that a frozen broker cannot acknowledge, and waits until the program has told the server, after that, that it
 * has read more than it may confirm. These rows need not be read: where others wait already, the lane is full before them.
 */
async function rowsThatWait(trial: Trial, writer: number): Promise<void> {
  await trial.sql`insert into orders select ${writer}::int, i, 'waits' from generate_series(1, 100) i`;
  const [{ written } = { written: "" }] = await trial.sql<{ written: string }[]>`
    select clock_timestamp()::text as written`;
  await until(async () => {
    const [row] = await trial.sql<{ waits: boolean }[]>`
      select walsender.reply_time > ${written}::timestamptz and walsender.write_lsn > walsender.flush_lsn as waits
        from pg_replication_slots slot join pg_stat_replication walsender on walsender.pid = slot.active_pid
       where slot.slot_name = ${trial.slot}`;
    return row?.waits;
  }, { what: "the program to have read what it may not confirm" });
}

scenario(
  "a second signal, and shutdown_timeout, end it; nothing is lost",
  async (scope) => {
    const trial = await Trial.start(scope, await plant, { kinds: ["amqp"], database: { shutdown_timeout: "2" } });
    const broker = trial.plant.broker("amqp");
    scope.defer(() => broker.thaw());
    let proxy = await trial.startProxy();
    trial.startWriters();
    await trial.flows("amqp");
    broker.freeze();
    await rowsThatWait(trial, -5);
    process.kill(proxy.pid, "SIGTERM");
    await proxy.waitForLog(/SIGTERM: stopping, waiting up to 2 s/);
    const secondMs = performance.now();
    assert.deepEqual(await proxy.kill("SIGTERM"), { code: 143, signal: null });
    assert.ok(performance.now() - secondMs < 1_000, `a second signal took ${performance.now() - secondMs} ms`);
    broker.thaw();

    proxy = await trial.startProxy();
    await trial.flows("amqp");
    broker.freeze();
    await rowsThatWait(trial, -6);
    const startMs = performance.now();
    assert.deepEqual(await proxy.kill("SIGTERM"), { code: 0, signal: null });
    const tookMs = performance.now() - startMs;
    assert.ok(tookMs > 1_900 && tookMs < 6_000, `shutdown_timeout=2 took ${tookMs} ms`);
    assert.ok(proxy.log.some(({ text }) => /stopping with \d+ transactions not acknowledged/.test(text)), proxy.stderr);
    broker.thaw();
    await trial.startProxy();
    report("ended by force", await trial.finish());
  },
  { timeoutMs: 240_000 },
);

scenario(
  "PostgreSQL shuts down fast with the program attached, also with a frozen broker",
  async (scope) => {
    const { postgres } = await plant;
    const alone = await restartPostgres(postgres, "fast");
    const trial = await Trial.start(scope, await plant, { kinds: ["redis"] });
    const proxy = await trial.startProxy();
    await trial.passMarker();
    const attached = await restartPostgres(postgres, "fast");
    await trial.passMarker();
    // A row that nobody acknowledges: the server would wait for it for ever.
    const broker = trial.plant.broker("redis");
    scope.defer(() => broker.thaw());
    broker.freeze();
    await trial.sql`insert into orders select -7, i, 'waits' from generate_series(1, 5000) i`;
    const [end] = await trial.sql<{ lsn: string }[]>`select pg_current_wal_lsn()::text as lsn`;
    await until(async () => {
      const [sender] = await trial.sql`select from pg_stat_replication where sent_lsn >= ${end!.lsn}`;
      return sender;
    }, { what: "the rows to be on their way" });
    const frozen = await restartPostgres(postgres, "fast");
    broker.thaw();
    const text = `alone ${alone.toFixed(0)}, attached ${attached.toFixed(0)}, with a frozen broker ${
      frozen.toFixed(0)
    } ms`;
    process.stderr.write(`  fast shutdown: ${text}\n`);
    assert.ok(attached < alone + 1_000, text);
    assert.ok(frozen < alone + 2_000, text);
    assert.ok(proxy.log.some(({ text }) => /shuts down; it is let go with \d+ transactions/.test(text)), proxy.stderr);
    report("fast shutdowns", await trial.finish());
  },
  { timeoutMs: 240_000 },
);
