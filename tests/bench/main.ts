/**
 * The benchmark, as `scripts/bench` calls it. Every figure is of this machine in this run: compare the columns of one
 * table, not one day with another.
 */

import { loadavg } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { type ProxyRuntime, ROOT_DIR } from "../support/proxy.ts";
import { Bench, Brokers, type Mode, say, type Settings } from "./bench.ts";
import { outboxSection } from "./outbox_section.ts";
import { notifySection } from "./notify.ts";
import { startSection } from "./start.ts";
import { peersSection } from "./peers.ts";
import { profileSection } from "./profile.ts";
import { denoSection } from "./deno.ts";
import { growthSection } from "./growth.ts";
import { latencySection } from "./latency.ts";
import { commit, machine, versions } from "./machine.ts";
import { loadBenchFile, markdownReport, saveSection, type Section, terminalTable, verdictTable } from "./report.ts";
import { walSection } from "./wal.ts";

const SECTIONS: Readonly<Record<string, (bench: Bench) => Promise<Section>>> = {
  wal: walSection,
  notify: notifySection,
  latency: latencySection,
  growth: growthSection,
  start: startSection,
  deno: denoSection,
  outbox: outboxSection,
  peers: peersSection,
  profile: profileSection,
};

/** Asked for by name only. */
const NOT_BY_DEFAULT = ["peers", "profile"];
const DEFAULT_SECTIONS = Object.keys(SECTIONS).filter((name) => !NOT_BY_DEFAULT.includes(name));

interface CommandLine {
  readonly settings: Settings;
  readonly sections: readonly string[];
  readonly markdown: boolean;
  readonly jsonFile: string;
}

async function main(): Promise<void> {
  const { settings, sections, markdown, jsonFile } = readCommandLineOrExit();
  if (sections.length > 0) warnIfBusy();
  const brokers = new Brokers();
  try {
    for (const name of sections) await runSection(name, settings, brokers, jsonFile, markdown);
  } finally {
    await brokers.stop();
  }
  if (sections.every((name) => name === "profile") && sections.length > 0) return;
  const file = loadBenchFile(jsonFile);
  if (file === undefined) throw new Error(`${jsonFile} is not there: run scripts/bench first`);
  if (markdown) {
    console.log(markdownReport(file));
    return;
  }
  const shown = Object.values(file.sections).filter(({ name }) => sections.length === 0 || sections.includes(name));
  const verdicts = shown.flatMap((section) => section.verdicts);
  if (sections.length === 0) { for (const table of shown.flatMap(({ tables }) => tables)) print(terminalTable(table)); }
  if (verdicts.length > 0) print(terminalTable(verdictTable(verdicts)));
  print(`Every figure: ${jsonFile}`);
}

async function runSection(
  name: string,
  settings: Settings,
  brokers: Brokers,
  jsonFile: string,
  quiet: boolean,
): Promise<void> {
  const run = SECTIONS[name];
  if (run === undefined) throw new Error(`no section "${name}"`);
  const startedAt = new Date();
  const loadAtStart = loadavg()[0] ?? NaN;
  say(`${name}: starting PostgreSQL`);
  const bench = await Bench.start(settings, brokers);
  const stop = onSignal(() => Promise.all([bench.stop(), brokers.stop()]));
  try {
    const section = await run(bench);
    if (!quiet) { for (const table of section.tables) print(terminalTable(table)); }
    if (name === "profile") return;
    saveSection(jsonFile, { machine: machine(), versions: versions(bench.postgres.binDir) }, {
      ...section,
      commit: commit(),
      mode: settings.mode,
      loadAtStart,
      startedAt: startedAt.toISOString(),
      seconds: Math.round((Date.now() - startedAt.getTime()) / 1000),
    });
  } finally {
    stop();
    await bench.stop();
  }
}

/** Whatever else runs takes its share of two cores, unevenly. */
function warnIfBusy(): void {
  const load = loadavg()[0] ?? 0;
  if (load > 1) say(`the machine is busy (load ${load.toFixed(1)}): the figures will say little`);
}

function readCommandLineOrExit(): CommandLine {
  try {
    return readCommandLine(process.argv.slice(2));
  } catch (error) {
    process.stderr.write(`bench: ${error instanceof Error ? error.message : String(error)}\n`);
    process.exit(2);
  }
}

function readCommandLine(args: readonly string[]): CommandLine {
  const { values, positionals } = parseArgs({
    args: [...args],
    allowPositionals: true,
    options: {
      rows: { type: "string" },
      pairs: { type: "string" },
      upstream: { type: "string" },
      transaction: { type: "string" },
      runtime: { type: "string", default: "executable" },
      sampler: { type: "string", default: "perf" },
      set: { type: "string", multiple: true, default: [] },
      json: { type: "string", default: join(ROOT_DIR, "dist/bench.json") },
      markdown: { type: "boolean", default: false },
    },
  });
  const words = new Set(positionals);
  const mode: Mode = words.delete("quick") ? "quick" : "full";
  words.delete("full");
  const table = words.delete("table");
  const unknown = [...words].find((word) => SECTIONS[word] === undefined);
  if (unknown !== undefined) {
    throw new Error(`unknown "${unknown}": quick, full, table, ${Object.keys(SECTIONS).join(", ")}`);
  }
  const runtime = runtimeOf(values.runtime);
  const { sampler } = values;
  if (sampler !== "own" && sampler !== "perf") throw new Error(`--sampler is "${sampler}"; it may be perf or own`);
  if (sampler === "own" && runtime === "executable") {
    throw new Error('--sampler is "own", which an executable has not: add --runtime bun or --runtime deno');
  }
  return {
    settings: {
      mode,
      rows: positive("--rows", values.rows),
      pairs: positive("--pairs", values.pairs),
      upstreams: values.upstream?.split(","),
      transactions: values.transaction?.split(",").map((word) => word === "all" ? word : Number(word)),
      runtime,
      sampler,
      proxyEnv: Object.fromEntries(values.set.map((text) => {
        const at = text.indexOf("=");
        return [text.slice(0, at), text.slice(at + 1)];
      })),
    },
    sections: table ? [] : words.size > 0 ? [...words] : DEFAULT_SECTIONS,
    markdown: values.markdown,
    jsonFile: values.json,
  };
}

function runtimeOf(name: string): ProxyRuntime {
  if (name === "executable" || name === "bun" || name === "deno") return name;
  throw new Error(`--runtime is "${name}"; it may be executable, bun or deno`);
}

function positive(option: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const value = Number(text.replaceAll("_", ""));
  if (!Number.isInteger(value) || value < 1) {
    throw new Error(`${option} is "${text}"; it takes a positive whole number`);
  }
  return value;
}

/** Runs `clean` when the terminal or a supervisor ends the program. Returns how to take that back. */
function onSignal(clean: () => Promise<unknown>): () => void {
  const end = () => void clean().finally(() => process.exit(130));
  process.once("SIGINT", end);
  process.once("SIGTERM", end);
  return () => {
    process.off("SIGINT", end);
    process.off("SIGTERM", end);
  };
}

function print(text: string): void {
  process.stdout.write(`${text}\n\n`);
}

await main();
