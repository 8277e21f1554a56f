/** Faults of servers, made from outside, each undone again. */

import process from "node:process";
import { setTimeout as delay } from "node:timers/promises";
import type { BrokerKind } from "../support/broker_frames.ts";
import type { PostgresServer, Server } from "../support/servers.ts";
import { until } from "../support/wait.ts";
import type { Trial } from "./trial.ts";

export type BrokerStop = "kill" | "shutdown";

/**
 * Ends a broker and starts it again. The program is let in only when the consumer has come back: what MQTT and Redis are
 * given while nobody is subscribed is lost by their rules, and would tell nothing.
 */
export async function restartBroker(trial: Trial, kind: BrokerKind, how: BrokerStop): Promise<void> {
  const server = trial.plant.broker(kind);
  const { relay } = trial.ways.to(kind);
  await server[how]();
  relay.refuse();
  await server.start();
  await trial.consumerIsBack(kind);
  relay.heal();
}

export async function freeze(server: Server, durationMs: number): Promise<void> {
  server.freeze();
  try {
    await delay(durationMs);
  } finally {
    server.thaw();
  }
}

/** Fast: sessions are ended, and it waits for its walsenders. Immediate: no goodbye, recovery at the next start. */
export type PostgresStop = "fast" | "immediate" | "kill";

/** Ends PostgreSQL and starts it again. Returns how long the stop took. */
export async function restartPostgres(postgres: PostgresServer, how: PostgresStop): Promise<number> {
  const tookMs = await stopPostgres(postgres, how);
  await postgres.start();
  return tookMs;
}

export async function stopPostgres(postgres: PostgresServer, how: PostgresStop): Promise<number> {
  const startMs = performance.now();
  if (how === "fast") {
    await postgres.shutdown();
  } else {
    if (how === "immediate") await signalAndWait(postgres.pid, "SIGQUIT");
    await postgres.kill();
  }
  return performance.now() - startMs;
}

async function signalAndWait(pid: number, signal: NodeJS.Signals): Promise<void> {
  process.kill(pid, signal);
  await until(() => !isAlive(pid), { what: `process ${pid} to end after ${signal}`, timeoutMs: 30_000 });
}

export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

/** Ends the walsender that serves `slot`. Resolves to whether there was one. */
export async function terminateWalsender({ sql, slot }: Trial): Promise<boolean> {
  const rows = await sql`
    select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = ${slot} and active`;
  return rows.length > 0;
}
