/** Commit to consumer at a steady rate, beside publisher to consumer on the same broker. */

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { ROOT_DIR } from "../support/proxy.ts";
import { until } from "../support/wait.ts";
import { type Bench, say } from "./bench.ts";
import { dropSlot, newSlot } from "./dataset.ts";
import type { Program } from "./program.ts";
import { figure, type Section, type Verdict, verdict } from "./report.ts";
import { percentile } from "./statistics.ts";
import { brokersOf, QUEUE, STREAM, type UpstreamCase, upstreamCase, wantedCases } from "./upstream_cases.ts";
import { proxyEnv, untilReady } from "./wal_run.ts";

const CASES = ["redis", "redis-stream", "mqtt-1", "amqp-1", "amqp-2", "webhook-latency"];
const RATES = [200, 2_000];
/** A request for each event, one after the other, cannot keep up with the higher rate everywhere. */
const SLOW_CASE = "webhook-latency";
const P50_TARGET_MS = 2;
const P99_TARGET_MS = 10;
const BUN = join(ROOT_DIR, ".tools/node_modules/.bin/bun");

/** The URL that the consumer itself listens at. */
const LATENCY_TARGET = /http:.*$/;

interface Latency {
  readonly upstream: string;
  readonly label: string;
  readonly rate: number;
  readonly proxy: Ages;
  readonly bare: Ages;
}

interface Ages {
  readonly messages: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly maxMs: number;
}

export async function latencySection(bench: Bench): Promise<Section> {
  const names = wantedCases(bench, bench.quick ? ["redis", "amqp-1"] : CASES);
  for (const name of brokersOf(names)) void bench.broker(name).catch(() => {});
  await bench.sql.unsafe(`
    create table ticks (id bigint generated always as identity primary key, note text not null,
      sent double precision not null default extract(epoch from clock_timestamp()) * 1000)`);
  const results: Latency[] = [];
  for (const name of names) {
    const upstream = await upstreamCase(bench, name);
    for (const rate of bench.quick || name === SLOW_CASE ? RATES.slice(0, 1) : RATES) {
      const bare = await withConsumer(bench, upstream, rate, () => publishBare(bench, upstream, rate));
      const proxy = await withConsumer(bench, upstream, rate, () => commitThroughProxy(bench, upstream, rate));
      say(`${upstream.label} at ${rate}/s: ${describe(proxy)}; bare: ${describe(bare)}`);
      results.push({ upstream: name, label: upstream.label, rate, proxy, bare });
    }
  }
  return {
    name: "latency",
    tables: [{
      title: "Latency from commit to consumer",
      note:
        "Milliseconds. The row holds clock_timestamp() of its insert, so the commit itself is included; a consumer of " +
        "its own compares with its clock. Bare: from a publisher to the same consumer through the same broker. The " +
        "first second is left out.",
      columns: ["", "events/s", "p50", "p99", "max", "bare p50", "bare p99", "bare max"],
      rows: results.map(({ label, rate, proxy, bare }) => [label, String(rate), ...cells(proxy), ...cells(bare)]),
    }],
    verdicts: results.flatMap(verdictsOf),
    raw: results,
  };
}

function cells(ages: Ages): string[] {
  return [ages.p50Ms, ages.p99Ms, ages.maxMs].map(figure);
}

function describe(ages: Ages): string {
  const [p50, p99, max] = cells(ages);
  return `p50 ${p50} ms, p99 ${p99} ms, max ${max} ms`;
}

function verdictsOf({ upstream, label, rate, proxy, bare }: Latency): Verdict[] {
  if (rate !== 200 || upstream === SLOW_CASE) return [];
  const name = `${label}, latency above a bare publisher's at ${rate}/s`;
  return [
    verdict(`${name}, p50`, proxy.p50Ms - bare.p50Ms, { below: P50_TARGET_MS }, " ms"),
    verdict(`${name}, p99`, proxy.p99Ms - bare.p99Ms, { below: P99_TARGET_MS }, " ms"),
  ];
}

function seconds(bench: Bench): number {
  return bench.quick ? 5 : 20;
}

/** Runs `publish` while the consumer listens. */
async function withConsumer(
  bench: Bench,
  upstream: UpstreamCase,
  rate: number,
  publish: () => Promise<void>,
): Promise<Ages> {
  await upstream.prepare();
  let output = "";
  const consumer = bench.home.start(
    [BUN, join(ROOT_DIR, "tests/bench/latency_consumer.ts"), ...brokerArguments(upstream)],
    { onStdout: (chunk) => output += chunk },
  );
  let agesUs: number[];
  try {
    await until(() => output.startsWith("ready"), {
      what: () => `the consumer to subscribe\n${consumer.stderr}`,
      timeoutMs: 30_000,
    });
    await publish();
    // What is still on its way: a few times the longest latency that would be acceptable.
    await delay(500);
  } finally {
    await consumer.stop();
    agesUs = JSON.parse(output.slice(output.indexOf("\n") + 1) || "[]");
  }
  const expected = rate * seconds(bench);
  if (agesUs.length < expected * 0.8) {
    throw new Error(`the consumer got ${agesUs.length} messages of about ${expected}`);
  }
  const counted = agesUs.slice(rate);
  return {
    messages: counted.length,
    p50Ms: percentile(counted, 0.5) / 1000,
    p99Ms: percentile(counted, 0.99) / 1000,
    maxMs: percentile(counted, 1) / 1000,
  };
}

function brokerArguments({ name, config }: UpstreamCase): string[] {
  if (name === "redis-stream") return ["stream", config["uri"] ?? "", STREAM];
  if (name === SLOW_CASE) return ["webhook", LATENCY_TARGET.exec(config["bridge_channels"] ?? "")?.[0] ?? "", ""];
  return [config["kind"] ?? "", config["uri"] ?? "", config["kind"] === "amqp" ? QUEUE : "bench"];
}

async function publishBare(bench: Bench, upstream: UpstreamCase, rate: number): Promise<void> {
  const mode = upstream.config["delivery_mode"] ?? upstream.config["qos"] ?? "1";
  await bench.home.start([
    BUN,
    join(ROOT_DIR, "tests/bench/latency_publisher.ts"),
    ...[...brokerArguments(upstream), String(rate), String(seconds(bench)), mode],
  ]).succeeded();
}

/** pgbench keeps the rate to the microsecond, with the irregular intervals of independent clients. */
async function commitThroughProxy(bench: Bench, upstream: UpstreamCase, rate: number): Promise<void> {
  const slot = await newSlot(bench.sql);
  let proxy: Program | undefined;
  try {
    proxy = bench.home.startProxy(bench.settings.runtime, {
      env: { ...proxyEnv(bench, slot, [upstream]), ...bench.settings.proxyEnv },
    });
    await untilReady(proxy);
    const script = join(bench.home.dir, "tick.sql");
    writeFileSync(script, `insert into ticks (note) values (repeat('0123456789', 15));\n`);
    await bench.home.start([
      join(bench.postgres.binDir, "pgbench"),
      ...["-h", "127.0.0.1", "-p", String(bench.postgres.port), "-U", "postgres", "-n", "-M", "prepared"],
      ...["-c", "2", "-j", "1", "-R", String(rate), "-T", String(seconds(bench)), "-f", script, bench.database.name],
    ]).succeeded();
    await delay(300);
  } finally {
    await proxy?.stop();
    await dropSlot(bench.sql, slot);
  }
}
