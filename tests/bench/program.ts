/** Programs under measurement, as child processes that end with the benchmark whatever ends it. */

import { type ChildProcess, spawn } from "node:child_process";
import { homedir } from "node:os";
import process from "node:process";
import { programCommand, type ProxyRuntime } from "../support/proxy.ts";
import { Workspace } from "../support/server_process.ts";

export interface ProgramExit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

export interface ProgramOptions {
  readonly env?: Readonly<Record<string, string>>;
  /** Called with each chunk of standard output; without it standard output is /dev/null. */
  readonly onStdout?: (chunk: Uint8Array) => void;
  /** The whole environment is this and PATH; by default nothing of the caller's is passed on. */
  readonly inheritEnv?: boolean;
  readonly cwd?: string;
}

export class Program {
  readonly command: readonly string[];
  /** By `performance.now()`, just before the process was made. */
  readonly startedAtMs: number;
  readonly exit: Promise<ProgramExit>;
  readonly #child: ChildProcess;
  #stderr = "";
  #ended: ProgramExit | undefined;

  constructor(command: readonly string[], cwd: string, options: ProgramOptions = {}) {
    this.command = command;
    const [file = "", ...args] = command;
    const path = process.env.PATH ?? "/usr/bin:/bin";
    this.startedAtMs = performance.now();
    this.#child = spawn(file, args, {
      cwd: options.cwd ?? cwd,
      env: {
        ...options.inheritEnv ? process.env : { PATH: path, HOME: "/nonexistent", NO_COLOR: "1" },
        ...options.env,
      },
      stdio: ["ignore", options.onStdout === undefined ? "ignore" : "pipe", "pipe"],
      detached: true,
    });
    if (options.onStdout !== undefined) this.#child.stdout?.on("data", options.onStdout);
    this.#child.stderr?.on("data", (chunk: Uint8Array) => {
      this.#stderr = (this.#stderr + chunk).slice(-20_000);
    });
    this.exit = new Promise((resolve, reject) => {
      this.#child.once("error", reject);
      this.#child.once("close", (code, signal) => resolve(this.#ended = { code, signal }));
    });
    this.exit.catch(() => {});
  }

  get pid(): number {
    if (this.#child.pid === undefined) throw new Error(`${this.command[0]} could not be started`);
    return this.#child.pid;
  }

  /** The last 20,000 characters. */
  get stderr(): string {
    return this.#stderr;
  }

  get ended(): ProgramExit | undefined {
    return this.#ended;
  }

  /** Throws with what it wrote to standard error if it has ended. */
  assertRunning(): void {
    if (this.#ended === undefined) return;
    const { code, signal } = this.#ended;
    throw new Error(`${this.command.join(" ")} ended with ${code ?? signal}\n${this.#stderr.slice(-3_000)}`);
  }

  /** Resolves when it has ended by itself with exit code 0. */
  async succeeded(): Promise<void> {
    const { code, signal } = await this.exit;
    if (code !== 0) {
      throw new Error(`${this.command.join(" ")} ended with ${code ?? signal}\n${this.#stderr.slice(-3_000)}`);
    }
  }

  /** SIGTERM, and SIGKILL after `patienceMs`. `pid`: of the program itself where another one runs it (`perf`). */
  async stop(pid = this.pid, patienceMs = 10_000): Promise<ProgramExit> {
    this.#signal("SIGTERM", pid);
    const timer = setTimeout(() => this.#signal("SIGKILL", pid), patienceMs);
    try {
      return await this.exit;
    } finally {
      clearTimeout(timer);
    }
  }

  #signal(signal: NodeJS.Signals, pid: number): void {
    try {
      if (this.#ended === undefined) process.kill(pid, signal);
    } catch (error) {
      if ((error as { code?: unknown }).code !== "ESRCH") throw error;
    }
  }
}

/** The folder that programs run in: what is left in it is killed when the benchmark ends. */
export class ProgramHome {
  readonly #workspace = new Workspace("bench");

  get dir(): string {
    return this.#workspace.dir;
  }

  start(command: readonly string[], options?: ProgramOptions): Program {
    return new Program(command, this.dir, options);
  }

  /** pg-event-proxy, configured by environment alone. */
  startProxy(runtime: ProxyRuntime, options: ProxyProgramOptions = {}): Program {
    const [file = "", ...rest] = programCommand(runtime);
    const command = [...options.prefix ?? [], file, ...withRuntimeArgs(runtime, rest, options.runtimeArgs ?? [])];
    const env: Record<string, string> = runtime === "deno"
      ? { DENO_DIR: process.env.DENO_DIR ?? `${homedir()}/.cache/deno` }
      : {};
    return this.start(command, { ...options, env: { ...env, ...options.env } });
  }

  async remove(): Promise<void> {
    await this.#workspace.remove();
  }
}

export interface ProxyProgramOptions extends ProgramOptions {
  /** Put before the command: `perf stat …`. */
  readonly prefix?: readonly string[];
  /** For Bun or Deno, not for the program: `--cpu-prof`. */
  readonly runtimeArgs?: readonly string[];
}

/** Deno takes them after `run`, Bun before it. */
function withRuntimeArgs(runtime: ProxyRuntime, args: readonly string[], own: readonly string[]): string[] {
  return runtime === "deno" ? [...args.slice(0, 1), ...own, ...args.slice(1)] : [...own, ...args];
}
