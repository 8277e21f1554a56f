/** Replication slots as the catalog shows them: PostgreSQL documentation, "pg_replication_slots". */

import { PermanentError, StandingByError } from "../core/errors.ts";
import { formatLsn, type Lsn, NO_LSN, parseLsn } from "../core/lsn.ts";
import type { Row } from "./connection.ts";
import { quoteLiteral } from "./protocol.ts";

export const OUTPUT_PLUGIN = "wal2json";

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

/** The query for `parseSlot`; `version` is `server_version_num`. */
export function slotQuery(name: string, version: number): string {
  const reason = version >= 170000 ? "invalidation_reason" : "null";
  return "select plugin, slot_type, database, active_pid, confirmed_flush_lsn, restart_lsn, wal_status, " +
    `${reason} from pg_catalog.pg_replication_slots where slot_name = ${quoteLiteral(name)}`;
}

export function parseSlot(row: Row | undefined): Slot | undefined {
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

/** Why a slot cannot serve `database`: PermanentError, or StandingByError for one that another process holds. */
export function slotFault(name: string, slot: Slot, database: string, where: string): Error | undefined {
  const at = `replication slot "${name}" at ${where}`;
  const drop = `select pg_drop_replication_slot(${quoteLiteral(name)})`;
  if (slot.type !== "logical" || slot.plugin !== OUTPUT_PLUGIN) {
    const seen = slot.type === "logical" ? `a logical slot of plugin ${slot.plugin}` : "a physical slot";
    return new PermanentError(
      `${at} is ${seen}, wanted a logical slot of plugin ${OUTPUT_PLUGIN}; set replication_slot to another name, or ` +
        `drop it: ${drop}`,
    );
  }
  if (slot.database !== database) {
    return new PermanentError(
      `${at} belongs to database "${slot.database}", wanted "${database}"; set replication_slot to another name`,
    );
  }
  if (slot.walStatus === "lost" || slot.invalidationReason !== null) {
    return new PermanentError(
      `${at} is lost (${slot.invalidationReason ?? "wal_removed"}): the changes after ` +
        `${
          formatLsn(slot.confirmedFlushLsn)
        } are gone from the WAL; to go on from now without them, drop it and start ` +
        `again: ${drop}; raise max_slot_wal_keep_size to keep more WAL`,
    );
  }
  if (slot.activePid === null) return undefined;
  return new StandingByError(`${at} is held by another process (server process ${slot.activePid})`);
}
