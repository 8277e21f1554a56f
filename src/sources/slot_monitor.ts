/**
 * Watches a slot from beside the stream: how much WAL it holds back, how long until the server gives it up, and whether
 * the server is shutting down.
 */

import { sleep } from "../core/backoff.ts";
import { errorText } from "../core/errors.ts";
import type { Logger } from "../log.ts";
import type { ConnectionParams } from "../postgres/connection_uri.ts";
import { quoteLiteral } from "../postgres/protocol.ts";
import { QuerySession } from "../postgres/query_session.ts";
import { ServerNotReadyError } from "../postgres/server_error.ts";

/** What the server says of the slot; sizes in bytes. */
export interface SlotReading {
  readonly atMs: number;
  /** Position of the server's WAL as a number of bytes since its beginning. */
  readonly walPosition: number;
  /** WAL that the server keeps for the slot. */
  readonly retainedBytes: number;
  /** WAL not confirmed yet. */
  readonly lagBytes: number;
  /** WAL that may still be written before the slot is in danger; undefined without `max_slot_wal_keep_size`. */
  readonly safeBytes: number | undefined;
  /** `reserved`, `extended`, `unreserved` or `lost`. */
  readonly walStatus: string;
}

/** One look at a slot. */
export interface SlotLook extends SlotReading {
  /** Whether a process of the server streams from it. */
  readonly isActive: boolean;
}

export interface SlotMonitorOptions {
  readonly params: ConnectionParams;
  readonly slot: string;
  readonly log: Logger;
  onReading(reading: SlotReading): void;
  /** No process of the server streams from the slot any more, or the slot is gone; `seen` says which. */
  onInactive(seen: string): void;
  /** The server ends sessions and takes no new ones, while the stream is still open: it is shutting down. */
  onShutdown(): void;
}

const INTERVAL_MS = 10_000;
const RETRY_MS = 1_000;
/** A server that shuts down is looked at more often, since it waits for us. */
const SHUTDOWN_RETRY_MS = 150;
/** A warning is repeated at most this often. */
const REPEAT_MS = 300_000;
/** Warn when the slot would be lost sooner than this at the present rate. */
const WARN_BEFORE_MS = 3_600_000;
const ACTION = "watching the replication slot";

/** One look; undefined where there is no such slot. */
export async function readSlot(session: QuerySession, slot: string): Promise<SlotLook | undefined> {
  const [row] = await session.query(
    "select pg_wal_lsn_diff(here.lsn, '0/0'), pg_wal_lsn_diff(here.lsn, restart_lsn), " +
      "pg_wal_lsn_diff(here.lsn, confirmed_flush_lsn), safe_wal_size, wal_status, active " +
      "from pg_replication_slots, " +
      "(select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end) as here(lsn) " +
      `where slot_name = ${quoteLiteral(slot)}`,
  );
  if (row === undefined) return undefined;
  const [position, retained, lag, safe, status, active] = row;
  return {
    atMs: Date.now(),
    walPosition: Number(position),
    retainedBytes: Number(retained),
    lagBytes: Number(lag),
    safeBytes: safe === null || safe === undefined ? undefined : Number(safe),
    walStatus: status ?? "unknown",
    isActive: active === "t",
  };
}

export class SlotMonitor {
  readonly #options: SlotMonitorOptions;
  #previous: SlotReading | undefined;
  #lastWarningMs = -Infinity;
  #failed = false;

  constructor(options: SlotMonitorOptions) {
    this.#options = options;
  }

  /** Runs until `signal` aborts. Never throws: a stream without its monitor is better than none. */
  async run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      try {
        await this.#watch(signal);
      } catch (error) {
        if (signal.aborted) return;
        const shutsDown = error instanceof ServerNotReadyError;
        if (shutsDown) this.#options.onShutdown();
        if (!this.#failed) {
          this.#options.log.debug("{action} failed: {reason}", { action: ACTION, reason: errorText(error) });
        }
        this.#failed = true;
        await sleep(shutsDown ? SHUTDOWN_RETRY_MS : RETRY_MS, signal);
      }
    }
  }

  async #watch(signal: AbortSignal): Promise<void> {
    const session = await QuerySession.open(this.#options.params, ACTION, signal);
    const ended = new AbortController();
    const end = () => ended.abort();
    session.closed.then(end);
    // Closing ends a query that a server which hangs would never answer.
    const onAbort = () => {
      end();
      session.close();
    };
    signal.addEventListener("abort", onAbort);
    if (signal.aborted) onAbort();
    try {
      while (!ended.signal.aborted) {
        await this.#read(session);
        this.#failed = false;
        await sleep(INTERVAL_MS, ended.signal);
      }
    } finally {
      signal.removeEventListener("abort", onAbort);
      session.close();
    }
  }

  async #read(session: QuerySession): Promise<void> {
    const reading = await readSlot(session, this.#options.slot);
    if (reading === undefined) return this.#options.onInactive("does not exist any more");
    this.#warnInTime(reading);
    this.#previous = reading;
    this.#options.onReading(reading);
    if (!reading.isActive) this.#options.onInactive(`is in use by no process (wal_status ${reading.walStatus})`);
  }

  #warnInTime(reading: SlotReading): void {
    const leftMs = timeUntilLostMs(this.#previous, reading);
    const endangered = reading.walStatus === "unreserved" || (leftMs !== undefined && leftMs < WARN_BEFORE_MS);
    if (!endangered || reading.atMs - this.#lastWarningMs < REPEAT_MS) return;
    this.#lastWarningMs = reading.atMs;
    this.#options.log.warn(
      'replication slot "{slot}" will be lost {when}: it holds back {retained} MiB of WAL and max_slot_wal_keep_size ' +
        "leaves {safe} MiB; bring the upstream back, or raise max_slot_wal_keep_size (ALTER SYSTEM SET …; SELECT " +
        "pg_reload_conf())",
      {
        slot: this.#options.slot,
        when: leftMs === undefined ? "at the next checkpoint" : `in about ${durationText(leftMs)} at the present rate`,
        retained: Math.round(reading.retainedBytes / 2 ** 20),
        safe: Math.round((reading.safeBytes ?? 0) / 2 ** 20),
      },
    );
  }
}

/**
 * Milliseconds until the slot is in danger if WAL goes on being written as between the two readings. Undefined where
 * nothing was written, or where the server keeps WAL without bound.
 */
export function timeUntilLostMs(previous: SlotReading | undefined, reading: SlotReading): number | undefined {
  if (reading.safeBytes === undefined || previous === undefined) return undefined;
  const bytesPerMs = (reading.walPosition - previous.walPosition) / Math.max(1, reading.atMs - previous.atMs);
  if (bytesPerMs <= 0) return undefined;
  return Math.max(0, reading.safeBytes) / bytesPerMs;
}

export function durationText(ms: number): string {
  if (ms < 90_000) return `${Math.round(ms / 1000)} s`;
  if (ms < 5_400_000) return `${Math.round(ms / 60_000)} min`;
  return `${Math.round(ms / 3_600_000)} h`;
}
