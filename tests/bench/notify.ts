/** NOTIFY throughput: out of one transaction, and out of one transaction each. */

import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { Redis } from "ioredis";
import amqp from "amqplib";
import { ROOT_DIR } from "../support/proxy.ts";
import { until } from "../support/wait.ts";
import { type Bench, say } from "./bench.ts";
import { ProcessMeter } from "./process_figures.ts";
import type { Program } from "./program.ts";
import { figure, megabytes, NO_FIGURE, type Section } from "./report.ts";
import { median } from "./statistics.ts";
import { QUEUE, type UpstreamCase, upstreamCase, wantedCases } from "./upstream_cases.ts";
import { proxyEnv, untilReady } from "./wal_run.ts";

const CASES = ["stdout", "redis", "amqp-1", "amqp-2"];
const TIMEOUT_MS = 180_000;

interface Load {
  readonly label: string;
  readonly notifications: number;
  /** Whether each is committed by itself. */
  readonly single: boolean;
}

interface Pass {
  /** From before the first is sent until the last has arrived. */
  readonly seconds: number;
  readonly sendSeconds: number;
  readonly clientCpuMs: number;
  readonly peakRssBytes: number;
}

interface Result {
  readonly load: string;
  readonly receiver: string;
  readonly notifications: number;
  readonly passes: readonly Pass[];
}

/** Something that notifications arrive at. */
interface Receiver {
  readonly label: string;
  start(last: string): Promise<{ readonly program: Program; arrived(count: number): Promise<void> }>;
  finish(count: number): Promise<void>;
}

export async function notifySection(bench: Bench): Promise<Section> {
  const size = bench.settings.rows;
  const loads: Load[] = [
    // More than about 180,000 of these would pass the bound of the proxy's buffer (64 MiB) and be dropped.
    { label: "one transaction", notifications: size ?? (bench.quick ? 30_000 : 100_000), single: false },
    { label: "one transaction each", notifications: size ?? (bench.quick ? 10_000 : 50_000), single: true },
  ];
  const names = wantedCases(bench, bench.quick ? ["stdout", "redis"] : CASES);
  const receivers = [bareListener(bench)];
  for (const name of names) receivers.push(proxyReceiver(bench, await upstreamCase(bench, name, { channel: CHANNEL })));
  const results: Result[] = [];
  for (const load of loads) {
    const passes = receivers.map((): Pass[] => []);
    for (let round = 0; round < (bench.settings.pairs ?? (bench.quick ? 2 : 5)); round++) {
      for (const [index, receiver] of receivers.entries()) {
        const pass = await runLoad(bench, load, receiver);
        passes[index]?.push(pass);
        say(`${load.label}, ${receiver.label}: ${figure(load.notifications / pass.seconds)} notifications/s`);
      }
    }
    for (const [index, { label }] of receivers.entries()) {
      results.push({
        load: load.label,
        receiver: label,
        notifications: load.notifications,
        passes: passes[index] ?? [],
      });
    }
  }
  return { name: "notify", tables: [table(results)], verdicts: [], raw: results };
}

const CHANNEL = "bench_events";

function table(results: readonly Result[]) {
  return {
    title: "NOTIFY throughput",
    note:
      "Payloads of about 110 bytes. From the first pg_notify until the last message has arrived; the bare listener is " +
      "the same client library that only counts. One session sends; its own rate is beside.",
    columns: ["", "to:", "notifications/s", "sent/s", "ratio to bare", "µs CPU each", "peak RSS MB"],
    rows: results.map(({ load, receiver, notifications, passes }) => {
      const bare = results.find((other) => other.load === load && other.receiver === BARE)?.passes ?? [];
      const ratios = passes.map(({ seconds }, index) => (bare[index]?.seconds ?? NaN) / seconds);
      return [
        load,
        receiver,
        figure(median(passes.map(({ seconds }) => notifications / seconds))),
        figure(median(passes.map(({ sendSeconds }) => notifications / sendSeconds))),
        receiver === BARE ? NO_FIGURE : figure(median(ratios)),
        figure((median(passes.map(({ clientCpuMs }) => clientCpuMs)) * 1000) / notifications),
        megabytes(Math.max(...passes.map(({ peakRssBytes }) => peakRssBytes))),
      ];
    }),
  };
}

async function runLoad(bench: Bench, load: Load, receiver: Receiver): Promise<Pass> {
  const last = `last-${randomBytes(4).toString("hex")}`;
  const { program, arrived } = await receiver.start(last);
  try {
    const meter = new ProcessMeter(program.pid, true);
    const startedAtMs = performance.now();
    const sent = send(bench, load, last).then(() => (performance.now() - startedAtMs) / 1000);
    await Promise.all([sent, arrived(load.notifications)]);
    const seconds = (performance.now() - startedAtMs) / 1000;
    meter.finish();
    return {
      seconds,
      sendSeconds: await sent,
      clientCpuMs: meter.cpuMs,
      peakRssBytes: meter.peakRssBytes,
    };
  } finally {
    await program.stop();
    await receiver.finish(load.notifications);
  }
}

async function send(bench: Bench, load: Load, last: string): Promise<void> {
  const payload =
    `'key|' || repeat('0123456789', 10) || case when i = ${load.notifications} then '${last}' else i::text end`;
  if (!load.single) {
    await bench.sql.unsafe(
      `select count(pg_notify('${CHANNEL}', ${payload})) from generate_series(1, ${load.notifications}) i`,
    );
    return;
  }
  await bench.sql.unsafe(
    `do $$ begin for i in 1 .. ${load.notifications} loop perform pg_notify('${CHANNEL}', ${payload}); commit; end loop; end $$`,
  );
}

const BARE = "bare listener";

function bareListener(bench: Bench): Receiver {
  return {
    label: BARE,
    start: async (last) => {
      let output = "";
      const program = bench.home.start([
        join(ROOT_DIR, ".tools/node_modules/.bin/bun"),
        join(ROOT_DIR, "tests/bench/bare_listener.ts"),
        ...[bench.database.uri, CHANNEL, last],
      ], { onStdout: (chunk) => output += chunk });
      await untilSeen("the bare listener to listen", () => output.startsWith("ready"));
      return {
        program,
        arrived: async (count) => {
          await untilSeen("the last notification at the bare listener", () => output.includes(last));
          const received = Number(output.split(`${last} `)[1]);
          if (received !== count) throw new Error(`the bare listener got ${received} notifications of ${count}`);
        },
      };
    },
    finish: async () => {},
  };
}

function proxyReceiver(bench: Bench, upstream: UpstreamCase): Receiver {
  const start = async (onStdout?: (chunk: Uint8Array) => void) => {
    await upstream.prepare();
    const program = bench.home.startProxy(bench.settings.runtime, {
      env: { ...proxyEnv(bench, "unused", [upstream]), ...bench.settings.proxyEnv },
      ...onStdout === undefined ? {} : { onStdout },
    });
    await untilReady(program);
    return program;
  };
  const { kind, uri = "" } = upstream.config;
  return {
    label: kind === "stdout" ? "stdout to a pipe" : upstream.label,
    start: async (last) => {
      if (kind === "stdout") {
        let seen = false;
        const program = await start((chunk) => seen ||= Buffer.from(chunk).includes(last));
        return { program, arrived: () => untilSeen("the last notification on stdout", () => seen) };
      }
      const counter = kind === "redis" ? await redisCounter(uri) : await queueCounter(uri);
      const program = await start();
      const arrived = async (count: number) => {
        await untilSeen(`the last notification at ${upstream.label}`, async () => await counter.count() >= count);
        await counter.close();
      };
      return { program, arrived };
    },
    finish: (count) => upstream.finish(count),
  };
}

/** What a broker counts by itself: a consumer would take processor time. */
interface Counter {
  count(): Promise<number>;
  close(): Promise<unknown>;
}

async function redisCounter(uri: string): Promise<Counter> {
  const client = new Redis(uri);
  const published = async () => Number(/cmdstat_publish:calls=(\d+)/.exec(await client.info("commandstats"))?.[1] ?? 0);
  const before = await published();
  return { count: async () => await published() - before, close: () => client.quit() };
}

async function queueCounter(uri: string): Promise<Counter> {
  const connection = await amqp.connect(uri);
  const channel = await connection.createChannel();
  return { count: async () => (await channel.checkQueue(QUEUE)).messageCount, close: () => connection.close() };
}

async function untilSeen(what: string, condition: () => boolean | Promise<boolean>): Promise<void> {
  await until(condition, { what, timeoutMs: TIMEOUT_MS, intervalMs: 10 });
}
