/**
 * Runs the test files under the runtimes, on servers that it starts once, and adds up the counts.
 *
 *     bun tests/support/run_tests.ts all|deno|bun|executable|unit [test file or folder …]
 */

import { spawn } from "node:child_process";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join, relative, resolve } from "node:path";
import process from "node:process";
import { countJunit, type TestCounts } from "./junit.ts";
import { ROOT_DIR } from "./proxy.ts";
import { Workspace } from "./server_process.ts";
import {
  makePostgresTemplate,
  SERVER_VARIABLES,
  type SharedServers,
  sharedServers,
  stopEverything,
} from "./servers.ts";

type Runner = "deno" | "bun";

interface Run {
  readonly title: string;
  readonly runner: Runner;
  readonly files: readonly string[];
  readonly env: Readonly<Record<string, string>>;
}

/** A test that hangs must not hang the machine that runs it. */
const RUN_LIMIT_MS = 30 * 60_000;
const TEST_TIMEOUT_MS = 180_000;

const [what = "all", ...paths] = process.argv.slice(2);
const workspace = new Workspace("run");
const interrupted = new AbortController();
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.once(signal, () => interrupted.abort(signal));

let exitCode = 1;
try {
  const running = runAll();
  // After Ctrl-C what still starts or runs fails, since its servers go.
  running.catch(() => {});
  exitCode = await Promise.race([running, untilInterrupted()]);
} finally {
  await stopEverything();
}
process.exit(exitCode);

function untilInterrupted(): Promise<number> {
  return new Promise((resolve) => {
    interrupted.signal.addEventListener("abort", () => {
      process.stdout.write(`interrupted by ${interrupted.signal.reason}\n`);
      resolve(130);
    }, { once: true });
  });
}

async function runAll(): Promise<number> {
  const runs = planRuns();
  const env = what === "unit" ? {} : await startServers();
  const totals: Array<readonly [title: string, counts: TestCounts]> = [];
  for (const run of runs) {
    interrupted.signal.throwIfAborted();
    totals.push([run.title, await execute({ ...run, env: { ...env, ...run.env } }, totals.length)]);
  }
  interrupted.signal.throwIfAborted();
  process.stdout.write("\n");
  for (const [title, counts] of totals) process.stdout.write(`${title}: ${describe(counts)}\n`);
  const sum = totals.reduce((all, [, { passed, failed, skipped }]) => ({
    passed: all.passed + passed,
    failed: all.failed + failed,
    skipped: all.skipped + skipped,
  }), { passed: 0, failed: 0, skipped: 0 });
  process.stdout.write(`${describe(sum)}\n`);
  return sum.failed === 0 && sum.passed > 0 ? 0 : 1;
}

function planRuns(): Run[] {
  const under = (...folders: string[]) => folders.flatMap((folder) => testFiles(join(ROOT_DIR, folder)));
  const given = paths.flatMap((path) => testFiles(resolve(path)));
  const files = (...defaults: string[]) => paths.length > 0 ? given : under(...defaults);
  const run = (runner: Runner, selected: readonly string[], title = `under ${runner}`, env = {}): Run => {
    if (selected.length === 0) throw new Error(`no test files (*.test.ts) in ${paths.join(", ") || "tests"}`);
    return { title, runner, files: selected, env };
  };
  const executable = join(ROOT_DIR, "dist/pg-event-proxy");
  const asExecutable = () =>
    run("bun", files("tests/integration", "tests/faults"), "with the executable", {
      PGPROXY_TEST_EXECUTABLE: executable,
    });
  switch (what) {
    case "deno":
    case "bun":
      return [run(what, files("tests"))];
    case "executable":
      return [asExecutable()];
    case "unit":
      return [run("deno", files("tests/unit")), run("bun", files("tests/unit"))];
    case "all":
      return paths.length > 0 ? [run("deno", given), run("bun", given)] : [
        run("deno", under("tests")),
        // The executable is Bun's as well, and its tests run under Bun: from the sources only the main job is done again.
        run(
          "bun",
          under("tests/unit", "tests/support", "tests/integration/manual.test.ts", "tests/integration/cli.test.ts"),
        ),
        asExecutable(),
      ];
    default:
      throw new Error(`unknown run '${what}': all, deno, bun, executable or unit`);
  }
}

/** The test files under a folder in a fixed order; a file is given back as it is. Benchmarks are no tests. */
function testFiles(path: string): string[] {
  if (!existsSync(path)) throw new Error(`${path} does not exist`);
  if (statSync(path).isFile()) return [path];
  return readdirSync(path, { withFileTypes: true }).sort((a, b) => a.name < b.name ? -1 : 1).flatMap((entry) => {
    if (entry.isDirectory()) return entry.name === "bench" ? [] : testFiles(join(path, entry.name));
    return entry.name.endsWith(".test.ts") ? [join(path, entry.name)] : [];
  });
}

async function startServers(): Promise<Record<string, string>> {
  process.stdout.write("starting PostgreSQL, RabbitMQ, Mosquitto and Redis\n");
  const template = join(workspace.dir, "postgres_template");
  if (process.env[SERVER_VARIABLES.postgres] === undefined) {
    await makePostgresTemplate(template);
    process.env.PGPROXY_TEST_POSTGRES_TEMPLATE = template;
  }
  const servers = await sharedServers();
  const names = Object.keys(SERVER_VARIABLES) as Array<keyof SharedServers>;
  return Object.fromEntries(names.map((name) => [SERVER_VARIABLES[name], servers[name].uri]));
}

async function execute({ title, runner, files, env }: Run, index: number): Promise<TestCounts> {
  process.stdout.write(`\n=== ${title}: ${files.length} files ===\n`);
  const report = join(workspace.dir, `junit-${index}.xml`);
  const names = files.map((file) => `./${relative(ROOT_DIR, file)}`);
  const args = runner === "deno"
    ? ["test", "--quiet", "-A", "--no-check", `--junit-path=${report}`, ...names]
    : ["test", `--timeout=${TEST_TIMEOUT_MS}`, "--reporter=junit", `--reporter-outfile=${report}`, ...names];
  const exitCode = await runToEnd(join(ROOT_DIR, ".tools/node_modules/.bin", runner), args, env);
  const counts = existsSync(report) ? countJunit(readFileSync(report, "utf8")) : { passed: 0, failed: 0, skipped: 0 };
  if (exitCode === 0 || counts.failed > 0) return counts;
  // A file that could not be loaded, a crash, a hang: no test failed, yet the run did.
  process.stdout.write(`${title}: the test runner ended with ${exitCode}\n`);
  return { ...counts, failed: 1 };
}

function runToEnd(file: string, args: string[], env: Readonly<Record<string, string>>): Promise<number | string> {
  return new Promise((resolve, reject) => {
    const child = spawn(file, args, { cwd: ROOT_DIR, env: { ...process.env, ...env }, stdio: "inherit" });
    const timer = setTimeout(() => {
      process.stdout.write(`no end after ${RUN_LIMIT_MS / 60_000} minutes: killed\n`);
      child.kill("SIGKILL");
    }, RUN_LIMIT_MS);
    const onInterrupt = () => child.kill("SIGKILL");
    interrupted.signal.addEventListener("abort", onInterrupt, { once: true });
    child.once("error", reject);
    child.once("exit", (code, signal) => {
      clearTimeout(timer);
      interrupted.signal.removeEventListener("abort", onInterrupt);
      resolve(code ?? signal ?? "unknown");
    });
  });
}

function describe({ passed, failed, skipped }: TestCounts): string {
  return `${passed} passed, ${failed} failed, ${skipped} skipped`;
}
