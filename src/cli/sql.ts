/** `pg-event-proxy sql`: prints the script of the `events` schema, or installs it on the configured databases. */

import { loadConfig, type LoadOptions } from "../config/load.ts";
import { openSqlSession } from "../postgres/sql_session.ts";
import { install, installScript } from "../sql/install.ts";
import { parseConnections } from "./run.ts";

export interface SqlCommandOptions extends LoadOptions {
  readonly install?: boolean;
  /** The role that the proxy logs in as, where it is not the owner. */
  readonly role?: string;
  readonly write: (text: string) => void;
}

/** Throws ConfigError, and PermanentError or TransientError for a database that it cannot be installed on. */
export async function sqlCommand({ install: isInstall, role, write, ...options }: SqlCommandOptions): Promise<void> {
  if (!isInstall) {
    write(installScript(role));
    return;
  }
  const { bridges } = loadConfig(options).config;
  const connections = new Map(parseConnections(bridges).map((params, i) => [bridges[i]!.postgresqlUri, params]));
  for (const params of connections.values()) {
    const session = await openSqlSession(
      params,
      { action: "installing the schema events" },
      new AbortController().signal,
    );
    try {
      const { outcome, changes } = await install(session, params.user, role);
      write(`database "${params.database}" at ${session.where}: ${outcome}\n`);
      for (const change of changes) write(`  ${change}\n`);
    } finally {
      await session.close();
    }
  }
}
