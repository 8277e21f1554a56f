/**
 * The real servers that tests run against: PostgreSQL, RabbitMQ, Mosquitto and Redis.
 *
 * Tests that only need a server to be there take it from `sharedServers`; those that stop, kill or freeze one start
 * their own and stop it when done. Should a test process die, its servers end and their folders go with it.
 */

import process from "node:process";
import { startMosquitto } from "./mosquitto_server.ts";
import { type RunningPostgres, runningPostgres, startPostgres } from "./postgres_server.ts";
import { startRabbitmq } from "./rabbitmq_server.ts";
import { startRedis } from "./redis_server.ts";
import type { RunningServer } from "./server_process.ts";

export { startMosquitto } from "./mosquitto_server.ts";
export { makePostgresTemplate, startPostgres } from "./postgres_server.ts";
export type { Database, PostgresOptions, PostgresServer, RunningPostgres } from "./postgres_server.ts";
export { startRabbitmq } from "./rabbitmq_server.ts";
export { startRedis } from "./redis_server.ts";
export { freePort } from "./server_process.ts";
export type { RunningServer, Server, TlsFiles } from "./server_process.ts";
export { makeTlsFiles } from "./tls_files.ts";

export interface SharedServers {
  readonly postgres: RunningPostgres;
  readonly rabbitmq: RunningServer;
  readonly mosquitto: RunningServer;
  readonly redis: RunningServer;
}

/** The variables by which `scripts/test` hands on the servers that it started, and users name servers of their own. */
export const SERVER_VARIABLES = {
  postgres: "PGPROXY_TEST_POSTGRES_URI",
  rabbitmq: "PGPROXY_TEST_RABBITMQ_URI",
  mosquitto: "PGPROXY_TEST_MOSQUITTO_URI",
  redis: "PGPROXY_TEST_REDIS_URI",
} as const;

let started: Promise<SharedServers> | undefined;

/**
 * Servers shared by all tests: those named by SERVER_VARIABLES, otherwise started by this process at the first call and
 * ended with it. Use databases, exchanges and topics with names of your own, and leave none behind.
 */
export function sharedServers(): Promise<SharedServers> {
  started ??= startShared();
  return started;
}

async function startShared(): Promise<SharedServers> {
  const named = (server: keyof typeof SERVER_VARIABLES, defaultPort: number): RunningServer | undefined => {
    const uri = process.env[SERVER_VARIABLES[server]];
    if (uri === undefined || uri === "") return undefined;
    return { name: server, uri, port: Number(new URL(uri).port || defaultPort) };
  };
  const namedPostgres = named("postgres", 5432);
  const [postgres, rabbitmq, mosquitto, redis] = await Promise.all([
    namedPostgres === undefined ? startPostgres() : runningPostgres(namedPostgres.uri),
    named("rabbitmq", 5672) ?? startRabbitmq(),
    named("mosquitto", 1883) ?? startMosquitto(),
    named("redis", 6379) ?? startRedis(),
  ]);
  return { postgres, rabbitmq, mosquitto, redis };
}
