/** What every section of the benchmark works with: servers, a database, and a folder for programs. */

import process from "node:process";
import postgres from "postgres";
import { setTimeout as delay } from "node:timers/promises";
import type { ProxyRuntime } from "../support/proxy.ts";
import {
  type Database,
  type PostgresServer,
  type Server,
  startMosquitto,
  startPostgres,
  startRabbitmq,
  startRedis,
} from "../support/servers.ts";
import { cpuMsOf } from "./process_figures.ts";
import { ProgramHome } from "./program.ts";

export type Mode = "quick" | "full";

/** What the command line asked for. */
export interface Settings {
  readonly mode: Mode;
  readonly rows: number | undefined;
  readonly pairs: number | undefined;
  /** Names of upstream cases; undefined: all of them. */
  readonly upstreams: readonly string[] | undefined;
  /** Rows in a transaction, `all` for one transaction; undefined: all three. */
  readonly transactions: readonly (number | "all")[] | undefined;
  readonly runtime: ProxyRuntime;
  /** Environment variables for the proxy, over those of the case: to try a setting. */
  readonly proxyEnv: Readonly<Record<string, string>>;
}

const BROKERS = {
  rabbitmq: () => startRabbitmq({ erlangArgs: "" }),
  mosquitto: () => startMosquitto(),
  redis: () => startRedis(),
} as const;

export type BrokerName = keyof typeof BROKERS;

export class Bench {
  readonly settings: Settings;
  readonly home = new ProgramHome();
  readonly postgres: PostgresServer;
  readonly database: Database;
  readonly sql: postgres.Sql;
  readonly #brokers = new Map<BrokerName, Promise<Server>>();

  private constructor(settings: Settings, server: PostgresServer, database: Database) {
    this.settings = settings;
    this.postgres = server;
    this.database = database;
    this.sql = postgres(database.uri, { max: 3, onnotice: () => {}, connect_timeout: 10 });
  }

  static async start(settings: Settings): Promise<Bench> {
    const server = await startPostgres({
      settings: {
        shared_buffers: "256MB",
        // Nothing shall write, vacuum or checkpoint while something is measured.
        autovacuum: "off",
        checkpoint_timeout: "1h",
        max_wal_size: "64GB",
      },
    });
    try {
      return new Bench(settings, server, await server.createDatabase("bench"));
    } catch (error) {
      await server.stop();
      throw error;
    }
  }

  get quick(): boolean {
    return this.settings.mode === "quick";
  }

  /** Started when it is first asked for. RabbitMQ runs with the settings it comes with. */
  broker(name: BrokerName): Promise<Server> {
    let server = this.#brokers.get(name);
    if (server === undefined) this.#brokers.set(name, server = BROKERS[name]());
    return server;
  }

  async stop(): Promise<void> {
    await this.home.remove();
    await this.sql.end({ timeout: 1 }).catch(() => {});
    const brokers = await Promise.allSettled(this.#brokers.values());
    const running = brokers.flatMap((result) => result.status === "fulfilled" ? [result.value] : []);
    await Promise.all([...running, this.postgres].map((server) => server.stop()));
  }
}

/** Waits until a process has nearly nothing to do: RabbitMQ tidies up for seconds after a queue was deleted. */
export async function untilIdle(pid: number, timeoutMs = 20_000): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  const windowMs = 250;
  let before = cpuMsOf(pid) ?? 0;
  while (performance.now() < deadline) {
    await delay(windowMs);
    const now = cpuMsOf(pid) ?? 0;
    if (now - before <= windowMs * 0.1) return;
    before = now;
  }
}

/** Progress goes to standard error: standard output belongs to the tables. */
export function say(text: string): void {
  const seconds = Math.round(performance.now() / 1000);
  process.stderr.write(`bench ${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")} ${text}\n`);
}
