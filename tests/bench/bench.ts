/** What every section of the benchmark works with: servers, a database, and a folder for programs. */

import process from "node:process";
import postgres from "postgres";
import { setTimeout as delay } from "node:timers/promises";
import { startAwsEmulator } from "../support/aws_servers.ts";
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
import { startWebhookReceiver } from "../support/webhook_receiver.ts";
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
  /** For the section `profile`. */
  readonly sampler: "perf" | "own";
  /** Environment variables for the proxy, over those of the case: to try a setting. */
  readonly proxyEnv: Readonly<Record<string, string>>;
}

const BROKERS = {
  rabbitmq: () => startRabbitmq({ erlangArgs: "" }),
  mosquitto: () => startMosquitto(),
  redis: () => startRedis(),
  webhook: () => startWebhookReceiver(),
  aws: () => startAwsEmulator(),
} as const;

export type BrokerName = keyof typeof BROKERS;

/** Each is started when it is first asked for. Sections share them, since RabbitMQ takes long to start. */
export class Brokers {
  readonly #servers = new Map<BrokerName, Promise<Server>>();

  get(name: BrokerName): Promise<Server> {
    let server = this.#servers.get(name);
    if (server === undefined) this.#servers.set(name, server = BROKERS[name]());
    return server;
  }

  async stop(): Promise<void> {
    const servers = await Promise.allSettled(this.#servers.values());
    await Promise.all(servers.map((result) => result.status === "fulfilled" ? result.value.stop() : undefined));
  }
}

/** One section's surroundings, with a PostgreSQL of its own, so that none finds what another left behind. */
export class Bench {
  readonly settings: Settings;
  readonly home = new ProgramHome();
  readonly postgres: PostgresServer;
  readonly database: Database;
  readonly sql: postgres.Sql;
  readonly #brokers: Brokers;

  private constructor(settings: Settings, brokers: Brokers, server: PostgresServer, database: Database) {
    this.settings = settings;
    this.#brokers = brokers;
    this.postgres = server;
    this.database = database;
    this.sql = postgres(database.uri, { max: 3, onnotice: () => {}, connect_timeout: 10 });
  }

  static async start(settings: Settings, brokers: Brokers): Promise<Bench> {
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
      return new Bench(settings, brokers, server, await server.createDatabase("bench"));
    } catch (error) {
      await server.stop();
      throw error;
    }
  }

  get quick(): boolean {
    return this.settings.mode === "quick";
  }

  /** RabbitMQ runs with the settings it comes with. */
  broker(name: BrokerName): Promise<Server> {
    return this.#brokers.get(name);
  }

  /** All but the brokers. */
  async stop(): Promise<void> {
    await this.home.remove();
    await this.sql.end({ timeout: 1 }).catch(() => {});
    await this.postgres.stop();
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
