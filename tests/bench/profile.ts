/**
 * Where the proxy spends its processor time, per upstream: `scripts/bench profile --upstream redis --runtime bun`.
 *
 * By default `perf` samples the processor, also the kernel, the garbage collector and code compiled at run time
 * (perf_profile.ts). With `--sampler own` the runtime's own sampler runs (`--cpu-prof`), on the sources; its file in
 * dist/profiles opens in Chromium's developer tools and in speedscope. It samples the wall clock: on a busy machine a
 * function is charged with the time in which another process ran.
 */

import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { ProxyRuntime } from "../support/proxy.ts";
import { ROOT_DIR } from "../support/proxy.ts";
import { type Bench, say } from "./bench.ts";
import { type Dataset, dropDataset, writeDataset } from "./dataset.ts";
import { figure, type Section, type Table } from "./report.ts";
import { upstreamCase, wantedCases } from "./upstream_cases.ts";
import type { UpstreamCase } from "./upstream_cases.ts";
import { perfProfile } from "./perf_profile.ts";
import { runProxy } from "./wal_run.ts";

const SHOWN = 40;
const SAMPLE_INTERVAL_US = 500;
const PROFILES_DIR = join(ROOT_DIR, "dist/profiles");

export async function profileSection(bench: Bench): Promise<Section> {
  mkdirSync(PROFILES_DIR, { recursive: true });
  const tables: Table[] = [];
  for (const transaction of bench.settings.transactions ?? [100]) {
    const rows = bench.settings.rows ?? 300_000;
    say(`writing ${rows.toLocaleString("en-US")} rows in transactions of ${transaction}`);
    const dataset = await writeDataset(bench, { rows, rowsPerTransaction: transaction });
    for (const name of wantedCases(bench)) {
      const upstream = await upstreamCase(bench, name);
      const file = join(PROFILES_DIR, `${bench.settings.runtime}-${name}-${transaction}`);
      say(`profiling ${upstream.label}`);
      const { runtime, sampler } = bench.settings;
      if (sampler === "perf") tables.push(...await perfProfile(bench, dataset, upstream, `${file}.perf.data`));
      else tables.push(await scriptProfile(bench, dataset, upstream, `${file}.cpuprofile`, runtime));
    }
    await dropDataset(bench, dataset);
  }
  return { name: "profile", tables, verdicts: [], raw: undefined };
}

async function scriptProfile(
  bench: Bench,
  dataset: Dataset,
  upstream: UpstreamCase,
  file: string,
  runtime: ProxyRuntime,
): Promise<Table> {
  const dir = join(bench.home.dir, "profile");
  rmSync(dir, { recursive: true, force: true });
  mkdirSync(dir);
  const runtimeArgs = ["--cpu-prof", `--cpu-prof-dir=${dir}`, `--cpu-prof-interval=${SAMPLE_INTERVAL_US}`];
  const pass = await runProxy(bench, dataset, [upstream], { runtime, runtimeArgs });
  const [written] = readdirSync(dir).filter((name) => name.endsWith(".cpuprofile"));
  if (written === undefined) throw new Error(`${runtime} has written no profile`);
  renameSync(join(dir, written), file);
  const { lines, totalUs } = selfTimes(JSON.parse(readFileSync(file, "utf8")));
  const cpuUs = (pass.clientCpuMs * 1000) / dataset.events;
  return {
    title: `${upstream.label} under ${runtime}: ${file}`,
    note: `${figure(pass.seconds)} s, ${figure(cpuUs)} µs CPU per event, sampler and start included. Self time, its ` +
      "share of that.",
    columns: ["function", "share %", "µs/event", "where:"],
    rows: lines.slice(0, SHOWN).map(({ name, where, us }) => [
      name,
      figure((us / totalUs) * 100),
      figure((us / totalUs) * cpuUs),
      where,
    ]),
  };
}

/** https://chromedevtools.github.io/devtools-protocol/tot/Profiler/#type-Profile */
interface CpuProfile {
  readonly nodes: ReadonlyArray<{
    readonly id: number;
    readonly callFrame: { readonly functionName: string; readonly url: string; readonly lineNumber: number };
  }>;
  readonly samples: readonly number[];
  readonly timeDeltas: readonly number[];
}

interface SelfTime {
  readonly name: string;
  readonly where: string;
  us: number;
}

function selfTimes(profile: CpuProfile): { readonly lines: SelfTime[]; readonly totalUs: number } {
  const byPlace = new Map<string, SelfTime>();
  const places = new Map<number, SelfTime>();
  for (const { id, callFrame } of profile.nodes) {
    const { functionName, url, lineNumber } = callFrame;
    const name = functionName === "" ? "(anonymous)" : functionName;
    const where = url === "" ? "" : `${shortPath(url)}:${lineNumber + 1}`;
    const key = `${name} ${where}`;
    const place = byPlace.get(key) ?? { name, where, us: 0 };
    byPlace.set(key, place);
    places.set(id, place);
  }
  for (const [index, id] of profile.samples.entries()) {
    const place = places.get(id);
    // A long pause between two samples was a wait, not work of the function that was seen last.
    if (place !== undefined) place.us += Math.min(profile.timeDeltas[index] ?? 0, 2 * SAMPLE_INTERVAL_US);
  }
  const lines = [...byPlace.values()].filter(({ name }) => !["(idle)", "(root)", "(program)"].includes(name))
    .sort((a, b) => b.us - a.us);
  return { lines, totalUs: lines.reduce((sum, { us }) => sum + us, 0) };
}

function shortPath(url: string): string {
  const path = url.replace(/^file:\/\//, "").replace(`${ROOT_DIR}/`, "");
  return path.replace(/^.*node_modules\//, "");
}
