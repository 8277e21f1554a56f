/** How often the proxy reads its sockets, counted by `perf stat` in a pass of its own that is not timed. */

import { execFileSync } from "node:child_process";
import { readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { Bench } from "./bench.ts";
import type { Dataset } from "./dataset.ts";
import type { UpstreamCase } from "./upstream_cases.ts";
import { runProxy } from "./wal_run.ts";

/** Those that take bytes from a socket, under Bun and Deno. /proc/PID/io does not count them. */
const READS = ["recvfrom", "recvmsg", "read", "readv"];
const WRITES = ["sendto", "sendmsg", "write", "writev"];
const WAITS = ["epoll_wait", "epoll_pwait", "epoll_pwait2", "futex"];

export type SystemCalls = Readonly<Record<string, number>>;

/** Reads of sockets and files, of WAL chunks and of the broker's answers; undefined where perf cannot count them. */
export async function countReads(bench: Bench, dataset: Dataset, upstream: UpstreamCase): Promise<number | undefined> {
  const calls = await countSystemCalls(bench, dataset, upstream);
  return calls === undefined ? undefined : READS.reduce((sum, name) => sum + (calls[name] ?? 0), 0);
}

export async function countSystemCalls(
  bench: Bench,
  dataset: Dataset,
  upstream: UpstreamCase,
): Promise<SystemCalls | undefined> {
  if (!canCount()) return undefined;
  const file = join(bench.home.dir, "perf.csv");
  const events = [...READS, ...WRITES, ...WAITS].map((name) => `syscalls:sys_enter_${name}`).join(",");
  await runProxy(bench, dataset, [upstream], {
    prefix: ["perf", "stat", "-x", ";", "-o", file, "-e", events, "--"],
  });
  const calls: Record<string, number> = {};
  for (const line of readFileSync(file, "utf8").split("\n")) {
    const [, count, name] = /^(\d+);[^;]*;syscalls:sys_enter_(\w+)/.exec(line) ?? [];
    if (name !== undefined) calls[name] = Number(count);
  }
  rmSync(file);
  return calls;
}

function canCount(): boolean {
  try {
    execFileSync("perf", ["stat", "-e", "syscalls:sys_enter_recvfrom", "true"], { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
}
