/** What the operating system says of this process. */

import { readdirSync } from "node:fs";
import process from "node:process";

export interface ProcessFigures {
  readonly cpuSeconds: number;
  readonly residentBytes: number;
  /** Since the Unix epoch. */
  readonly startSeconds: number;
  /** Undefined where there is no `/proc`. */
  readonly openFds: number | undefined;
}

export function readProcess(): ProcessFigures {
  const { user, system } = process.cpuUsage();
  return {
    cpuSeconds: (user + system) / 1e6,
    residentBytes: process.memoryUsage().rss,
    startSeconds: Math.round(performance.timeOrigin) / 1000,
    openFds: openFds(),
  };
}

function openFds(): number | undefined {
  try {
    return readdirSync("/proc/self/fd").length;
  } catch {
    return undefined;
  }
}
