/** What Linux tells about a process: proc(5). Figures of a process that is gone stay as they were last seen. */

import { readdirSync, readFileSync } from "node:fs";

/** USER_HZ is 100 on every Linux architecture that the runtimes exist for. */
const MS_PER_TICK = 10;

/** User and system time of all threads, in milliseconds, with a resolution of 10 ms; undefined if it is gone. */
export function cpuMsOf(pid: number): number | undefined {
  // The command name is in parentheses and may hold anything; utime and stime are fields 14 and 15.
  const fields = read(`/proc/${pid}/stat`)?.replace(/^.*\) /s, "").split(" ");
  if (fields === undefined) return undefined;
  return (Number(fields[11]) + Number(fields[12])) * MS_PER_TICK;
}

/** Resident set in bytes, now (`VmRSS`) or at its highest (`VmHWM`); undefined if it is gone. */
export function rssBytesOf(pid: number, field: "VmRSS" | "VmHWM"): number | undefined {
  const kib = new RegExp(`^${field}:\\s+(\\d+) kB`, "m").exec(read(`/proc/${pid}/status`) ?? "")?.[1];
  return kib === undefined ? undefined : Number(kib) * 1024;
}

/** How often its threads slept of their own accord, which is how often it had caught up. */
export function voluntarySwitchesOf(pid: number): number | undefined {
  let sum: number | undefined;
  for (const thread of list(`/proc/${pid}/task`)) {
    const text = read(`/proc/${pid}/task/${thread}/status`) ?? "";
    const count = /^voluntary_ctxt_switches:\s+(\d+)/m.exec(text)?.[1];
    if (count !== undefined) sum = (sum ?? 0) + Number(count);
  }
  return sum;
}

/** The processes that `pid` started, as long as they run. */
export function childrenOf(pid: number): number[] {
  const text = read(`/proc/${pid}/task/${pid}/children`) ?? "";
  return text.split(" ").filter((word) => word !== "").map(Number);
}

/** Follows one process; `sample` now and then, and what it showed last is kept. */
export class ProcessMeter {
  readonly pid: number;
  #cpuMs = 0;
  #peakRssBytes = 0;
  #switches = 0;
  readonly #cpuMsAtStart: number;

  /** `fromNow`: what it has used so far does not count (a server that has been running for a while). */
  constructor(pid: number, fromNow = false) {
    this.pid = pid;
    this.#cpuMsAtStart = fromNow ? cpuMsOf(pid) ?? 0 : 0;
    this.#cpuMs = this.#cpuMsAtStart;
  }

  sample(): void {
    this.#cpuMs = cpuMsOf(this.pid) ?? this.#cpuMs;
  }

  /** Also what is dearer to ask and only needed at the end. */
  finish(): void {
    this.sample();
    this.#peakRssBytes = rssBytesOf(this.pid, "VmHWM") ?? this.#peakRssBytes;
    this.#switches = voluntarySwitchesOf(this.pid) ?? this.#switches;
  }

  get cpuMs(): number {
    return this.#cpuMs - this.#cpuMsAtStart;
  }
  get peakRssBytes(): number {
    return this.#peakRssBytes;
  }
  get voluntarySwitches(): number {
    return this.#switches;
  }
}

function read(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return undefined;
  }
}

function list(path: string): string[] {
  try {
    return readdirSync(path);
  } catch {
    return [];
  }
}
