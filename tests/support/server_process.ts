/** A real server as a child process, in a temporary folder, on a free port of 127.0.0.1. */

import { type ChildProcess, spawn } from "node:child_process";
import { chmodSync, existsSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { until } from "./wait.ts";

/** A server that somebody else started: it can be used, but neither stopped nor frozen. */
export interface RunningServer {
  readonly name: string;
  readonly port: number;
  readonly uri: string;
}

export interface Server extends RunningServer {
  /** The server itself (postmaster, beam, …), not a wrapper. Changes with every start. */
  readonly pid: number;
  /** Starts it again after `kill` or `shutdown`: same port, same data. Resolves when it answers. */
  start(): Promise<void>;
  /** SIGKILL to every process of the server; the data stays. */
  kill(): Promise<void>;
  /** Ends it in its own way; the data stays. */
  shutdown(): Promise<void>;
  /** SIGSTOP to every process of the server. */
  freeze(): void;
  /** SIGCONT to every process of the server. */
  thaw(): void;
  /** Ends it for good and removes its folder. May be called at any time, any number of times. */
  stop(): Promise<void>;
}

export interface TlsFiles {
  readonly dir: string;
  readonly caFile: string;
  /** Server certificate for `localhost` and `127.0.0.1`. */
  readonly certFile: string;
  readonly keyFile: string;
  /** Client certificate whose common name is `proxy_user`. */
  readonly clientCertFile: string;
  readonly clientKeyFile: string;
}

export interface Command {
  readonly file: string;
  readonly args: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
}

/** What a kind of server has to say about itself. */
export interface ServerSpec {
  readonly name: string;
  readonly port: number;
  readonly uri: string;
  readonly workspace: Workspace;
  /** Started in this order; the last is the server itself, the others serve it. */
  readonly commands: readonly Command[];
  readonly shutdownSignal: "SIGTERM" | "SIGINT";
  /** Throws as long as the server does not answer. */
  answers(): Promise<void>;
}

const START_TIMEOUT_MS = 60_000;
const SHUTDOWN_TIMEOUT_MS = 60_000;

/**
 * A temporary folder in which processes run. Every process whose working directory is in it belongs to it: that also
 * finds those that were orphaned or moved to a session of their own, which a process tree or a process group does not.
 *
 * A guardian process outside it holds the read end of a pipe from this process: whatever ends this process, SIGKILL
 * included, closes the pipe; the guardian then kills what is left and removes the folder. Exit hooks would not do: the
 * test runners do not call them reliably.
 */
export class Workspace {
  static readonly #all = new Set<Workspace>();
  readonly dir: string;
  readonly #guardian: ChildProcess;
  readonly #guardianEnded: Promise<void>;
  #removed = false;

  constructor(name: string) {
    // Other users (postgres) must reach it; a private TMPDIR would be in the way.
    this.dir = mkdtempSync(join(tmpdir(), `pg-event-proxy-test-${name}-`));
    chmodSync(this.dir, 0o755);
    this.#guardian = spawn("sh", ["-c", GUARDIAN_SCRIPT, "guardian", this.dir], {
      stdio: ["pipe", "ignore", "ignore"],
      detached: true,
      cwd: "/",
    });
    this.#guardianEnded = new Promise((resolve) => this.#guardian.once("exit", () => resolve()));
    this.#guardian.stdin?.on("error", () => {});
    this.#guardian.unref();
    unrefStream(this.#guardian.stdin);
    Workspace.#all.add(this);
  }

  /** Kills and removes at once whatever this process has started and not yet removed. */
  static async removeAll(): Promise<void> {
    await Promise.all([...Workspace.#all].map((workspace) => workspace.remove()));
  }

  /** The ids of the processes in it. */
  pids(): number[] {
    return readdirSync("/proc").filter((entry) => /^\d+$/.test(entry)).map(Number).filter((pid) => {
      const cwd = linkTarget(`/proc/${pid}/cwd`);
      return cwd !== undefined && (cwd === this.dir || cwd.startsWith(`${this.dir}/`));
    });
  }

  signal(signal: NodeJS.Signals): void {
    for (const pid of this.pids()) signalProcess(pid, signal);
  }

  /** SIGKILL until nothing is left. */
  async killAll(): Promise<void> {
    await until(() => {
      const pids = this.pids();
      for (const pid of pids) signalProcess(pid, "SIGKILL");
      return pids.length === 0;
    }, { what: () => `the killed processes ${this.pids().join(", ")} to end`, timeoutMs: 20_000 });
  }

  async remove(): Promise<void> {
    if (!this.#removed) {
      this.#removed = true;
      Workspace.#all.delete(this);
      await this.killAll();
      rmSync(this.dir, { recursive: true, force: true, maxRetries: 5 });
      this.#guardian.ref();
      this.#guardian.stdin?.end();
    }
    await this.#guardianEnded;
  }
}

// Reads until the pipe is closed, then kills what works in the folder, twice for what was being forked meanwhile.
const GUARDIAN_SCRIPT = `
trap '' INT TERM HUP
while read -r _; do :; done
dir=$1
[ -d "$dir" ] || exit 0
for round in 1 2 3; do
  for link in /proc/[0-9]*/cwd; do
    case $(readlink "$link" 2>/dev/null) in
      "$dir"|"$dir"/*) pid=\${link#/proc/}; kill -9 "\${pid%/cwd}" 2>/dev/null ;;
    esac
  done
  rm -rf "$dir" && exit 0
  sleep 0.2
done
`;

export class ServerProcess implements Server {
  readonly #spec: ServerSpec;
  #child: ChildProcess | undefined;
  #stopped = false;

  constructor(spec: ServerSpec) {
    this.#spec = spec;
  }

  get name(): string {
    return this.#spec.name;
  }
  get port(): number {
    return this.#spec.port;
  }
  get uri(): string {
    return this.#spec.uri;
  }
  get pid(): number {
    const pid = this.#child?.pid;
    if (pid === undefined) throw new Error(`${this.name} is not running`);
    return pid;
  }

  async start(): Promise<void> {
    if (this.#stopped) throw new Error(`${this.name} was stopped for good: start a new one`);
    if (this.#child !== undefined) throw new Error(`${this.name} is running already`);
    let main: ChildProcess | undefined;
    for (const command of this.#spec.commands) main = this.#spawn(command);
    this.#child = main;
    let ended: string | undefined;
    main?.once("exit", (code, signal) => ended = `ended with ${code ?? signal}`);
    main?.once("error", (error) => ended = error.message);
    try {
      const state = await until(async () => {
        if (ended !== undefined) return ended;
        await this.#spec.answers();
        return "answers";
      }, { what: `${this.name} to answer on 127.0.0.1:${this.port}`, timeoutMs: START_TIMEOUT_MS, intervalMs: 40 });
      if (state !== "answers") throw new Error(`${this.name} ${state} instead of starting`);
    } catch (error) {
      const log = this.#logTail();
      await this.stop();
      throw new Error(`${error instanceof Error ? error.message : String(error)}\n${log}`, { cause: error });
    }
  }

  async kill(): Promise<void> {
    const pid = this.#child?.pid;
    await this.#spec.workspace.killAll();
    // As long as the dead process is not reaped, PostgreSQL takes it for a living postmaster of the same folder.
    await until(() => pid === undefined || !existsSync(`/proc/${pid}`), { what: `process ${pid} to be reaped` });
    this.#child = undefined;
  }

  async shutdown(): Promise<void> {
    const child = this.#child;
    if (child?.pid === undefined) return;
    this.thaw();
    const pid = child.pid;
    signalProcess(pid, this.#spec.shutdownSignal);
    await until(() => !this.#spec.workspace.pids().includes(pid), {
      what: () => `${this.name} to shut down\n${this.#logTail()}`,
      timeoutMs: SHUTDOWN_TIMEOUT_MS,
    });
    await this.kill();
  }

  freeze(): void {
    // The parent first, so that it makes no child after the list was read.
    signalProcess(this.pid, "SIGSTOP");
    this.#spec.workspace.signal("SIGSTOP");
  }

  thaw(): void {
    this.#spec.workspace.signal("SIGCONT");
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    this.#child = undefined;
    await this.#spec.workspace.remove();
  }

  #spawn({ file, args, env }: Command): ChildProcess {
    // The shell only redirects and is replaced; both runtimes treat that alike, file descriptors in `stdio` they do not.
    const child = spawn("sh", ["-c", 'log=$1; shift; exec "$@" >>"$log" 2>&1', "sh", this.#logFile, file, ...args], {
      cwd: this.#spec.workspace.dir,
      env: { PATH: process.env.PATH ?? "/usr/bin:/bin", LANG: "C.UTF-8", ...env },
      stdio: "ignore",
      // A session of its own: Ctrl-C in the terminal is not for the servers.
      detached: true,
    });
    child.unref();
    return child;
  }

  get #logFile(): string {
    return join(this.#spec.workspace.dir, "server.log");
  }

  #logTail(): string {
    if (!existsSync(this.#logFile)) return "(no log)";
    return readFileSync(this.#logFile, "utf8").split("\n").slice(-30).join("\n");
  }
}

/** Those that this process has asked for: a server may take seconds to listen, and keeps its port while it is down. */
const givenPorts = new Set<number>();

/**
 * A free port below the ephemeral range. Ports from that range would be given to outgoing connections while the server
 * is down, and a client that keeps connecting to a local ephemeral port ends up connected to itself.
 */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = 12_000 + Math.floor(Math.random() * 20_000);
    if (givenPorts.has(port)) continue;
    givenPorts.add(port);
    const free = await new Promise<boolean>((resolve) => {
      const probe = createServer();
      probe.once("error", () => resolve(false));
      probe.listen({ port, host: "127.0.0.1", exclusive: true }, () => probe.close(() => resolve(true)));
    });
    if (free) return port;
  }
}

/**
 * The lines of `own` after those of `defaults` whose key (the first word) `own` does not set itself.
 */
export function overrideLines(defaults: readonly string[], own: readonly string[]): string[] {
  const key = (line: string) => line.trim().split(/[\s=]/)[0];
  const ownKeys = new Set(own.map(key));
  return [...defaults.filter((line) => !ownKeys.has(key(line))), ...own];
}

/** The first of `paths` that exists; names the Debian package where there is none. */
export function findProgram(name: string, paths: readonly string[], debianPackage: string): string {
  const found = paths.find((path) => existsSync(path));
  if (found === undefined) {
    throw new Error(`${name} is not installed (looked at ${paths.join(", ")}): apt-get install ${debianPackage}`);
  }
  return found;
}

/** Where `name` may be according to PATH, then in the folders for system programs. */
export function programPaths(name: string): string[] {
  return [...(process.env.PATH ?? "").split(":"), "/usr/sbin", "/usr/local/sbin", "/sbin", "/usr/bin"]
    .filter((dir) => dir !== "").map((dir) => join(dir, name));
}

/** Runs a program to its end and returns its standard output; throws with its standard error if it fails. */
export function runProgram(
  file: string,
  args: readonly string[],
  options: { readonly cwd?: string; readonly env?: Readonly<Record<string, string>> } = {},
): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(file, [...args], {
      cwd: options.cwd ?? "/",
      env: { PATH: process.env.PATH ?? "/usr/bin:/bin", LANG: "C.UTF-8", ...options.env },
      stdio: ["ignore", "pipe", "pipe"],
      // Not for Ctrl-C in the terminal: whoever started it handles that.
      detached: true,
    });
    let stdout = "";
    let stderr = "";
    child.stdout.on("data", (chunk: Uint8Array) => stdout += chunk);
    child.stderr.on("data", (chunk: Uint8Array) => stderr += chunk);
    child.once("error", reject);
    child.once("close", (code, signal) => {
      if (code === 0) resolve(stdout);
      else reject(new Error(`${file} ${args.join(" ")} ended with ${code ?? signal}: ${stderr.trim()}`));
    });
  });
}

function signalProcess(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if ((error as { code?: unknown }).code !== "ESRCH") throw error;
  }
}

function linkTarget(path: string): string | undefined {
  try {
    // The kernel marks a removed folder with a suffix.
    return readlinkSync(path).replace(/ \(deleted\)$/, "");
  } catch {
    return undefined;
  }
}

function unrefStream(stream: unknown): void {
  const unref = (stream as { unref?: unknown } | null)?.unref;
  if (typeof unref === "function") unref.call(stream);
}
