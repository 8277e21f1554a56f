/**
 * One pass over a dataset, by pg_recvlogical or by the proxy. Both are measured alike: from just before the process is
 * made until the server shows that the slot's confirmed_flush_lsn has passed the last commit. So both include their
 * start, the connection, and the time until what was done is confirmed; and both bear the same polling.
 */

import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import type { ProxyRuntime } from "../support/proxy.ts";
import { until } from "../support/wait.ts";
import type { Bench } from "./bench.ts";
import { type Dataset, readSlot, withSlotCopy } from "./dataset.ts";
import { childrenOf, ProcessMeter } from "./process_figures.ts";
import type { Program } from "./program.ts";
import type { UpstreamCase } from "./upstream_cases.ts";

const POLL_MS = 15;
const TIMEOUT_MS = 20 * 60_000;

export interface Pass {
  readonly seconds: number;
  readonly clientCpuMs: number;
  readonly walsenderCpuMs: number;
  readonly brokerCpuMs: number;
  readonly peakRssBytes: number;
  readonly voluntarySwitches: number;
}

export function runReference(bench: Bench, dataset: Dataset): Promise<Pass> {
  return withSlotCopy(bench, dataset.slot, async (slot) => {
    const program = bench.home.start([
      join(bench.postgres.binDir, "pg_recvlogical"),
      ...["-h", "127.0.0.1", "-p", String(bench.postgres.port), "-U", "postgres", "-d", bench.database.name],
      ...["--slot", slot, "--start", "-f", "/dev/null", "-o", "format-version=2", "-o", "include-types=0"],
      ...["--endpos", dataset.endLsn, "--no-loop"],
    ]);
    return await measure(bench, dataset, slot, program, undefined);
  });
}

export interface ProxyPassOptions {
  readonly runtime?: ProxyRuntime;
  /** Put before the command: `perf stat …`. Its child is what is measured. */
  readonly prefix?: readonly string[];
  readonly runtimeArgs?: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
}

export async function runProxy(
  bench: Bench,
  dataset: Dataset,
  upstreams: readonly UpstreamCase[],
  options: ProxyPassOptions = {},
): Promise<Pass> {
  for (const upstream of upstreams) await upstream.prepare();
  const pass = await withSlotCopy(bench, dataset.slot, async (slot) => {
    const program = bench.home.startProxy(options.runtime ?? bench.settings.runtime, {
      env: { ...proxyEnv(bench, slot, upstreams), ...bench.settings.proxyEnv, ...options.env },
      prefix: options.prefix,
      runtimeArgs: options.runtimeArgs,
    });
    const inPrefix = options.prefix !== undefined;
    return await measure(bench, dataset, slot, program, upstreams[0]?.brokerPid, inPrefix);
  });
  for (const upstream of upstreams) await upstream.finish(dataset.events);
  return pass;
}

/** The second form of the configuration: any number of upstreams on one slot. */
export function proxyEnv(bench: Bench, slot: string, upstreams: readonly UpstreamCase[]): Record<string, string> {
  const env: Record<string, string> = {
    "PGPROXY_DATABASE-URI": bench.database.uri,
    "PGPROXY_DATABASE-REPLICATION_SLOT": slot,
  };
  for (const [index, upstream] of upstreams.entries()) {
    Object.assign(env, upstream.env);
    for (const [key, value] of Object.entries(upstream.config)) {
      env[`PGPROXY_UPSTREAM-BENCH${index + 1}-${key.toUpperCase()}`] = value;
    }
  }
  return env;
}

/** Every source and upstream is connected. */
export async function untilReady(program: Program): Promise<void> {
  await until(() => {
    if (program.ended !== undefined) return "ended";
    return program.stderr.includes('"ready: every source and upstream is connected"');
  }, { what: () => `the proxy to be ready\n${program.stderr}`, timeoutMs: 30_000, intervalMs: 5 });
  program.assertRunning();
}

async function measure(
  bench: Bench,
  dataset: Dataset,
  slot: string,
  program: Program,
  brokerPid: number | undefined,
  isChild = false,
): Promise<Pass> {
  const broker = brokerPid === undefined ? undefined : new ProcessMeter(brokerPid, true);
  let client = new ProcessMeter(program.pid);
  let walsender: ProcessMeter | undefined;
  const deadline = performance.now() + TIMEOUT_MS;
  try {
    for (;;) {
      const reading = await readSlot(bench.sql, slot, dataset.endLsn);
      if (reading.walsenderPid !== null) walsender ??= new ProcessMeter(reading.walsenderPid);
      walsender?.sample();
      const [child] = isChild && client.pid === program.pid ? childrenOf(client.pid) : [];
      if (child !== undefined) client = new ProcessMeter(child);
      client.finish();
      if (reading.passed) break;
      if (program.ended?.code !== 0) program.assertRunning();
      if (performance.now() > deadline) throw new Error(`${program.command[0]} did not come to the end`);
      await delay(POLL_MS);
    }
    const seconds = (performance.now() - program.startedAtMs) / 1000;
    broker?.finish();
    return {
      seconds,
      clientCpuMs: client.cpuMs,
      walsenderCpuMs: walsender?.cpuMs ?? 0,
      brokerCpuMs: broker?.cpuMs ?? 0,
      peakRssBytes: client.peakRssBytes,
      voluntarySwitches: client.voluntarySwitches,
    };
  } finally {
    await program.stop(client.pid);
  }
}
