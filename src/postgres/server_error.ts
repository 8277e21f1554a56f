/** Errors that the server reports, and what the operator can do about them. */

import { PermanentError, TransientError } from "../core/errors.ts";
import type { ErrorFields } from "./protocol.ts";

/** An ErrorResponse: `code` is the SQLSTATE (PostgreSQL documentation, appendix "PostgreSQL Error Codes"). */
export class ServerError extends Error {
  override name = "ServerError";
  readonly code: string;
  readonly hint: string | undefined;

  constructor(fields: ErrorFields) {
    super(fields.D === undefined ? fields.M ?? "unknown error" : `${fields.M} (${fields.D})`);
    this.code = fields.C ?? "";
    this.hint = fields.H;
  }
}

/** The server takes no sessions: it starts up, recovers or shuts down (SQLSTATE 57P03). */
export class ServerNotReadyError extends TransientError {
  override name = "ServerNotReadyError";
}

/** Who connects to what, for error texts; never a password. */
export interface SessionName {
  readonly user: string;
  readonly database: string;
  /** `host:port`, several with commas. */
  readonly where: string;
}

/**
 * Turns what the server said into what the operator is told: PermanentError with the remedy where no retry helps,
 * otherwise TransientError. `action` begins the line: `reading the WAL`.
 */
export function explain(error: { code: string; message: string }, action: string, session: SessionName): Error {
  const at = `${action} of database "${session.database}" at ${session.where} as user "${session.user}"`;
  const remedy = remedyFor(error, session);
  const text = `${at} failed: ${error.message}`;
  if (error.code === "57P03") return new ServerNotReadyError(text);
  return remedy === undefined ? new TransientError(text) : new PermanentError(`${text}; ${remedy}`);
}

export function missingPassword(where: string, user: string): PermanentError {
  return new PermanentError(
    `the server at ${where} asks for a password for user "${user}" and none is configured: put it into the connection URI, ` +
      "PGPASSWORD or the password file (which must have mode 0600)",
  );
}

function remedyFor(error: { code: string; message: string }, session: SessionName): string | undefined {
  const role = `"${session.user.replaceAll('"', '""')}"`;
  // PostgreSQL 15.19, 16.15, 17.11, 18.6 and later let a role use the plugins that are listed.
  if (/output_plugin_libraries|output plugin/.test(error.message) && /wal2json/.test(error.message)) {
    return `run as a superuser: ALTER ROLE ${role} SET output_plugin_libraries = pgoutput, wal2json`;
  }
  if (/unsupported startup parameter: replication/.test(error.message)) {
    return "a pooler stands before the server, and the WAL does not pass it: connect to PostgreSQL directly";
  }
  switch (error.code) {
    case "28P01":
      return "check user and password in the connection URI (a password's @ : / ? # % must be percent-encoded)";
    case "28000":
      return "check that the role exists, may log in (ALTER ROLE … LOGIN), and that pg_hba.conf lets it in from here";
    case "3D000":
      return "check the database name in the connection URI, or create the database";
    case "42501":
      if (/permission denied for database/.test(error.message)) {
        return `run as the owner of the database: GRANT CONNECT ON DATABASE "${
          session.database.replaceAll('"', '""')
        }" TO ${role}`;
      }
      return /replication|walsender/i.test(error.message)
        ? `run as a superuser: ALTER ROLE ${role} REPLICATION`
        : `grant the role "${session.user}" what the message names`;
    case "42704":
    case "58P01":
      return /wal2json/.test(error.message)
        ? "install wal2json on the database server (Debian: apt-get install postgresql-NN-wal2json, NN the server's version)"
        : undefined;
    case "53400":
      return "raise max_replication_slots in postgresql.conf and restart the server, or drop a slot that nobody uses " +
        "(select slot_name, active from pg_replication_slots)";
    default:
      return undefined;
  }
}
