/** Fetches the Bun runtime of another platform from the npm registry, once, and checks that it is the expected one. */

import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { BUN_VERSION, type ReleaseTarget } from "./targets.ts";

/**
 * The path of the runtime's executable in a folder of `toolsDir`, fetched if it is not there.
 *
 * Bun would download it by itself, but checks nothing; see `--compile-executable-path` of `bun build`.
 */
export function runtimeFor(target: ReleaseTarget, toolsDir: string): string {
  const program = target.os === "windows" ? "bun.exe" : "bun";
  const dir = join(toolsDir, `bun-${BUN_VERSION}-${target.name}`);
  const path = join(dir, program);
  if (existsSync(path)) return path;
  mkdirSync(toolsDir, { recursive: true });
  const workDir = mkdtempSync(join(toolsDir, "fetch-"));
  try {
    const wanted = `${target.npmPackage}@${BUN_VERSION}`;
    run("npm", ["pack", "--silent", wanted], workDir);
    const [archive] = readdirSync(workDir);
    if (archive === undefined) throw new Error(`npm pack ${wanted} left no file`);
    const found = integrityOf(readFileSync(join(workDir, archive)));
    if (found !== target.integrity) {
      throw new Error(
        `${wanted} has the integrity ${found}, but scripts/release/targets.ts expects ${target.integrity}`,
      );
    }
    run("tar", ["-xzf", archive, "--strip-components=2", `package/bin/${program}`], workDir);
    rmSync(join(workDir, archive));
    // Another build may have been quicker.
    if (!existsSync(path)) renameSync(workDir, dir);
  } finally {
    rmSync(workDir, { recursive: true, force: true });
  }
  return path;
}

/** Subresource integrity, https://www.w3.org/TR/SRI/. */
function integrityOf(bytes: Uint8Array): string {
  return `sha512-${createHash("sha512").update(bytes).digest("base64")}`;
}

function run(command: string, args: readonly string[], cwd: string): void {
  const { status, error, stderr } = spawnSync(command, args, { cwd, env: process.env, encoding: "utf8" });
  if (error !== undefined) throw new Error(`${command} could not be started: ${error.message}`);
  if (status !== 0) throw new Error(`${command} ${args.join(" ")} failed: ${stderr.trim().slice(-500)}`);
}
