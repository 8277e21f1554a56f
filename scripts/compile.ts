/**
 * The custom build: an executable by `deno compile`, with the upstreams that you choose and no more privileges than they
 * need.
 *
 *     deno task compile [--without mqtt,redis] [--out FILE] [--target x86_64-unknown-linux-gnu]
 */

import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { importMapWithout, PRIVILEGES } from "./release/custom_build.ts";

const ROOT_DIR = fileURLToPath(new URL("..", import.meta.url)).replace(/\/$/, "");

try {
  main();
} catch (error) {
  process.stderr.write(`compile: ${error instanceof Error ? error.message : error}\n`);
  process.exitCode = 1;
}

function main(): void {
  const { values } = parseArgs({
    options: { without: { type: "string", default: "" }, out: { type: "string" }, target: { type: "string" } },
  });
  const without = values.without.split(",").map((kind) => kind.trim()).filter((kind) => kind !== "");
  const out = resolve(values.out ?? join(ROOT_DIR, "dist/pg-event-proxy-deno"));
  mkdirSync(dirname(out), { recursive: true });
  const workDir = mkdtempSync(join(dirname(out), ".compile-"));
  try {
    const importMap = join(workDir, "import_map.json");
    writeFileSync(importMap, JSON.stringify(importMapWithout(without, ROOT_DIR), undefined, 2));
    const target = values.target === undefined ? [] : ["--target", values.target];
    const { status, error } = spawnSync(process.execPath, [
      "compile",
      "--no-prompt",
      ...PRIVILEGES,
      "--no-check",
      "--frozen",
      // Only what is imported, instead of the whole of node_modules with the tests' packages.
      "--node-modules-dir=none",
      "--exclude-unused-npm",
      `--import-map=${importMap}`,
      ...target,
      `--output=${out}`,
      "src/main.ts",
    ], { cwd: ROOT_DIR, stdio: "inherit" });
    if (error !== undefined) throw error;
    if (status !== 0) throw new Error("deno compile failed, see above");
  } finally {
    rmSync(workDir, { recursive: true, force: true });
  }
}
