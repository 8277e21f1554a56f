/** Sessions for SQL and LISTEN: the `postgres` library on a socket that we have opened by libpq's rules. */

import postgres from "postgres";
import { APPLICATION_NAME } from "../core/event.ts";
import { errorText, PermanentError } from "../core/errors.ts";
import type { ConnectionParams, Host } from "./connection_uri.ts";
import { connectToAny, type SessionMaker, sessionName } from "./hosts.ts";
import { explain, missingPassword, ServerError } from "./server_error.ts";
import { type Encryption, hostText, openSocket } from "./socket.ts";

export type Sql = postgres.Sql;

export interface SqlSession {
  readonly sql: Sql;
  /** Of several hosts the one that took us. */
  readonly host: Host;
  /** `host:port` or the socket's path. */
  readonly where: string;
  /** Resolves when the connection is gone. It is never made again behind our back. */
  readonly closed: Promise<void>;
  /** Turns what a query threw into what the operator is told. `action` begins the line. */
  explain(error: unknown, action: string): Error;
  /** Says goodbye, or closes by force after a second. */
  close(): Promise<void>;
}

export interface SqlSessionOptions {
  /** For error texts: `listening for notifications`. */
  readonly action: string;
  readonly onNotify?: (channel: string, payload: string) => void;
  readonly onNotice?: (message: string) => void;
}

/** Logs in with one connection. Throws PermanentError or TransientError. */
export function openSqlSession(
  params: ConnectionParams,
  options: SqlSessionOptions,
  signal: AbortSignal,
): Promise<SqlSession> {
  const maker: SessionMaker<SqlSession> = {
    open: (host, encryption, attempt) => open(params, host, encryption, options, attempt),
    async state({ sql }) {
      const [row] = await sql<{ in_recovery: boolean; read_only: string }[]>`
        select pg_is_in_recovery() as in_recovery, current_setting('transaction_read_only') as read_only`;
      return { inRecovery: row!.in_recovery, readOnly: row!.read_only === "on" };
    },
    close: (session) => void session.close(),
  };
  return connectToAny(params, options.action, maker, signal);
}

async function open(
  params: ConnectionParams,
  host: Host,
  encryption: Encryption,
  options: SqlSessionOptions,
  signal: AbortSignal,
): Promise<SqlSession> {
  if (params.channelBinding === "require") throw new PermanentError(channelBindingText(options.action));
  const { socket } = await openSocket(params, host, encryption, signal);
  const { promise: closed, resolve: onClosed } = Promise.withResolvers<void>();
  socket.once("close", () => onClosed());
  let handedOver = false;
  const settings = {
    host: host.host,
    port: host.port,
    user: params.user,
    pass: params.password(host) ?? "",
    database: params.database,
    ssl: false,
    max: 1,
    fetch_types: false,
    prepare: false,
    idle_timeout: 0,
    max_lifetime: null,
    connection: {
      application_name: APPLICATION_NAME,
      ...(params.options === undefined ? {} : { options: params.options }),
    },
    onnotice: (notice: postgres.Notice) => options.onNotice?.(String(notice.message)),
    onnotify: options.onNotify,
    // One session is one connection: the library asks a second time when it wants to reconnect.
    socket: () => {
      if (handedOver) throw new Error("the connection was lost");
      handedOver = true;
      return socket;
    },
  };
  const sql = postgres(settings as unknown as postgres.Options<Record<string, never>>);
  // Where the socket ends during the login, the library may wait for ever: under Deno no close event tells it.
  const stopped = Promise.withResolvers<never>();
  const onAbort = () => {
    socket.destroy();
    stopped.reject(signal.reason);
  };
  signal.addEventListener("abort", onAbort);
  if (signal.aborted) onAbort();
  try {
    const loggedIn = sql`select 1`.then(() => {});
    loggedIn.catch(() => {});
    await Promise.race([loggedIn, stopped.promise]);
  } catch (error) {
    socket.destroy();
    await sql.end({ timeout: 0 });
    const fault = serverError(error);
    // The library sends an empty password, and the server then calls it a wrong one.
    if (fault?.code === "28P01" && params.password(host) === undefined) {
      throw missingPassword(hostText(host), params.user);
    }
    throw fault ??
      new Error(`the connection to PostgreSQL at ${hostText(host)} was lost: ${errorText(error)}`);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
  return {
    sql,
    host,
    where: hostText(host),
    closed,
    explain(error, action) {
      const fault = serverError(error);
      return fault === undefined
        ? new Error(`${action} failed: ${errorText(error)}`)
        : explain(fault, action, sessionName(params, host));
    },
    async close() {
      await sql.end({ timeout: 1 });
      socket.destroy();
    },
  };
}

/** Going on without it would be the downgrade that the operator has ruled out. */
function channelBindingText(action: string): string {
  return `${action} is not possible with channel_binding=require in the connection URI: only sessions that read the WAL have ` +
    "channel binding; take it out, and use sslmode=verify-full to be sure of the server";
}

function serverError(error: unknown): ServerError | undefined {
  if (error instanceof ServerError) return error;
  if (!(error instanceof postgres.PostgresError)) return undefined;
  const { code, message, detail, hint } = error;
  return new ServerError({ C: code, M: message, ...(detail ? { D: detail } : {}), ...(hint ? { H: hint } : {}) });
}
