/** Connections cut, half open, slowed to a trickle, and brokers that take everything and acknowledge nothing. */

import assert from "node:assert/strict";
import process from "node:process";
import { after } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import type { Proxy } from "../support/proxy.ts";
import { consumeMqtt } from "../support/consumers.ts";
import { bridgeEnv, scenario, type Scope, uniqueName } from "../support/scenario.ts";
import { startMosquitto } from "../support/servers.ts";
import { until } from "../support/wait.ts";
import { ALL_KINDS, Plant, WAL_SENDER_TIMEOUT_MS } from "./plant.ts";
import { report, Trial } from "./trial.ts";

/** So that the slots, which nobody confirms while a broker is silent, would be lost within the hour. */
const plant = Plant.start({ postgresSettings: { max_slot_wal_keep_size: "400MB" } });
after(async () => await (await plant).stop());

scenario("connections to PostgreSQL cut, again and again", async (scope) => {
  const trial = await Trial.start(scope, await plant, { kinds: ["redis"] });
  await trial.startProxy();
  trial.startWriters();
  for (let cut = 0; cut < 6; cut++) {
    await trial.flows("redis", 40);
    trial.ways.postgres.cut();
  }
  report("PostgreSQL cut 6 times", await trial.finish());
});

scenario("connections to the brokers cut, again and again", async (scope) => {
  const trial = await Trial.start(scope, await plant);
  await trial.startProxy();
  trial.startWriters();
  for (let cut = 0; cut < 6; cut++) {
    await Promise.all(trial.kinds.map(async (kind) => {
      await trial.flows(kind, 40);
      trial.ways.to(kind).relay.cut();
    }));
  }
  report("brokers cut 6 times", await trial.finish());
}, { timeoutMs: 240_000 });

scenario("a trickle, in each direction, to PostgreSQL and to the brokers", async (scope) => {
  const trial = await Trial.start(scope, await plant);
  await trial.startProxy();
  trial.startWriters();
  const { postgres } = trial.ways;
  const slow = [
    // Below what is written, and above what the login takes, should a connection be given up.
    () => postgres.throttle("toClient", 20_000),
    () => postgres.throttle("toServer", 300),
    () => trial.kinds.forEach((kind) => trial.ways.to(kind).relay.throttle("toServer", 10_000)),
    () => trial.kinds.forEach((kind) => trial.ways.to(kind).relay.throttle("toClient", 50)),
  ];
  for (const fault of slow) {
    await Promise.all(trial.kinds.map((kind) => trial.flows(kind, 20)));
    fault();
    await delay(1.2 * WAL_SENDER_TIMEOUT_MS);
    trial.ways.heal();
  }
  report("trickles", await trial.finish());
}, { timeoutMs: 240_000 });

// Each of these waits out a time limit of the protocols: at the same time, with relays and databases of their own.
scenario("silence: half-open connections, brokers that acknowledge nothing, an outage of 40 s", async (scope) => {
  await Promise.all([
    halfOpenToPostgres(scope),
    halfOpenToBrokers(scope),
    neverAcknowledged(scope),
    readableLog(scope),
    silentDuringTheStart(scope),
    silentRefusal(scope),
  ]);
}, { timeoutMs: 180_000 });

async function halfOpenToPostgres(scope: Scope): Promise<void> {
  const trial = await Trial.start(scope, await plant, { kinds: ["redis"] });
  const proxy = await trial.startProxy();
  trial.startWriters({ pauseMs: 200 });
  await trial.flows("redis", 40);
  trial.ways.postgres.swallow();
  const startMs = performance.now();
  // The WAL: by the silence of the server, whose keepalives are due every half wal_sender_timeout.
  await proxy.waitForLog(/source wal .* is not available: .*silent for/, 20_000);
  await trial.flows("redis", 40);
  // NOTIFY: by the probe. Our own dead session still holds the lock in PostgreSQL, which must not keep us out.
  await proxy.waitForLog(/source notify is back/, 90_000);
  progress(`half-open NOTIFY session replaced after ${seconds(startMs)}`);
  // Nobody knows since when nothing came through: the gap is told from the last that did, not from its discovery.
  const gap = await proxy.waitForLog(/notifications sent in the .* are lost/);
  assert.ok(Number(gap.json?.seconds) > 35, gap.text);
  await trial.notificationPasses("redis");
  report("half-open to PostgreSQL", await trial.finish());
}

/** A server that goes silent between two steps of a connection's start, where no timer of the work runs yet. */
async function silentDuringTheStart(scope: Scope): Promise<void> {
  const trial = await Trial.start(scope, await plant, { kinds: ["redis"] });
  const proxy = await trial.startProxy();
  trial.startWriters({ pauseMs: 200 });
  const rounds = [
    { wal: "pg_settings", notify: "pg_try_advisory_lock" },
    { wal: "pg_replication_slots", notify: "LISTEN" },
    { wal: "START_REPLICATION" },
  ];
  for (const steps of rounds) {
    await trial.flows("redis", 20);
    const lines = proxy.log.length;
    for (const step of Object.values(steps)) trial.ways.postgres.silenceAt(step);
    trial.ways.postgres.cut();
    const startMs = performance.now();
    await Promise.all(
      Object.entries(steps).map(async ([source, step]) => {
        const back = new RegExp(`source ${source}\\b.*(is back|takes over after)`);
        await until(() => proxy.log.slice(lines).some(({ text }) => back.test(text)), {
          what: `source ${source} to be back after a silence at ${step}`,
          timeoutMs: 60_000,
        });
        progress(`silence at ${step} overcome after ${seconds(startMs)}`);
      }),
    );
  }
  await trial.notificationPasses("redis");
  report("silent during the start", await trial.finish());
}

async function halfOpenToBrokers(scope: Scope): Promise<void> {
  const trial = await Trial.start(scope, await plant);
  const proxy = await trial.startProxy();
  trial.startWriters({ pauseMs: 200 });
  await Promise.all(trial.kinds.map((kind) => trial.flows(kind, 40)));
  const startMs = performance.now();
  await Promise.all(trial.kinds.map(async (kind) => {
    trial.ways.to(kind).relay.swallow();
    await proxy.waitForLog(new RegExp(`${kind} upstream .* is back`), 90_000);
    progress(`half-open connection to ${kind} replaced after ${seconds(startMs)}`);
  }));
  report("half-open to the brokers", await trial.finish());
}

async function neverAcknowledged(scope: Scope): Promise<void> {
  const trial = await Trial.start(scope, await plant);
  const proxy = await trial.startProxy();
  trial.startWriters({ pauseMs: 200 });
  await Promise.all(trial.kinds.map((kind) => trial.flows(kind, 40)));
  for (const kind of trial.kinds) trial.ways.to(kind).withholding.on = true;
  // They still take what comes (Mosquitto 20 at a time), but nothing is acknowledged, so nothing may be confirmed.
  await Promise.all([trial.flows("amqp", 10), trial.flows("redis", 10)]);
  await delay(1_000);
  const confirmedLsn = await trial.confirmedLsn();
  // Redis is given up after 30 s without a reply, the others are told of, since their heartbeats go on.
  await Promise.all([
    proxy.waitForLog(/acknowledgement by amqp .* none of \d+ events in flight was acknowledged for \d+ s/, 60_000),
    proxy.waitForLog(/acknowledgement by mqtt .* none of \d+ events in flight was acknowledged for \d+ s/, 60_000),
    proxy.waitForLog(/redis upstream .* is not available/, 60_000),
    proxy.waitForLog(
      /replication slot .* will be lost in about \d+ (s|min) at the present rate: it holds back \d+ MiB/,
      60_000,
    ),
  ]);
  assert.equal(await trial.confirmedLsn(), confirmedLsn, "the slot was confirmed without an acknowledgement");
  for (const kind of trial.kinds) {
    const { relay, withholding } = trial.ways.to(kind);
    relay.cut();
    withholding.on = false;
  }
  const verdicts = await trial.finish();
  report("never acknowledged", verdicts);
  for (const [kind, { repeats }] of verdicts) assert.ok(repeats > 0, `${kind}: what it took was not sent again`);
}

/** MQTT 3.1.1 refuses by ending the connection, as a failing network does: only time tells them apart. */
async function silentRefusal(scope: Scope): Promise<void> {
  const broker = scope.keep(await startMosquitto({ config: ["max_packet_size 2000"] }));
  const topic = uniqueName("silent");
  const consumer = scope.keep(await consumeMqtt(broker.uri, topic));
  const { uri, sql } = await scope.database((await plant).postgres);
  const env = bridgeEnv({
    uri,
    slot: uniqueName("slot"),
    params: `"format-version" '2', "include-transaction" '0', "actions" 'insert'`,
    kind: "mqtt",
    upstreamUri: broker.uri,
    bindings: `wal2json->topic:${topic}`,
    more: { on_reject: "drop" },
  });
  const proxy = await scope.readyProxy({ env });
  await sql`create table notes (n int, text text)`;
  const startMs = performance.now();
  await sql`insert into notes values (1, ''), (2, ${"x".repeat(5_000)}), (3, '')`;
  await consumer.waitFor(2, 90_000);
  assert.ok(performance.now() - startMs >= 30_000, "a connection that ends for a moment was taken for a refusal");
  progress(`a silent refusal found after ${seconds(startMs)}`);
  assert.deepEqual(consumer.received.map(({ text }) => JSON.parse(text).columns[0].value), [1, 3]);
  assert.equal(proxy.log.filter(({ text }) => /refused event .* dropped, as on_reject=drop says/.test(text)).length, 1);
}

async function readableLog(scope: Scope): Promise<void> {
  const trial = await Trial.start(scope, await plant);
  const proxy = await trial.startProxy();
  trial.startWriters({ pauseMs: 200 });
  await Promise.all(trial.kinds.map((kind) => trial.flows(kind, 40)));
  const before = proxy.log.length;
  for (const kind of trial.kinds) trial.ways.to(kind).relay.refuse();
  await delay(40_000);
  trial.ways.heal();
  await Promise.all(ALL_KINDS.map((kind) => proxy.waitForLog(new RegExp(`${kind} upstream .* is back`), 30_000)));
  const lines = proxy.log.slice(before);
  progress(`an outage of 40 s of three brokers took ${lines.length} log lines`);
  for (const kind of ALL_KINDS) checkOutageLines(kind, lines);
  report("an outage of 40 s", await trial.finish());
}

/** The first failure, one more line after 30 s, and the recovery. */
function checkOutageLines(kind: string, lines: Proxy["log"]): void {
  const messages = lines.map(({ json }) => String(json?.message)).filter((text) => text.startsWith(`${kind} upstream`));
  assert.equal(messages.length, 3, messages.join("\n"));
  assert.match(messages[0]!, /is not available: .*; retrying$/);
  assert.match(messages[1]!, /is still not available after [34]\d s and \d+ failures: .*; retrying$/);
  assert.match(messages[2]!, /is back after (3[89]|[45]\d)(\.\d)? s; \d+ events are sent again or wait$/);
}

function seconds(sinceMs: number): string {
  return `${Math.round((performance.now() - sinceMs) / 100) / 10} s`;
}

function progress(line: string): void {
  process.stderr.write(`  ${line}\n`);
}
