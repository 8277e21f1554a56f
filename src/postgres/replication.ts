/**
 * Logical replication over the streaming protocol: the slot, START_REPLICATION, the two-way copy.
 * PostgreSQL documentation, "Streaming Replication Protocol" and "Logical Decoding Concepts".
 */

import { PermanentError, StandingByError, TransientError } from "../core/errors.ts";
import { PauseReason, type ServerConnection } from "./connection.ts";
import type { ConnectionParams } from "./connection_uri.ts";
import { sessionName } from "./hosts.ts";
import { ANSWER_PATIENCE_MS, answerInTime } from "./patience.ts";
import { COPY_DONE, quoteIdentifier, quoteLiteral, type StandbyStatus, standbyStatusUpdate } from "./protocol.ts";
import { openConnection } from "./query_session.ts";
import { explain, ServerError } from "./server_error.ts";
import { OUTPUT_PLUGIN, parseSlot, type Slot, slotFault, slotQuery } from "./slot.ts";

const ACTION = "reading the WAL";

/** What wal2json answers for a parameter that it cannot use: invalid_parameter_value, invalid_name, invalid_text_representation. */
const PARAMETER_FAULTS: ReadonlySet<string> = new Set(["22023", "42602", "22P02"]);

export interface ServerSettings {
  /** `server_version_num`: 150004 is 15.4. */
  readonly version: number;
  /** Milliseconds; 0 means that the server never gives up on us. */
  readonly walSenderTimeoutMs: number;
  /** Of the database: `UTF8`, or `SQL_ASCII`, which promises nothing. */
  readonly encoding: string;
}

export class ReplicationSession {
  readonly #connection: ServerConnection;
  readonly #params: ConnectionParams;
  readonly settings: ServerSettings;

  private constructor(connection: ServerConnection, params: ConnectionParams, settings: ServerSettings) {
    this.#connection = connection;
    this.#params = params;
    this.settings = settings;
  }

  /** Logs in for replication. Throws PermanentError, with the remedy, or TransientError. */
  static async open(params: ConnectionParams, signal: AbortSignal): Promise<ReplicationSession> {
    const connection = await openConnection(params, ACTION, { replication: "database" }, signal);
    try {
      return new ReplicationSession(
        connection,
        params,
        await answerInTime(connection, readSettings(connection), signal),
      );
    } catch (error) {
      connection.terminate();
      throw error;
    }
  }

  get connection(): ServerConnection {
    return this.#connection;
  }

  get where(): string {
    return this.#connection.where;
  }

  /** Runs SQL on the replication connection; errors come explained. `patienceMs` may be Infinity. */
  async #query(sql: string, patienceMs = ANSWER_PATIENCE_MS) {
    try {
      return await answerInTime(this.#connection, this.#connection.query(sql), undefined, patienceMs);
    } catch (error) {
      throw this.#explained(error);
    }
  }

  #explained(error: unknown): unknown {
    if (!(error instanceof ServerError)) return error;
    return explain(error, ACTION, sessionName(this.#params, this.#connection.host));
  }

  async findSlot(name: string): Promise<Slot | undefined> {
    const [row] = await this.#query(slotQuery(name, this.settings.version));
    return parseSlot(row);
  }

  /**
   * A slot that ends with this session. The server first loads the output plugin, and then waits for every transaction that is
   * running to end, at most `patienceMs`.
   */
  async createTemporarySlot(name: string, patienceMs = Infinity): Promise<void> {
    await this.#query(
      `select pg_catalog.pg_create_logical_replication_slot(${quoteLiteral(name)}, ${
        quoteLiteral(OUTPUT_PLUGIN)
      }, true)`,
      patienceMs,
    );
  }

  /** Creates the slot. The server first waits for every transaction that is running to end. */
  async createSlot(name: string, failover: boolean): Promise<void> {
    if (failover && this.settings.version < 170000) {
      throw new PermanentError(
        `slot_failover=true needs PostgreSQL 17 or later; the server at ${this.where} has version ` +
          `${Math.floor(this.settings.version / 10000)}: set slot_failover=false`,
      );
    }
    // The arguments behind the plugin: temporary, twophase, failover.
    const more = failover ? ", false, false, true" : "";
    await this.#query(
      `select pg_catalog.pg_create_logical_replication_slot(${quoteLiteral(name)}, ${
        quoteLiteral(OUTPUT_PLUGIN)
      }${more})`,
      Infinity,
    );
  }

  /** Throws PermanentError for a slot that cannot serve, StandingByError for one that another process holds. */
  checkSlot(name: string, slot: Slot): void {
    const fault = slotFault(name, slot, this.#params.database, this.where);
    if (fault !== undefined) throw fault;
  }

  /** Starts the stream where the slot's confirmed flush stands. `onData` receives the bodies of CopyData. */
  async start(
    slot: string,
    options: ReadonlyArray<readonly [string, string]>,
    onData: (buffer: Buffer, start: number, end: number) => void,
  ): Promise<void> {
    const list = options.map(([name, value]) => `${quoteIdentifier(name)} ${quoteOption(value)}`).join(", ");
    try {
      const command = `START_REPLICATION SLOT ${quoteIdentifier(slot)} LOGICAL 0/0 (${list})`;
      await answerInTime(this.#connection, this.#connection.copyBoth(command, onData));
    } catch (error) {
      if (error instanceof ServerError && error.code === "55006") {
        throw new StandingByError(`replication slot "${slot}" at ${this.where} is held by another process`);
      }
      if (error instanceof ServerError && PARAMETER_FAULTS.has(error.code)) {
        throw new PermanentError(`wal2json refuses its parameters: ${error.message}; correct wal2json_params`);
      }
      throw this.#explained(error);
    }
  }

  sendStatus(status: StandbyStatus): void {
    this.#connection.write(standbyStatusUpdate(status, Date.now()));
  }

  /** Ends the copy as the protocol has it, or closes the connection when the server takes longer than `patienceMs`. */
  async end(patienceMs: number): Promise<void> {
    this.#connection.write(COPY_DONE);
    this.#connection.resume(PauseReason.Congestion);
    const patience = Promise.withResolvers<void>();
    const timer = setTimeout(() => patience.resolve(), patienceMs);
    await Promise.race([this.#connection.copyEnded, this.#connection.lost, patience.promise]);
    clearTimeout(timer);
    this.#connection.terminate();
  }
}

/** An option's value in the replication grammar, where a string has no escapes but the doubled quote. */
function quoteOption(value: string): string {
  return `'${value.replaceAll("'", "''")}'`;
}

export const WAL_LEVEL_REMEDY = "run as a superuser: ALTER SYSTEM SET wal_level = logical, and restart the server";

/**
 * Why the WAL of a database of this encoding cannot be read, with the remedy. A walsender sends what wal2json writes in the
 * encoding of the database, whatever `client_encoding` is, and JSON is UTF-8 (RFC 8259, section 8.1). SQL_ASCII holds what
 * the applications put into it.
 */
export function encodingFault(encoding: string): string | undefined {
  if (encoding === "UTF8" || encoding === "SQL_ASCII") return undefined;
  return `the encoding of the database is ${encoding}, wanted UTF8: JSON in ${encoding} is no JSON; move the data to a ` +
    "database made by CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0, or bind channels instead of wal2json: NOTIFY and " +
    "durable messages are converted";
}

async function readSettings(connection: ServerConnection): Promise<ServerSettings> {
  const rows = await connection.query(
    "select name, setting from pg_catalog.pg_settings " +
      "where name in ('server_version_num', 'wal_level', 'wal_sender_timeout', 'server_encoding')",
  );
  const settings = new Map(rows.map(([name, setting]) => [name, setting ?? ""]));
  const walLevel = settings.get("wal_level") ?? "";
  if (walLevel !== "logical") {
    throw new PermanentError(
      `${ACTION} at ${connection.where} is not possible: wal_level is ${walLevel}, wanted logical; ${WAL_LEVEL_REMEDY}`,
    );
  }
  const encoding = settings.get("server_encoding") ?? "UTF8";
  const fault = encodingFault(encoding);
  if (fault !== undefined) throw new PermanentError(`${ACTION} at ${connection.where} is not possible: ${fault}`);
  const version = Number(settings.get("server_version_num"));
  if (!Number.isFinite(version)) {
    throw new TransientError(`the server at ${connection.where} does not tell its version`);
  }
  return {
    version,
    walSenderTimeoutMs: Number(settings.get("wal_sender_timeout") ?? "60000"),
    encoding,
  };
}
