/** From the start of the process to the first event, and what it takes to do nothing. */

import { setTimeout as delay } from "node:timers/promises";
import { Redis } from "ioredis";
import type { ProxyRuntime } from "../support/proxy.ts";
import { until } from "../support/wait.ts";
import { type Bench, say } from "./bench.ts";
import { type Dataset, dropDataset, dropSlot, newSlot, withSlotCopy, writeDataset } from "./dataset.ts";
import { cpuMsOf, rssBytesOf } from "./process_figures.ts";
import { figure, megabytes, type Section, type Table, type Verdict, verdict } from "./report.ts";
import { spread } from "./statistics.ts";
import { brokersOf, upstreamCase } from "./upstream_cases.ts";
import { proxyEnv, untilReady } from "./wal_run.ts";

const RUNTIMES: readonly ProxyRuntime[] = ["executable", "bun", "deno"];
const FIRST_EVENT_TARGET_MS = 500;
const IDLE_CPU_TARGET_PERCENT = 0.5;

interface FirstEvent {
  readonly runtime: ProxyRuntime;
  readonly upstream: string;
  readonly milliseconds: readonly number[];
}

interface Idle {
  readonly runtime: ProxyRuntime;
  readonly upstreams: readonly string[];
  readonly seconds: number;
  readonly cpuPercent: number;
  readonly rssBytes: number;
}

export async function startSection(bench: Bench): Promise<Section> {
  for (const name of brokersOf(["redis", "mqtt", "amqp"])) void bench.broker(name).catch(() => {});
  const dataset = await writeDataset(bench, { rows: 1, rowsPerTransaction: 1 });
  const runtimes = bench.quick ? RUNTIMES.slice(0, 1) : RUNTIMES;
  const first: FirstEvent[] = [];
  for (const runtime of runtimes) {
    first.push(
      await firstEvents(bench, dataset, runtime, "stdout"),
      await firstEvents(bench, dataset, runtime, "redis"),
    );
  }
  await dropDataset(bench, dataset);
  const idle: Idle[] = [];
  for (const runtime of runtimes) idle.push(await measureIdle(bench, runtime));
  return {
    name: "start",
    tables: [firstEventTable(first), idleTable(idle)],
    verdicts: [...first.map(firstEventVerdict), ...idle.map(idleVerdict)],
    raw: { first, idle },
  };
}

/** A change waits in the slot; the clock runs from the start of the process until the consumer has it. */
async function firstEvents(
  bench: Bench,
  dataset: Dataset,
  runtime: ProxyRuntime,
  name: "stdout" | "redis",
): Promise<FirstEvent> {
  const upstream = await upstreamCase(bench, name);
  const milliseconds: number[] = [];
  for (let round = 0; round < (bench.settings.pairs ?? (bench.quick ? 3 : 10)); round++) {
    const seen = Promise.withResolvers<number>();
    const subscriber = name === "redis" ? await subscribe(upstream.config["uri"] ?? "", seen.resolve) : undefined;
    milliseconds.push(
      await withSlotCopy(bench, dataset.slot, async (slot) => {
        const program = bench.home.startProxy(runtime, {
          env: { ...proxyEnv(bench, slot, [upstream]), ...bench.settings.proxyEnv },
          ...name === "stdout" ? { onStdout: () => seen.resolve(performance.now()) } : {},
        });
        const failed = program.exit.then(() => program.assertRunning()).then(() => NaN);
        try {
          return await Promise.race([seen.promise, failed]) - program.startedAtMs;
        } finally {
          failed.catch(() => {});
          await program.stop();
        }
      }),
    );
    subscriber?.disconnect();
  }
  const { median } = spread(milliseconds);
  say(`start to first event, ${runtime}, ${upstream.label}: ${figure(median)} ms`);
  return { runtime, upstream: name, milliseconds };
}

async function subscribe(uri: string, onMessage: (atMs: number) => void): Promise<Redis> {
  const client = new Redis(uri);
  client.on("message", () => onMessage(performance.now()));
  await client.subscribe("bench");
  return client;
}

/** LISTEN, a slot, and one upstream of every kind that has a broker, with nothing to do. */
async function measureIdle(bench: Bench, runtime: ProxyRuntime): Promise<Idle> {
  const names = ["redis", "mqtt-1", "amqp-2"];
  const upstreams = await Promise.all(names.map((name) => upstreamCase(bench, name)));
  for (const upstream of upstreams) await upstream.prepare();
  const listening = upstreams.map((upstream) => ({
    ...upstream,
    config: {
      ...upstream.config,
      bridge_channels: `${upstream.config["bridge_channels"]}, events->${
        upstream.config["kind"] === "amqp" ? "queue" : "topic"
      }:bench`,
    },
  }));
  const slot = await newSlot(bench.sql);
  const program = bench.home.startProxy(runtime, {
    env: { ...proxyEnv(bench, slot, listening), ...bench.settings.proxyEnv },
  });
  try {
    await untilReady(program);
    // Its start is over when it has used next to nothing for a second.
    await settled(program.pid);
    const seconds = bench.quick ? 10 : 60;
    const before = cpuMsOf(program.pid) ?? NaN;
    await delay(seconds * 1000);
    const usedMs = (cpuMsOf(program.pid) ?? NaN) - before;
    const idle = {
      runtime,
      upstreams: names,
      seconds,
      cpuPercent: usedMs / (seconds * 10),
      rssBytes: rssBytesOf(program.pid, "VmRSS") ?? NaN,
    };
    say(`idle, ${runtime}: ${figure(idle.cpuPercent)} % CPU, ${megabytes(idle.rssBytes)} MB`);
    return idle;
  } finally {
    await program.stop();
    await dropSlot(bench.sql, slot);
  }
}

async function settled(pid: number): Promise<void> {
  let before = cpuMsOf(pid) ?? 0;
  await until(() => {
    const now = cpuMsOf(pid) ?? 0;
    const used = now - before;
    before = now;
    return used <= 20;
  }, { what: "the proxy to come to rest", timeoutMs: 15_000, intervalMs: 1_000 });
}

function firstEventTable(results: readonly FirstEvent[]): Table {
  return {
    title: "Start of the process to the first event at its consumer",
    note: "Milliseconds; a change waits in the slot.",
    columns: ["", "upstream:", "median", "lowest", "highest", "target", ":"],
    rows: results.map(({ runtime, upstream, milliseconds }) => {
      const { median, min, max } = spread(milliseconds);
      const target = runtime === "executable"
        ? [`< ${FIRST_EVENT_TARGET_MS}`, median < FIRST_EVENT_TARGET_MS]
        : ["", ""];
      return [
        runtime,
        upstream,
        figure(median),
        figure(min),
        figure(max),
        String(target[0]),
        target[1] === "" ? "" : target[1] ? "met" : "missed",
      ];
    }),
  };
}

function idleTable(results: readonly Idle[]): Table {
  return {
    title: "Idle",
    note: "With a slot, LISTEN and an upstream each to Redis, MQTT and AMQP.",
    columns: ["", "seconds", "CPU %", "RSS MB"],
    rows: results.map(({ runtime, seconds, cpuPercent, rssBytes }) => [
      runtime,
      String(seconds),
      figure(cpuPercent),
      megabytes(rssBytes),
    ]),
  };
}

function firstEventVerdict({ runtime, upstream, milliseconds }: FirstEvent): Verdict {
  const target = { below: FIRST_EVENT_TARGET_MS };
  return verdict(`Start to first event, ${runtime}, ${upstream}`, spread(milliseconds).median, target, " ms");
}

function idleVerdict({ runtime, cpuPercent }: Idle): Verdict {
  return verdict(`Idle CPU, ${runtime}`, cpuPercent, { below: IDLE_CPU_TARGET_PERCENT }, " %");
}
