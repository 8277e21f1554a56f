/** A session for a few queries, on our own connection: unlike the `postgres` library it has channel binding. */

import { APPLICATION_NAME } from "../core/event.ts";
import type { Row } from "./connection.ts";
import { ServerConnection } from "./connection.ts";
import type { ConnectionParams } from "./connection_uri.ts";
import { connectToAny, type SessionMaker, sessionName } from "./hosts.ts";
import { explain, ServerError } from "./server_error.ts";
import { answerInTime } from "./patience.ts";

export class QuerySession {
  readonly #connection: ServerConnection;
  readonly #params: ConnectionParams;
  readonly #action: string;

  private constructor(connection: ServerConnection, params: ConnectionParams, action: string) {
    this.#connection = connection;
    this.#params = params;
    this.#action = action;
  }

  /** Logs in. `action` begins error texts. Throws PermanentError, with the remedy, or TransientError. */
  static async open(params: ConnectionParams, action: string, signal: AbortSignal): Promise<QuerySession> {
    return new QuerySession(await openConnection(params, action, {}, signal), params, action);
  }

  get connection(): ServerConnection {
    return this.#connection;
  }

  /** `host:port` or the socket's path. */
  get where(): string {
    return this.#connection.where;
  }

  /** Resolves with the cause when the connection is gone. */
  get closed(): Promise<Error> {
    return this.#connection.lost;
  }

  /**
   * The rows of one statement as text; errors come explained. One at a time. A server that takes longer than 15 s loses
   * the session.
   */
  async query(sql: string): Promise<Row[]> {
    try {
      return await answerInTime(this.#connection, this.#connection.query(sql));
    } catch (error) {
      if (!(error instanceof ServerError)) throw error;
      throw explain(error, this.#action, sessionName(this.#params, this.#connection.host));
    }
  }

  /** Says goodbye; a query that waits for its answer fails. */
  close(): void {
    this.#connection.terminate();
  }
}

/** Logs in to the first host that will do, with `startup` beside what every session of this program sets. */
export function openConnection(
  params: ConnectionParams,
  action: string,
  startup: Readonly<Record<string, string>>,
  signal: AbortSignal,
): Promise<ServerConnection> {
  const all = {
    ...startup,
    application_name: APPLICATION_NAME,
    ...(params.options === undefined ? {} : { options: params.options }),
  };
  const maker: SessionMaker<ServerConnection> = {
    open: (host, encryption, attempt) => ServerConnection.open(params, host, encryption, all, attempt),
    async state(connection) {
      const [row] = await connection.query(
        "select pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('transaction_read_only')",
      );
      return { inRecovery: row?.[0] === "t", readOnly: row?.[1] === "on" };
    },
    close: (connection) => connection.terminate(),
  };
  return connectToAny(params, action, maker, signal);
}
