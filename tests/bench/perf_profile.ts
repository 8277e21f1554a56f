/** A profile by `perf record`, with the names of functions that JavaScriptCore or V8 compiled at run time. */

import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ROOT_DIR } from "../support/proxy.ts";
import type { Bench } from "./bench.ts";
import type { Dataset } from "./dataset.ts";
import { figure, type Table } from "./report.ts";
import type { UpstreamCase } from "./upstream_cases.ts";
import { runProxy } from "./wal_run.ts";

const SHOWN = 40;

interface Line {
  readonly share: number;
  readonly thread: string;
  readonly object: string;
  readonly symbol: string;
}

export async function perfProfile(
  bench: Bench,
  dataset: Dataset,
  upstream: UpstreamCase,
  file: string,
): Promise<Table[]> {
  const { runtime } = bench.settings;
  const dumpDir = join(bench.home.dir, "jit");
  const mapsBefore = perfMaps();
  rmSync(dumpDir, { recursive: true, force: true });
  mkdirSync(dumpDir);
  const pass = await runProxy(bench, dataset, [upstream], {
    prefix: ["perf", "record", "-q", "-F", "2000", "-o", file, "--"],
    ...runtime === "deno" ? { runtimeArgs: ["--v8-flags=--perf-basic-prof"] } : {
      // JavaScriptCore's options, which Bun takes from variables with this prefix.
      env: { BUN_JSC_useJITDump: "1", BUN_JSC_jitDumpDirectory: dumpDir },
    },
  });
  for (const name of readdirSync(dumpDir).filter((each) => each.endsWith(".dump"))) writePerfMap(join(dumpDir, name));
  const lines = report(file);
  for (const map of perfMaps().filter((each) => !mapsBefore.includes(each))) rmSync(map);
  const cpuUs = (pass.clientCpuMs * 1000) / dataset.events;
  const rows = (key: (line: Line) => string) =>
    sums(lines, key).map(([name, share]) => [name, figure(share), figure((share / 100) * cpuUs)]);
  const title = `${upstream.label}, ${runtime}`;
  const columns = ["", "share %", "µs/event"];
  return [
    {
      title: `${title}, by thread`,
      note: `${figure(pass.seconds)} s, ${figure(cpuUs)} µs CPU per event, start included; all of it in ${file}`,
      columns,
      rows: rows(({ thread }) => thread).slice(0, 8),
    },
    { title: `${title}, by kind of code`, columns, rows: rows(kindOf).slice(0, 8) },
    { title: `${title}, by function`, columns, rows: rows(functionOf).slice(0, SHOWN) },
  ];
}

function report(file: string): Line[] {
  const sort = ["--sort", "comm,dso,symbol", "--percent-limit", "0"];
  const text = execFileSync("perf", ["report", "-i", file, "--stdio", "-q", ...sort], {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "ignore"],
    maxBuffer: 256e6,
  });
  return text.split("\n").flatMap((line) => {
    const [, share, thread, object, symbol] = /^\s*([\d.]+)%\s+(.+?)\s{2,}(\S.*?)\s{2,}(\[.\] .*\S)\s*$/.exec(line) ??
      [];
    if (share === undefined || thread === undefined || object === undefined || symbol === undefined) return [];
    return [{ share: Number(share), thread, object, symbol: symbol.replace(/\s+-\s+-$/, "") }];
  });
}

function sums(lines: readonly Line[], key: (line: Line) => string): Array<[string, number]> {
  const shares = new Map<string, number>();
  for (const line of lines) shares.set(key(line), (shares.get(key(line)) ?? 0) + line.share);
  return [...shares].sort(([, a], [, b]) => b - a);
}

function kindOf({ object, symbol }: Line): string {
  if (symbol.startsWith("[k]")) return "kernel";
  const tier = /^\[\.\] JSC-(\w+)/.exec(symbol)?.[1];
  if (tier !== undefined) return `JavaScript, ${tier}`;
  if (object.startsWith("[JIT]") || object.startsWith("perf-")) return "JavaScript";
  return object;
}

/** The runtimes come without symbols: what is theirs stays an address, and is summed up under their name. */
function functionOf({ object, symbol }: Line): string {
  // V8 puts the tier before the name and the place after it: `JS:*'name file:///…/lane.ts:243:8`.
  const name = symbol.replace(/^\[.\] /, "").replace(/^JSC-\w+: /, "").replace(/#\w+$/, "").replace(/^JS:[*~^+']+/, "")
    .replace(/ file:\S*\/node_modules\//, " ").replace(`file://${ROOT_DIR}/`, "").slice(0, 90);
  if (/^0x[0-9a-f]+$/.test(name)) return `(in ${object.startsWith("[JIT]") ? "code compiled at run time" : object})`;
  return symbol.startsWith("[k]") ? `${name} (kernel)` : name;
}

/** perf(1) looks for them there and nowhere else; V8 writes them, of JavaScriptCore we do. */
function perfMaps(): string[] {
  return readdirSync("/tmp").filter((name) => /^perf-\d+\.map$/.test(name)).map((name) => join("/tmp", name));
}

/**
 * `perf inject --jit` does not take Bun's dumps, whose names hold a thread's id; `perf report` does take a map of
 * addresses. The format: tools/perf/Documentation/jitdump-specification.txt of Linux.
 */
function writePerfMap(dumpFile: string): void {
  const dump = readFileSync(dumpFile);
  const lines: string[] = [];
  let pid = 0;
  for (let at = dump.readUInt32LE(8); at + 56 <= dump.length;) {
    const [kind, size] = [dump.readUInt32LE(at), dump.readUInt32LE(at + 4)];
    if (size === 0) break;
    if (kind === 0) {
      pid = dump.readUInt32LE(at + 16);
      const [address, length] = [dump.readBigUInt64LE(at + 32), dump.readBigUInt64LE(at + 40)];
      const name = dump.subarray(at + 56, dump.indexOf(0, at + 56)).toString("utf8");
      lines.push(`${address.toString(16)} ${length.toString(16)} ${name}\n`);
    }
    at += size;
  }
  if (pid !== 0) writeFileSync(`/tmp/perf-${pid}.map`, lines.join(""));
}
