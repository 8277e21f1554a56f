/** Prometheus' own checker, from Debian's package `prometheus`. */

import { spawnSync } from "node:child_process";

/** Why it cannot be run here; undefined where it can. */
export function promtoolMissing(): string | undefined {
  const found = spawnSync("promtool", ["--version"]).status === 0;
  return found ? undefined : "promtool is missing: scripts/setup --servers installs it";
}

/** Throws with what it says, warnings included, unless it finds nothing. */
export function promtool(args: readonly string[], input = ""): void {
  const { status, stdout, stderr } = spawnSync("promtool", args, { input, encoding: "utf8" });
  if (status !== 0) throw new Error(`promtool ${args.join(" ")} ended with ${status}: ${stdout}${stderr}`);
}
