/** A throw-away PgBouncer before a PostgreSQL server. */

import { chownSync, existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import postgres from "postgres";
import { asPostgresUser, postgresOwner } from "./postgres_server.ts";
import { findProgram, freePort, programPaths, type Server, ServerProcess, Workspace } from "./server_process.ts";

/** Whether this machine has it: nothing but a test of the command `check` needs it. */
export function hasPgbouncer(): boolean {
  return programPaths("pgbouncer").some((path) => existsSync(path));
}

/** Everybody is let in, and is `postgres` on the server. `uri` names database `postgres`. */
export async function startPgbouncer(
  postgresPort: number,
  poolMode: "session" | "transaction",
): Promise<Server> {
  const program = findProgram("PgBouncer", programPaths("pgbouncer"), "pgbouncer");
  const port = await freePort();
  const workspace = new Workspace("pgbouncer");
  try {
    const configFile = join(workspace.dir, "pgbouncer.ini");
    writeFileSync(
      configFile,
      [
        "[databases]",
        `* = host=127.0.0.1 port=${postgresPort} user=postgres`,
        "[pgbouncer]",
        "listen_addr = 127.0.0.1",
        `listen_port = ${port}`,
        "unix_socket_dir =",
        "auth_type = any",
        `pool_mode = ${poolMode}`,
        "ignore_startup_parameters = extra_float_digits",
        "",
      ].join("\n"),
    );
    const owner = postgresOwner();
    if (owner !== undefined) chownSync(workspace.dir, owner.uid, owner.gid);
    const uri = `postgres://postgres@127.0.0.1:${port}/postgres`;
    const server = new ServerProcess({
      name: "pgbouncer",
      port,
      uri,
      workspace,
      commands: [asPostgresUser(program, [configFile])],
      shutdownSignal: "SIGTERM",
      answers: async () => {
        const sql = postgres(uri, { max: 1, connect_timeout: 5 });
        try {
          await sql`select 1`;
        } finally {
          await sql.end({ timeout: 1 });
        }
      },
    });
    await server.start();
    return server;
  } catch (error) {
    await workspace.remove();
    throw error;
  }
}
