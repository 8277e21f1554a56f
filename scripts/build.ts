/** What scripts/build runs: compiles the executable for this machine, or those of a release. */

import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { basename, join, relative, resolve } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { billOfMaterials } from "./release/bill_of_materials.ts";
import { signAdHoc, signatureFault } from "./release/code_signature.ts";
import { platformOf, platformText } from "./release/executable_file.ts";
import { runtimeFor } from "./release/runtimes.ts";
import { BUN_VERSION, RELEASE_TARGETS, type ReleaseTarget, releaseTarget } from "./release/targets.ts";

const USAGE = "scripts/build [--all | --target NAME …] [--out FOLDER]";
const ROOT_DIR = fileURLToPath(new URL("..", import.meta.url)).replace(/\/$/, "");

interface Build {
  readonly version: string;
  readonly commit: string;
  readonly epochSeconds: number;
}

interface BuiltFile {
  readonly path: string;
  readonly bytes: number;
  readonly sha256: string;
}

try {
  main();
} catch (error) {
  process.stderr.write(`build: ${error instanceof Error ? error.message : error}\n`);
  process.exitCode = 1;
}

function main(): void {
  const { values } = parseArgs({
    options: { all: { type: "boolean" }, target: { type: "string", multiple: true }, out: { type: "string" } },
  });
  if (values.all && values.target !== undefined) throw new Error(`--all and --target exclude each other: ${USAGE}`);
  if (process.versions.bun !== BUN_VERSION) {
    throw new Error(`this is Bun ${process.versions.bun}, but scripts/release/targets.ts is for ${BUN_VERSION}`);
  }
  const build = describeBuild();
  const targets = values.all ? RELEASE_TARGETS : (values.target ?? []).map(releaseTarget);
  if (targets.length === 0) {
    buildForThisMachine(build, resolve(values.out ?? join(ROOT_DIR, "dist")));
  } else {
    buildRelease(build, targets, resolve(values.out ?? join(ROOT_DIR, "dist/release")));
  }
}

function buildForThisMachine(build: Build, outDir: string): void {
  const path = join(outDir, "pg-event-proxy");
  say(`building ${relative(process.cwd(), path)} ${build.version} (${build.commit})`);
  compile(build, path, []);
}

function buildRelease(build: Build, targets: readonly ReleaseTarget[], outDir: string): void {
  mkdirSync(outDir, { recursive: true });
  const files = targets.map((target) => {
    const suffix = target.os === "windows" ? ".exe" : "";
    const path = join(outDir, `pg-event-proxy-${build.version}-${target.name}${suffix}`);
    say(`building ${relative(process.cwd(), path)} (${build.commit})`);
    const runtime = runtimeFor(target, join(ROOT_DIR, ".tools/runtimes"));
    compile(build, path, [`--target=${target.bunTarget}`, `--compile-executable-path=${runtime}`]);
    if (target.os === "darwin" && signatureFault(readFileSync(path)) !== undefined) {
      writeFileSync(path, signAdHoc(readFileSync(path)));
    }
    const bytes = readFileSync(path);
    const found = platformText(platformOf(bytes));
    if (found !== platformText(target)) throw new Error(`${path} is for ${found}, not for ${platformText(target)}`);
    return describeFile(path, bytes);
  });
  const bill = join(outDir, `pg-event-proxy-${build.version}.cdx.json`);
  writeFileSync(bill, billOfMaterials({ ...build, ...bundle(build) }));
  files.push(describeFile(bill, readFileSync(bill)));
  const sums = files.map(({ path, sha256 }) => `${sha256}  ${basename(path)}\n`).sort();
  writeFileSync(join(outDir, "SHA256SUMS"), sums.join(""));
  printTable(files);
}

/**
 * The executable takes its configuration from its own environment and arguments, not from a .env or bunfig.toml that
 * happens to lie where it is started. `__dirname` would be the folder of the sources, and make two builds differ.
 */
function bundleFlags(build: Build): string[] {
  const date = new Date(build.epochSeconds * 1000).toISOString().slice(0, 10);
  return [
    "src/main.ts",
    "--minify",
    // What is imported dynamically (commands, upstreams) becomes files of their own, which are loaded only when needed.
    "--splitting",
    "--format=esm",
    `--define=PGPROXY_BUILD_VERSION=${JSON.stringify(build.version)}`,
    `--define=PGPROXY_BUILD_COMMIT=${JSON.stringify(build.commit)}`,
    `--define=PGPROXY_BUILD_DATE=${JSON.stringify(build.epochSeconds === 0 ? "unknown" : date)}`,
    `--define=__dirname=${JSON.stringify("/$bunfs/root")}`,
  ];
}

/** Into a new file, so that a running one is not in the way and a failed build leaves the old one. */
function compile(build: Build, path: string, flags: readonly string[]): void {
  const outDir = join(path, "..");
  mkdirSync(outDir, { recursive: true });
  const workDir = mkdtempSync(join(outDir, ".build-"));
  try {
    // The name is part of the executable: always the same, whatever the file is called.
    const built = join(workDir, path.endsWith(".exe") ? "pg-event-proxy.exe" : "pg-event-proxy");
    bun([
      "build",
      ...bundleFlags(build),
      "--compile",
      "--bytecode",
      "--no-compile-autoload-dotenv",
      "--no-compile-autoload-bunfig",
      ...flags,
      `--outfile=${built}`,
    ]);
    renameSync(built, path);
  } finally {
    rmSync(workDir, { recursive: true, force: true });
  }
}

/** What the bill of materials needs to know: the same bundle as in the executables, without one. */
function bundle(build: Build) {
  const workDir = mkdtempSync(join(ROOT_DIR, "dist/.bundle-"));
  try {
    const metafile = join(workDir, "meta.json");
    bun(["build", ...bundleFlags(build), "--target=bun", `--metafile=${metafile}`, `--outdir=${workDir}`]);
    const { inputs }: { inputs: Record<string, unknown> } = JSON.parse(readFileSync(metafile, "utf8"));
    return { bundledFiles: Object.keys(inputs), rootDir: ROOT_DIR, runtimeVersions: process.versions };
  } finally {
    rmSync(workDir, { recursive: true, force: true });
  }
}

/** The commit's date, not today's: the same sources give the same file. */
function describeBuild(): Build {
  const { version }: { version: string } = JSON.parse(readFileSync(join(ROOT_DIR, "deno.json"), "utf8"));
  const head = git(["log", "-1", "--format=%H %ct"]);
  const match = /^([0-9a-f]{12})[0-9a-f]* (\d+)$/.exec(head ?? "");
  if (match === null) return { version, commit: "unknown", epochSeconds: 0 };
  const isModified = git(["status", "--porcelain", "--", "src", "scripts", "deno.json", "deno.lock"]) !== "";
  return { version, commit: `${match[1]}${isModified ? "-modified" : ""}`, epochSeconds: Number(match[2]) };
}

function git(args: readonly string[]): string | undefined {
  const { status, stdout } = spawnSync("git", args, { cwd: ROOT_DIR, encoding: "utf8" });
  return status === 0 ? stdout.trim() : undefined;
}

function bun(args: readonly string[]): void {
  const { status, error, stdout, stderr } = spawnSync(process.execPath, args, { cwd: ROOT_DIR, encoding: "utf8" });
  if (error !== undefined) throw error;
  if (status !== 0) throw new Error(`bun build failed:\n${`${stdout}${stderr}`.trim().slice(-4_000)}`);
}

function describeFile(path: string, bytes: Uint8Array): BuiltFile {
  return { path, bytes: bytes.byteLength, sha256: createHash("sha256").update(bytes).digest("hex") };
}

function printTable(files: readonly BuiltFile[]): void {
  const width = Math.max(...files.map(({ path }) => basename(path).length));
  for (const { path, bytes, sha256 } of files) {
    const size = bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
    process.stdout.write(`${basename(path).padEnd(width)}  ${size.padStart(9)}  ${sha256}\n`);
  }
}

function say(text: string): void {
  process.stderr.write(`build: ${text}\n`);
}
