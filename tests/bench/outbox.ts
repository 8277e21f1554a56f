/**
 * The outbox: how fast it drains, and what a message costs its sender in each of the four ways.
 *
 *   bun tests/bench/outbox.ts drain [rows=1000000]      a backlog to standard output, Redis and RabbitMQ
 *   bun tests/bench/outbox.ts senders [rounds=3]        pgbench: 50 senders and one, beside a bare INSERT
 *
 * PostgreSQL runs with fsync on, and for the backlog without autovacuum, which must not be needed.
 */

import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import postgres from "postgres";
import { withAmqpChannel } from "../support/consumers.ts";
import { installEvents } from "../support/events_schema.ts";
import { type Proxy, startProxy } from "../support/proxy.ts";
import { bridgeEnv } from "../support/scenario.ts";
import { Workspace } from "../support/server_process.ts";
import { type PostgresServer, startPostgres, startRabbitmq, startRedis } from "../support/servers.ts";
import { until } from "../support/wait.ts";

interface Database {
  readonly uri: string;
  readonly sql: postgres.Sql;
}

async function withDatabase(
  server: PostgresServer,
  work: (database: Database) => Promise<void>,
): Promise<void> {
  const { uri, drop } = await server.createDatabase("outbox");
  const sql = postgres(uri, { max: 2, onnotice: () => {} });
  try {
    await installEvents(uri);
    await work({ uri, sql });
  } finally {
    await sql.end({ timeout: 1 });
    await drop();
  }
}

async function startedProxy(settings: Record<string, string>, stdoutFile?: string): Promise<Proxy> {
  // A shell, which the redirection needs, hands on no variable with a hyphen.
  const env = Object.fromEntries(Object.entries(settings).map(([name, value]) => [name.replaceAll("-", "__"), value]));
  const proxy = startProxy({ env, runtime: "bun", ...stdoutFile === undefined ? {} : { stdoutFile } });
  await proxy.waitForReady();
  return proxy;
}

const mebibytes = (bytes: number | string) => `${(Number(bytes) / 2 ** 20).toFixed(0)} MiB`;

async function tableSize(sql: postgres.Sql): Promise<string> {
  const [row] = await sql<{ size: string }[]>`select pg_total_relation_size('events.events') as size`;
  return mebibytes(row?.size ?? 0);
}

/** With this many rows of a channel without a binding in between, and one transaction that stays open beside it. */
const UNBOUND_SHARE = 10;

async function drain(rows: number): Promise<void> {
  const server = await startPostgres({ settings: { fsync: "on", autovacuum: "off", max_wal_size: "4GB" } });
  const redis = await startRedis();
  const rabbitmq = await startRabbitmq({});
  const queue = "outbox_bench";
  await withAmqpChannel(rabbitmq.uri, (channel) => channel.assertQueue(queue, { durable: true }));
  const upstreams: Record<string, { env: Record<string, string>; stdoutFile?: string }> = {
    "stdout to /dev/null": { env: { kind: "stdout", bindings: "bench->topic:bench" }, stdoutFile: "/dev/null" },
    "Redis": { env: { kind: "redis", upstreamUri: redis.uri, bindings: "bench->topic:bench" } },
    "RabbitMQ, persistent": {
      env: { kind: "amqp", upstreamUri: rabbitmq.uri, bindings: `bench->queue:${queue}` },
    },
  };
  console.log(`${rows} messages of 200 bytes, ${rows / UNBOUND_SHARE} rows without a binding between them`);
  console.log("| upstream | rows/s | peak RSS | CPU per row | table before, after draining, after VACUUM |");
  console.log("| --- | --- | --- | --- | --- |");
  for (const [name, { env, stdoutFile }] of Object.entries(upstreams)) {
    await withDatabase(server, async ({ uri, sql }) => {
      await sql`
        insert into events.events (channel, routing_key, message)
        select case when i % ${UNBOUND_SHARE + 1} = 0 then 'unbound' else 'bench' end, 'key', repeat('x', 200)
          from generate_series(1, ${rows + rows / UNBOUND_SHARE}) i`;
      const before = await tableSize(sql);
      const startedMs = performance.now();
      const { kind = "", bindings = "", upstreamUri } = env;
      const settings = bridgeEnv({ uri, kind, bindings, ...upstreamUri === undefined ? {} : { upstreamUri } });
      const proxy = await startedProxy(settings, stdoutFile);
      const readyMs = performance.now();
      // By the last one's id: to look for any would mean to read over all that are dead.
      const last = rows + rows / UNBOUND_SHARE - 1;
      await until(async () => {
        const [row] = await sql`select exists (select from events.events where id = ${last}) as any`;
        return row?.any === false;
      }, { what: "the backlog to be drained", timeoutMs: 600_000, intervalMs: 50 });
      const seconds = (performance.now() - startedMs) / 1000;
      const peakRss = mebibytes(proxy.peakRssBytes());
      const cpuUs = (proxy.cpuMs() * 1000 / rows).toFixed(1);
      await proxy.stop();
      const after = await tableSize(sql);
      await sql`vacuum events.events`;
      console.log(
        `| ${name} | ${Math.round(rows / seconds)} | ${peakRss} | ${cpuUs} µs | ${before}, ${after}, ${await tableSize(
          sql,
        )} | start ${Math.round(readyMs - startedMs)} ms`,
      );
    });
  }
  await Promise.all([server.stop(), redis.stop(), rabbitmq.stop()]);
}

const MESSAGE = "repeat('x', 200)";
const DURABLE = `select events.send_message('bench', ${MESSAGE}, 'key', true)`;
const WAYS: Record<string, { script: string; proxy: "none" | "notify" | "wal" }> = {
  "bare INSERT into a table of three columns": {
    script: `insert into bare (channel, message) values ('bench', ${MESSAGE})`,
    proxy: "none",
  },
  "NOTIFY": { script: `select pg_notify('bench', ${MESSAGE})`, proxy: "notify" },
  "send_message, durable, proxy away": { script: DURABLE, proxy: "none" },
  "send_message, durable, proxy draining": { script: DURABLE, proxy: "notify" },
  "the same with a NOTIFY in each transaction": {
    script: `${DURABLE}, pg_notify('pg_event_proxy_outbox', '')`,
    proxy: "notify",
  },
  "INSERT of a row that the WAL source reads": {
    script: `insert into bare (channel, message) values ('bench', ${MESSAGE})`,
    proxy: "wal",
  },
  "pg_logical_emit_message": {
    script: `select pg_logical_emit_message(true, 'bench', 'key|' || ${MESSAGE})`,
    proxy: "wal",
  },
  "send_message, durable, durable_by = wal": {
    script: `set events.durable_by = 'wal:bench_slot'; ${DURABLE}`,
    proxy: "wal",
  },
};

interface Figures {
  readonly perSecond: number;
  readonly latencyMs: number;
}

function pgbench(server: PostgresServer, uri: string, file: string, clients: number, seconds: number): Figures {
  const jobs = String(Math.min(clients, 2));
  const args = ["-n", "-f", file, "-c", String(clients), "-j", jobs, "-T", String(seconds), uri];
  const { stdout, stderr, status } = spawnSync(join(server.binDir, "pgbench"), args, { encoding: "utf8" });
  if (status !== 0) throw new Error(`pgbench ended with ${status}: ${stderr}`);
  return {
    perSecond: Number(/tps = ([\d.]+)/.exec(stdout)?.[1]),
    latencyMs: Number(/latency average = ([\d.]+)/.exec(stdout)?.[1]),
  };
}

/** Microseconds of one call among 20,000 in one transaction: what it adds to a transaction that commits anyway. */
async function perCallUs(sql: postgres.Sql, script: string): Promise<number> {
  const calls = 20_000;
  const statements = script.split("; ");
  const work = statements.at(-1)!.replace(/^select /, "perform ");
  return await sql.begin(async (transaction) => {
    for (const statement of statements.slice(0, -1)) await transaction.unsafe(statement);
    const startedMs = performance.now();
    await transaction.unsafe(`do $$ begin for i in 1..${calls} loop ${work}; end loop; end $$`);
    const us = (performance.now() - startedMs) * 1000 / calls;
    await transaction.unsafe("set local client_min_messages = error");
    return us;
  });
}

interface Cost {
  readonly many: Figures;
  readonly one: Figures;
  readonly callUs: number;
}

const SECONDS = 5;

async function costOf(server: PostgresServer, workspace: Workspace, way: string): Promise<Cost> {
  const { script, proxy: kind } = WAYS[way]!;
  let cost: Cost | undefined;
  await withDatabase(server, async ({ uri, sql }) => {
    await sql`
      create table bare (id bigint generated by default as identity primary key, channel text not null,
                         message text not null)`;
    const file = join(workspace.dir, "script.sql");
    writeFileSync(file, script.split("; ").map((statement) => `${statement};\n`).join(""));
    const bindings = kind === "wal" ? "bench->topic:bench, wal2json->topic:wal" : "bench->topic:bench";
    const proxy = kind === "none"
      ? undefined
      : await startedProxy(bridgeEnv({ uri, slot: "bench_slot", kind: "stdout", bindings }), "/dev/null");
    const many = pgbench(server, uri, file, 50, SECONDS);
    const one = pgbench(server, uri, file, 1, SECONDS);
    cost = { many, one, callUs: await perCallUs(sql, script) };
    await proxy?.stop();
  });
  return cost!;
}

const median = (values: readonly number[]) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? NaN;

async function senders(rounds: number): Promise<void> {
  const server = await startPostgres({
    settings: { fsync: "on", full_page_writes: "on", synchronous_commit: "on", max_wal_size: "4GB" },
  });
  const workspace = new Workspace("outbox-bench");
  const ways = Object.keys(WAYS);
  const costs = new Map<string, Cost[]>(ways.map((way) => [way, []]));
  for (let round = 0; round < rounds; round++) {
    for (const way of ways) costs.get(way)!.push(await costOf(server, workspace, way));
  }
  const bare = costs.get(ways[0]!)!;
  console.log(
    `medians of ${rounds} rounds of pgbench -T ${SECONDS}, one message of 200 bytes per transaction, fsync on`,
  );
  console.log("| way | 50 senders: per s | of INSERT | ms | 1 sender: per s | of INSERT | ms | µs in a transaction |");
  console.log("| --- | --- | --- | --- | --- | --- | --- | --- |");
  for (const [way, figures] of costs) {
    const columns = (["many", "one"] as const).flatMap((key) => [
      median(figures.map((cost) => cost[key].perSecond)).toFixed(0),
      median(figures.map((cost, i) => cost[key].perSecond / bare[i]![key].perSecond)).toFixed(2),
      median(figures.map((cost) => cost[key].latencyMs)).toFixed(2),
    ]);
    console.log(`| ${[way, ...columns, median(figures.map(({ callUs }) => callUs)).toFixed(1)].join(" | ")} |`);
  }
  await workspace.remove();
  await server.stop();
}

const [what = "", count] = process.argv.slice(2);
if (what === "drain") await drain(Number(count ?? 1_000_000));
else if (what === "senders") await senders(Number(count ?? 3));
else console.error("usage: bun tests/bench/outbox.ts drain [rows] | senders [rounds]");
process.exit(0);
