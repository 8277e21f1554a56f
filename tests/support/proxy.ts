/** Runs the program as its users do: as a process of its own, seen through its output and its exit code. */

import { type ChildProcess, spawn } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { homedir, tmpdir } from "node:os";
import { dirname, join } from "node:path";
import process from "node:process";
import { StringDecoder } from "node:string_decoder";
import { fileURLToPath } from "node:url";
import { PRIVILEGES } from "../../scripts/release/custom_build.ts";
import { Workspace } from "./server_process.ts";

export const ROOT_DIR = fileURLToPath(new URL("../..", import.meta.url)).replace(/\/$/, "");

/** `executable` is the file named by PGPROXY_TEST_EXECUTABLE. */
export type ProxyRuntime = "bun" | "deno" | "executable";

export interface ProxyOptions {
  readonly args?: readonly string[];
  /** The whole environment but for PATH and what the runtime itself needs. */
  readonly env?: Readonly<Record<string, string>>;
  /** What starts the program, instead of `runtime`; it gets the environment of the test, not `env`. */
  readonly command?: readonly string[];
  /** Files to put into the folder that the program runs in, by relative path. */
  readonly files?: Readonly<Record<string, string>>;
  /** Default: the executable if PGPROXY_TEST_EXECUTABLE names one, otherwise the runtime that runs this test. */
  readonly runtime?: ProxyRuntime;
  /** Write standard output to this file (`/dev/null`) instead of collecting it. */
  readonly stdoutFile?: string;
  readonly stdin?: string;
  /** Called with each line of standard output as it comes. */
  readonly onStdoutLine?: (line: string) => void;
}

export interface ProxyExit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

/** One line of standard error. */
export interface LogLine {
  readonly text: string;
  /** Its fields if it is a JSON object. */
  readonly json: Readonly<Record<string, unknown>> | undefined;
}

export interface Proxy {
  readonly pid: number;
  /** The folder it runs in; removed when it ends. */
  readonly dir: string;
  /** Standard output so far. */
  readonly stdout: string;
  readonly stderr: string;
  readonly log: readonly LogLine[];
  /** Resolves when it has ended and all its output was read. */
  readonly exit: Promise<ProxyExit>;
  /** The first line of standard error, also of those already written, that matches. Fails when the program ends. */
  waitForLog(matching: RegExp | ((line: LogLine) => boolean), timeoutMs?: number): Promise<LogLine>;
  /** Every source and upstream is connected. */
  waitForReady(timeoutMs?: number): Promise<void>;
  /** Default SIGKILL. Resolves when it has ended. */
  kill(signal?: NodeJS.Signals): Promise<ProxyExit>;
  /** SIGTERM, and SIGKILL after 15 s. May be called at any time, any number of times. */
  stop(): Promise<ProxyExit>;
  /** Highest resident set size so far; after its end, as it was shortly before `kill` or `stop`. */
  peakRssBytes(): number;
  /** Processor time so far, user and system. */
  cpuMs(): number;
}

export function currentRuntime(): ProxyRuntime {
  if (executable() !== undefined) return "executable";
  const versions: Readonly<Record<string, string | undefined>> = process.versions;
  return versions.bun !== undefined ? "bun" : "deno";
}

/** Starts the program and returns at once; see `waitForReady`. */
export function startProxy(options: ProxyOptions = {}): Proxy {
  return new ProxyProcess(options);
}

/** Runs the program to its end. */
export async function runProxy(
  options: ProxyOptions & { readonly timeoutMs?: number } = {},
): Promise<ProxyExit & { readonly stdout: string; readonly stderr: string }> {
  const proxy = new ProxyProcess(options);
  const timeoutMs = options.timeoutMs ?? 60_000;
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    void proxy.kill();
  }, timeoutMs);
  const exit = await proxy.exit;
  clearTimeout(timer);
  if (late) throw new Error(`the program did not end within ${timeoutMs / 1000} s\n${proxy.stderr.slice(-2_000)}`);
  return { ...exit, stdout: proxy.stdout, stderr: proxy.stderr };
}

class ProxyProcess implements Proxy {
  readonly dir: string;
  readonly exit: Promise<ProxyExit>;
  readonly log: LogLine[] = [];
  readonly #child: ChildProcess;
  readonly #waiting = new Set<() => void>();
  readonly #stdout: Uint8Array[] = [];
  readonly #stderr: Uint8Array[] = [];
  #ended: ProxyExit | undefined;
  #peakRssBytes = 0;
  #cpuMs = 0;

  constructor(options: ProxyOptions) {
    const { args = [], env = {}, files = {}, runtime = currentRuntime(), stdoutFile, stdin, onStdoutLine } = options;
    const surroundings = options.command === undefined ? { ...runtimeEnvironment(runtime), ...env } : process.env;
    const workspace = new Workspace("proxy");
    this.dir = workspace.dir;
    for (const [path, text] of Object.entries(files)) {
      mkdirSync(dirname(join(this.dir, path)), { recursive: true });
      writeFileSync(join(this.dir, path), text);
    }
    const command = [...(options.command ?? programCommand(runtime)), ...args];
    const redirected = stdoutFile === undefined
      ? command
      : ["/bin/sh", "-c", 'out=$1; shift; exec "$@" >"$out"', "sh", stdoutFile, ...command];
    this.#child = spawn(redirected[0] ?? "", redirected.slice(1), {
      cwd: this.dir,
      env: surroundings,
      stdio: ["pipe", "pipe", "pipe"],
      detached: true,
    });
    this.#child.stdin?.on("error", () => {});
    this.#child.stdin?.end(stdin);
    this.#child.stdout?.on("data", (chunk: Uint8Array) => this.#stdout.push(chunk));
    if (onStdoutLine !== undefined) this.#child.stdout?.on("data", inLines(onStdoutLine));
    this.#child.stderr?.on("data", (chunk: Uint8Array) => this.#stderr.push(chunk));
    this.#child.stderr?.on("data", inLines((line) => this.#addLine(line)));
    this.exit = this.#untilClosed().finally(() => workspace.remove());
    // Whoever waits for the exit gets the error; nobody has to.
    this.exit.catch(() => {});
  }

  get pid(): number {
    if (this.#child.pid === undefined) throw new Error("the program could not be started");
    return this.#child.pid;
  }

  get stdout(): string {
    return Buffer.concat(this.#stdout).toString("utf8");
  }

  get stderr(): string {
    return Buffer.concat(this.#stderr).toString("utf8");
  }

  waitForLog(matching: RegExp | ((line: LogLine) => boolean), timeoutMs = 45_000): Promise<LogLine> {
    const matches = (line: LogLine) => matching instanceof RegExp ? matching.test(line.text) : matching(line);
    const wanted = matching instanceof RegExp ? String(matching) : "the line that was expected";
    return new Promise((resolve, reject) => {
      let next = 0;
      const end = () => {
        clearTimeout(timer);
        this.#waiting.delete(check);
      };
      const check = () => {
        for (; next < this.log.length; next++) {
          const line = this.log[next];
          if (line === undefined || !matches(line)) continue;
          end();
          return resolve(line);
        }
        if (this.#ended === undefined) return;
        end();
        reject(
          new Error(`the program ended with ${describe(this.#ended)} before it logged ${wanted}\n${this.#tail()}`),
        );
      };
      const timer = setTimeout(() => {
        end();
        reject(new Error(`waited ${timeoutMs / 1000} s for the program to log ${wanted}\n${this.#tail()}`));
      }, timeoutMs);
      this.#waiting.add(check);
      check();
    });
  }

  async waitForReady(timeoutMs = 60_000): Promise<void> {
    await this.waitForLog(({ json, text }) => /^ready\b/.test(String(json?.message ?? text)), timeoutMs);
  }

  kill(signal: NodeJS.Signals = "SIGKILL"): Promise<ProxyExit> {
    this.#measure();
    // Deno's `child.kill` reports the signal as the cause of the end even where the program exits with a code.
    try {
      if (this.#child.exitCode === null && this.#child.signalCode === null) process.kill(this.pid, signal);
    } catch (error) {
      if ((error as { code?: unknown }).code !== "ESRCH") throw error;
    }
    return this.exit;
  }

  async stop(): Promise<ProxyExit> {
    if (this.#ended === undefined) {
      const timer = setTimeout(() => void this.kill("SIGKILL"), 15_000);
      await this.kill("SIGTERM");
      clearTimeout(timer);
    }
    return this.exit;
  }

  peakRssBytes(): number {
    this.#measure();
    return this.#peakRssBytes;
  }

  cpuMs(): number {
    this.#measure();
    return this.#cpuMs;
  }

  #untilClosed(): Promise<ProxyExit> {
    return new Promise((resolve, reject) => {
      this.#child.once("error", reject);
      this.#child.once("close", (code, signal) => {
        this.#ended = { code, signal };
        for (const check of [...this.#waiting]) check();
        resolve(this.#ended);
      });
    });
  }

  #addLine(text: string): void {
    this.log.push({ text, json: parseObject(text) });
    for (const check of [...this.#waiting]) check();
  }

  #tail(): string {
    return this.log.slice(-20).map(({ text }) => text).join("\n");
  }

  #measure(): void {
    if (this.#ended !== undefined) return;
    try {
      const status = readFileSync(`/proc/${this.pid}/status`, "utf8");
      const peakKib = Number(/^VmHWM:\s+(\d+) kB/m.exec(status)?.[1] ?? 0);
      this.#peakRssBytes = Math.max(this.#peakRssBytes, peakKib * 1024);
      // proc(5): the fields after the command name, which is in parentheses; 14 and 15 are user and system ticks.
      const fields = readFileSync(`/proc/${this.pid}/stat`, "utf8").replace(/^.*\) /s, "").split(" ");
      const ticks = Number(fields[11]) + Number(fields[12]);
      this.#cpuMs = Math.max(this.#cpuMs, ticks * MS_PER_TICK);
    } catch {
      // Ended meanwhile: what was measured before stands.
    }
  }
}

/** USER_HZ is 100 on every Linux architecture that the runtimes exist for. */
const MS_PER_TICK = 10;

/** The privileges that the build by `deno task compile` has, and for a Unix socket the right to write to it. */
const DENO_FLAGS = ["--no-prompt", ...PRIVILEGES, `--allow-write=${tmpdir()}`];

/** The command that starts the program, without arguments. */
export function programCommand(runtime: ProxyRuntime): string[] {
  const main = join(ROOT_DIR, "src/main.ts");
  switch (runtime) {
    case "executable":
      return [executable() ?? join(ROOT_DIR, "dist/pg-event-proxy")];
    case "bun":
      return [runtimeProgram("bun"), "run", main];
    case "deno":
      return [runtimeProgram("deno"), "run", "--quiet", ...DENO_FLAGS, "--config", join(ROOT_DIR, "deno.json"), main];
  }
}

/** The command that runs a script of this project under Deno, whatever runs the tests. */
export function denoCommand(script: string): string[] {
  return [runtimeProgram("deno"), "run", "--quiet", "-A", "--config", join(ROOT_DIR, "deno.json"), script];
}

function executable(): string | undefined {
  const path = process.env.PGPROXY_TEST_EXECUTABLE;
  return path === undefined || path === "" ? undefined : path;
}

function runtimeProgram(runtime: "bun" | "deno"): string {
  const versions: Readonly<Record<string, string | undefined>> = process.versions;
  const running = versions.bun !== undefined ? "bun" : "deno";
  return running === runtime ? process.execPath : join(ROOT_DIR, ".tools/node_modules/.bin", runtime);
}

/** Nothing of the caller's environment that the program could take for its configuration. */
export function runtimeEnvironment(runtime: ProxyRuntime): Record<string, string> {
  const path = process.env.PATH ?? "/usr/bin:/bin";
  const home = homedir();
  switch (runtime) {
    case "executable":
      // It needs no other program, least of all Deno, Bun or Node.
      return { PATH: "/nonexistent", HOME: "/nonexistent", NO_COLOR: "1" };
    case "bun":
      return { PATH: path, HOME: "/nonexistent", NO_COLOR: "1" };
    case "deno":
      return {
        PATH: path,
        HOME: "/nonexistent",
        NO_COLOR: "1",
        DENO_DIR: process.env.DENO_DIR ?? `${home}/.cache/deno`,
      };
  }
}

/** Makes whole lines out of chunks; a last line without an end is left out. */
function inLines(onLine: (line: string) => void): (chunk: Uint8Array) => void {
  const decoder = new StringDecoder("utf8");
  let partial = "";
  return (chunk) => {
    const lines = (partial + decoder.write(Buffer.from(chunk))).split("\n");
    partial = lines.pop() ?? "";
    lines.forEach(onLine);
  };
}

function parseObject(text: string): Record<string, unknown> | undefined {
  if (!text.startsWith("{")) return undefined;
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function describe({ code, signal }: ProxyExit): string {
  return code === null ? String(signal) : `exit code ${code}`;
}
