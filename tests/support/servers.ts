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
import { type RunningServer, type Server, Workspace } from "./server_process.ts";

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

const starting = new Map<keyof SharedServers, Promise<RunningServer | Server>>();

/**
 * Servers shared by all tests: those named by SERVER_VARIABLES, otherwise started by this process at the first call and
 * ended with it. Use databases, exchanges and topics with names of your own, and leave none behind.
 */
export async function sharedServers(): Promise<SharedServers> {
  const [postgres, rabbitmq, mosquitto, redis] = await Promise.all([
    sharedServer("postgres"),
    sharedServer("rabbitmq"),
    sharedServer("mosquitto"),
    sharedServer("redis"),
  ]);
  return { postgres, rabbitmq, mosquitto, redis };
}

/** One of them, for who does not need the others. */
export function sharedServer<Name extends keyof SharedServers>(name: Name): Promise<SharedServers[Name]> {
  let server = starting.get(name);
  if (server === undefined) {
    server = STARTERS[name]();
    starting.set(name, server);
  }
  return server as Promise<SharedServers[Name]>;
}

/**
 * Ends at once every server and every instance of the program that this process has started, also those that are still
 * starting, and removes their folders. All that would happen anyway when the process ends; here it can be waited for.
 */
export async function stopEverything(): Promise<void> {
  starting.clear();
  await Workspace.removeAll();
}

const STARTERS: { readonly [Name in keyof SharedServers]: () => Promise<SharedServers[Name]> } = {
  postgres: async () => {
    const server = named("postgres", 5432);
    return server === undefined ? await startPostgres() : runningPostgres(server.uri);
  },
  rabbitmq: async () => named("rabbitmq", 5672) ?? await startRabbitmq(),
  mosquitto: async () => named("mosquitto", 1883) ?? await startMosquitto(),
  redis: async () => named("redis", 6379) ?? await startRedis(),
};

function named(server: keyof SharedServers, defaultPort: number): RunningServer | undefined {
  const uri = process.env[SERVER_VARIABLES[server]];
  if (uri === undefined || uri === "") return undefined;
  return { name: server, uri, port: Number(new URL(uri).port || defaultPort) };
}
