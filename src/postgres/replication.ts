/**
 * Logical replication over the streaming protocol: the slot, START_REPLICATION, the two-way copy.
 * PostgreSQL documentation, "Streaming Replication Protocol" and "Logical Decoding Concepts".
 */

import { formatLsn, type Lsn, NO_LSN, parseLsn } from "../core/lsn.ts";
import { APPLICATION_NAME } from "../core/event.ts";
import { PermanentError, StandingByError, TransientError } from "../core/errors.ts";
import { PauseReason, ServerConnection } from "./connection.ts";
import type { ConnectionParams } from "./connection_uri.ts";
import { connectToAny, type SessionMaker, sessionName } from "./hosts.ts";
import { COPY_DONE, quoteIdentifier, quoteLiteral, type StandbyStatus, standbyStatusUpdate } from "./protocol.ts";
import { explain, ServerError } from "./server_error.ts";

export const OUTPUT_PLUGIN = "wal2json";
const ACTION = "reading the WAL";
/** How long the server may take for an answer before the stream begins, in milliseconds; after that it has keepalives. */
const ANSWER_PATIENCE_MS = 15_000;

/** What wal2json answers for a parameter that it cannot use: invalid_parameter_value, invalid_name, invalid_text_representation. */
const PARAMETER_FAULTS: ReadonlySet<string> = new Set(["22023", "42602", "22P02"]);

export interface ServerSettings {
  /** `server_version_num`: 150004 is 15.4. */
  readonly version: number;
  /** Milliseconds; 0 means that the server never gives up on us. */
  readonly walSenderTimeoutMs: number;
  readonly encoding: string;
}

/** A row of pg_replication_slots. */
export interface Slot {
  readonly plugin: string | null;
  readonly type: string;
  readonly database: string | null;
  readonly activePid: string | null;
  readonly confirmedFlushLsn: Lsn;
  readonly restartLsn: Lsn;
  /** `reserved`, `extended`, `unreserved` or `lost`. */
  readonly walStatus: string | null;
  /** PostgreSQL 17 and later. */
  readonly invalidationReason: string | null;
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
    const startup = {
      replication: "database",
      application_name: APPLICATION_NAME,
      ...(params.options === undefined ? {} : { options: params.options }),
    };
    const maker: SessionMaker<ServerConnection> = {
      open: (host, encryption, attempt) => ServerConnection.open(params, host, encryption, startup, attempt),
      async state(connection) {
        const [row] = await connection.query(
          "select pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('transaction_read_only')",
        );
        return { inRecovery: row?.[0] === "t", readOnly: row?.[1] === "on" };
      },
      close: (connection) => connection.terminate(),
    };
    const connection = await connectToAny(params, ACTION, maker, signal);
    try {
      return new ReplicationSession(connection, params, await inTime(connection, readSettings(connection), signal));
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
      return await inTime(this.#connection, this.#connection.query(sql), undefined, patienceMs);
    } catch (error) {
      throw this.#explained(error);
    }
  }

  #explained(error: unknown): unknown {
    if (!(error instanceof ServerError)) return error;
    return explain(error, ACTION, sessionName(this.#params, this.#connection.host));
  }

  async findSlot(name: string): Promise<Slot | undefined> {
    const reason = this.settings.version >= 170000 ? "invalidation_reason" : "null";
    const [row] = await this.#query(
      "select plugin, slot_type, database, active_pid, confirmed_flush_lsn, restart_lsn, wal_status, " +
        `${reason} from pg_catalog.pg_replication_slots where slot_name = ${quoteLiteral(name)}`,
    );
    if (row === undefined) return undefined;
    const [plugin, type, database, activePid, confirmed, restart, walStatus, invalidationReason] = row;
    return {
      plugin: plugin!,
      type: type!,
      database: database!,
      activePid: activePid!,
      confirmedFlushLsn: confirmed ? parseLsn(confirmed) : NO_LSN,
      restartLsn: restart ? parseLsn(restart) : NO_LSN,
      walStatus: walStatus!,
      invalidationReason: invalidationReason!,
    };
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
    const at = `replication slot "${name}" at ${this.where}`;
    const drop = `select pg_drop_replication_slot(${quoteLiteral(name)})`;
    if (slot.type !== "logical" || slot.plugin !== OUTPUT_PLUGIN) {
      const seen = slot.type === "logical" ? `a logical slot of plugin ${slot.plugin}` : "a physical slot";
      throw new PermanentError(
        `${at} is ${seen}, wanted a logical slot of plugin ${OUTPUT_PLUGIN}; set replication_slot to another name, or ` +
          `drop it: ${drop}`,
      );
    }
    if (slot.database !== this.#params.database) {
      throw new PermanentError(
        `${at} belongs to database "${slot.database}", wanted "${this.#params.database}"; set replication_slot to ` +
          "another name",
      );
    }
    if (slot.walStatus === "lost" || slot.invalidationReason !== null) {
      throw new PermanentError(
        `${at} is lost (${slot.invalidationReason ?? "wal_removed"}): the changes after ` +
          `${
            formatLsn(slot.confirmedFlushLsn)
          } are gone from the WAL; to go on from now without them, drop it and start ` +
          `again: ${drop}; raise max_slot_wal_keep_size to keep more WAL`,
      );
    }
    if (slot.activePid !== null) {
      throw new StandingByError(`${at} is held by another process (server process ${slot.activePid})`);
    }
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
      await inTime(this.#connection, this.#connection.copyBoth(command, onData));
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

/** Closes the connection, which ends what waits for it, when the answer is late or `signal` aborts. */
async function inTime<T>(
  connection: ServerConnection,
  answer: Promise<T>,
  signal?: AbortSignal,
  patienceMs = ANSWER_PATIENCE_MS,
): Promise<T> {
  const onAbort = () => connection.destroy("stopped");
  const timer = patienceMs === Infinity
    ? undefined
    : setTimeout(() => connection.destroy(`no answer within ${patienceMs / 1000} s`), patienceMs);
  signal?.addEventListener("abort", onAbort);
  if (signal?.aborted) onAbort();
  try {
    return await answer;
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", onAbort);
  }
}

/** An option's value in the replication grammar, where a string has no escapes but the doubled quote. */
function quoteOption(value: string): string {
  return `'${value.replaceAll("'", "''")}'`;
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
      `reading the WAL at ${connection.where} is not possible: wal_level is ${walLevel}, wanted logical; run as a ` +
        "superuser: ALTER SYSTEM SET wal_level = logical, and restart the server",
    );
  }
  const version = Number(settings.get("server_version_num"));
  if (!Number.isFinite(version)) {
    throw new TransientError(`the server at ${connection.where} does not tell its version`);
  }
  return {
    version,
    walSenderTimeoutMs: Number(settings.get("wal_sender_timeout") ?? "60000"),
    encoding: settings.get("server_encoding") ?? "UTF8",
  };
}
