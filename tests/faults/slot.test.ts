/** The replication slot taken away: dropped, held, invalidated, made for another plugin; and that of an idle database. */

import assert from "node:assert/strict";
import { after } from "node:test";
import { runProxy } from "../support/proxy.ts";
import { scenario } from "../support/scenario.ts";
import { until } from "../support/wait.ts";
import { terminateWalsender } from "./faults.ts";
import { Plant } from "./plant.ts";
import { Trial } from "./trial.ts";

const plant = Plant.start({ kinds: ["redis"], postgresSettings: { wal_sender_timeout: "60s" } });
after(async () => await (await plant).stop());

scenario("a slot dropped under the program is not made anew in silence", async (scope) => {
  const trial = await Trial.start(scope, await plant);
  const proxy = await trial.startProxy();
  await trial.passMarker();
  await terminateWalsender(trial);
  await until(() => trial.sql`select pg_drop_replication_slot(${trial.slot})`, {
    what: "the slot to be dropped before the program has it again",
    intervalMs: 1,
  });
  const { text } = await proxy.waitForLog(/was dropped since this program used it last/);
  assert.match(text, /the changes in between are lost to it; start this program again to create it anew/);
  await trial.sql`insert into ledger values (-9, 1)`;
  const slots = await trial.sql`select from pg_replication_slots where slot_name = ${trial.slot}`;
  assert.equal(slots.length, 0);
  // What a restart brings: a new slot, and what is written from then on.
  await proxy.stop();
  await trial.startProxy();
  const before = trial.arrivals("redis").length;
  await trial.sql`insert into ledger values (-9, 2)`;
  await until(() => trial.arrivals("redis").length === before + 3, { what: "BEGIN, the row and COMMIT" });
});

scenario("a slot held by another process is waited for", async (scope) => {
  const trial = await Trial.start(scope, await plant);
  await (await trial.startProxy()).stop();
  const { postgres } = trial.plant;
  const { spawn } = await import("node:child_process");
  const args = ["-d", trial.database.uri, "-S", trial.slot, "--start", "-f", "-", "-o", "include-xids=0"];
  const holder = spawn(`${postgres.binDir}/pg_recvlogical`, args, { stdio: "ignore" });
  scope.defer(() => holder.kill("SIGKILL"));
  const active = async (wanted: boolean) => {
    const [slot] = await trial.sql`select active from pg_replication_slots where slot_name = ${trial.slot}`;
    return slot?.active === wanted;
  };
  await until(() => active(true), { what: "pg_recvlogical to hold the slot" });
  const proxy = scope.proxy(trial.proxyOptions());
  await proxy.waitForLog(/stands by: .* is held by another process \(server process \d+\)/);
  holder.kill("SIGKILL");
  await proxy.waitForLog(/takes over after standing by/);
  await proxy.waitForReady();
  await trial.passMarker();
});

scenario("a slot that the server has invalidated: told at once, not ready, and the remedy works", async (scope) => {
  const trial = await Trial.start(scope, await plant);
  const proxy = await trial.startProxy();
  await trial.passMarker();
  await trial.sql.unsafe("alter system set max_slot_wal_keep_size = '1MB'");
  await trial.sql`select pg_reload_conf()`;
  scope.defer(async () => {
    await trial.sql.unsafe("alter system reset max_slot_wal_keep_size");
    await trial.sql`select pg_reload_conf()`;
  });
  // The broker is away, the WAL goes on.
  trial.plant.broker("redis").freeze();
  scope.defer(() => trial.plant.broker("redis").thaw());
  await until(async () => {
    await trial.sql`insert into orders select -3, (random() * 1e9)::int, repeat('w', 200)
                      from generate_series(1, 5000) on conflict do nothing`;
    await trial.sql`select pg_switch_wal()`;
    await trial.sql`checkpoint`;
    const [slot] = await trial.sql`select wal_status from pg_replication_slots where slot_name = ${trial.slot}`;
    return slot?.wal_status === "lost";
  }, { what: "the slot to be invalidated", timeoutMs: 40_000 });
  const { text } = await proxy.waitForLog(/is lost \(wal_removed\)/, 20_000);
  assert.match(text, /the changes after [0-9A-F]+\/[0-9A-F]+ are gone/);
  trial.plant.broker("redis").thaw();
  await proxy.stop();
  const again = await runProxy(trial.proxyOptions());
  assert.equal(again.code, 1);
  const remedy = /drop it and start again: (select pg_drop_replication_slot\('\w+'\))/.exec(again.stderr)?.[1];
  assert.ok(remedy !== undefined, again.stderr);
  await trial.sql.unsafe(remedy);
  await trial.startProxy();
  await trial.passMarker();
}, { timeoutMs: 120_000 });

scenario(
  "a slot made for another plugin: exit 1 with the remedy; made under a running program: told",
  async (scope) => {
    const trial = await Trial.start(scope, await plant);
    await trial.sql`select pg_create_logical_replication_slot(${trial.slot}, 'test_decoding')`;
    const { code, stderr } = await runProxy(trial.proxyOptions());
    assert.equal(code, 1);
    assert.match(stderr, /is a logical slot of plugin test_decoding, wanted a logical slot of plugin wal2json/);
    const remedy = /drop it: (select pg_drop_replication_slot\('\w+'\))/.exec(stderr)?.[1];
    assert.ok(remedy !== undefined, stderr);
    await trial.sql.unsafe(remedy);
    const proxy = await trial.startProxy();
    await trial.passMarker();
    await terminateWalsender(trial);
    await until(() => trial.sql.unsafe(remedy), { what: "the slot to be dropped", intervalMs: 1 });
    await trial.sql`select pg_create_logical_replication_slot(${trial.slot}, 'test_decoding')`;
    await proxy.waitForLog(/not available.*(of plugin test_decoding|was dropped)/);
  },
);

scenario("the slot of an idle database moves on while another database writes", async (scope) => {
  const trial = await Trial.start(scope, await plant);
  await trial.startProxy();
  await trial.passMarker();
  const neighbour = await scope.database(trial.plant.postgres);
  await neighbour.sql`create table busy (n int, filler text)`;
  const [start] = await trial.sql<{ lsn: string }[]>`select pg_current_wal_lsn()::text as lsn`;
  // Ten times a second in the foreground: 16 MiB of WAL that concerns nobody here.
  for (let i = 0; i < 16; i++) {
    await neighbour.sql`insert into busy select i, repeat('b', 1000) from generate_series(1, 1000) i`;
  }
  const [end] = await trial.sql<{ lsn: string; bytes: number }[]>`
    select pg_current_wal_lsn()::text as lsn, pg_wal_lsn_diff(pg_current_wal_lsn(), ${start!.lsn})::int as bytes`;
  assert.ok(end!.bytes > 15 * 2 ** 20);
  await until(async () => {
    const [slot] = await trial.sql<{ moved: boolean }[]>`
      select confirmed_flush_lsn >= ${end!.lsn} as moved from pg_replication_slots where slot_name = ${trial.slot}`;
    return slot?.moved;
  }, { what: "the idle slot to pass what the neighbour wrote", timeoutMs: 20_000 });
});

scenario("a table whose updates the WAL does not tell is named once, with the remedy", async (scope) => {
  const trial = await Trial.start(scope, await plant);
  const proxy = await trial.startProxy();
  await trial.sql.unsafe(`
    create table "no key" (n int);
    create table "other" (n int);
    insert into "no key" select generate_series(1, 3);
    insert into "other" values (1);
    update "no key" set n = n + 1;
    update "no key" set n = n + 1;
    delete from "other"`);
  await trial.passMarker();
  await terminateWalsender(trial);
  await trial.sql.unsafe('update "no key" set n = n + 1');
  await trial.passMarker();
  const named = proxy.log.map(({ json }) => String(json?.message)).filter((text) => /no replica identity/.test(text));
  assert.equal(named.length, 2, named.join("\n"));
  assert.match(
    named[0]!,
    /"no key" has no replica identity: its updates and deletes are not delivered; give it a primary/,
  );
  const remedy = /or run: (ALTER TABLE .* REPLICA IDENTITY FULL)/.exec(named[0]!)?.[1];
  const before = trial.arrivals("redis").length;
  await trial.sql.unsafe(remedy!);
  await trial.sql.unsafe('update "no key" set n = n + 1');
  await trial.passMarker();
  assert.ok(trial.arrivals("redis").length >= before + 3 + 2 + 3 + 2, "the updates are not told after the remedy");
});
