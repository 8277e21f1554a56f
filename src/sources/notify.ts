/** NOTIFY as a source of events: one session that listens, and a probe that it does. */

import { hash, randomUUID } from "node:crypto";
import { sleep, unlessAborted } from "../core/backoff.ts";
import { PermanentError, StandingByError, TransientError } from "../core/errors.ts";
import type { Event } from "../core/event.ts";
import { parseNotification } from "../core/notification.ts";
import type { Completion, RunOptions, Sink, Source, SourceFigures } from "../core/source.ts";
import type { Logger } from "../log.ts";
import type { ConnectionParams } from "../postgres/connection_uri.ts";
import { quoteIdentifier } from "../postgres/protocol.ts";
import { QuerySession } from "../postgres/query_session.ts";
import { openSqlSession, type SqlSession } from "../postgres/sql_session.ts";

export interface NotifySourceOptions {
  readonly params: ConnectionParams;
  readonly channels: readonly string[];
  readonly sink: Sink;
  readonly log: Logger;
  /** Instances with the same identity share an advisory lock, so that one of them listens and the others stand by. */
  readonly identity: string;
  /** Bytes of notifications held while an upstream is away; the newest beyond are dropped. */
  readonly maxBufferBytes: number;
}

/** Counts since the start. */
export interface NotifyCounts {
  received: number;
  dropped: number;
}

const ACTION = "listening for notifications";
/** How long the server may take to answer before the first probe. */
const BEGIN_PATIENCE_MS = 15_000;
const PROBE_INTERVAL_MS = 30_000;
const PROBE_PATIENCE_MS = 10_000;
/** A probe takes two messages: after this long its connection does not count as ready. */
const PROBE_EXPECTED_MS = 3_000;
/** A report of dropped notifications at most this often. */
const DROP_REPORT_MS = 30_000;
/** What a waiting notification costs besides its bytes. */
const OVERHEAD_BYTES = 256;
/** First key of the advisory lock: "pgep" in ASCII. */
const LOCK_CLASS = 0x70676570;
/** How long a session that PostgreSQL was told to end may take to do so. */
const END_PATIENCE_MS = 3_000;
const END_POLL_MS = 100;

/**
 * So that the lock of an instance whose machine is gone is free after a minute, not after the two hours of the operating
 * system's default (PostgreSQL documentation, "TCP Settings"; without effect on Unix sockets).
 */
const KEEPALIVE_SQL = "select set_config('tcp_keepalives_idle', '30', false), " +
  "set_config('tcp_keepalives_interval', '10', false), set_config('tcp_keepalives_count', '3', false)";

/** A session as PostgreSQL knows it: process ids are used again. */
interface Backend {
  readonly pid: number;
  readonly since: string;
}

/** Nothing ended the session, but nothing comes through it either: nobody knows since when. */
class SilentError extends TransientError {}

export class NotifySource implements Source {
  readonly name = "notify";
  readonly counts: NotifyCounts = { received: 0, dropped: 0 };
  readonly #options: NotifySourceOptions;
  readonly #log: Logger;
  /** Ids of notifications: this run of the program, and a number. */
  readonly #idPrefix = `n-${randomUUID().slice(0, 13)}`;
  readonly #probeChannel = `pg_event_proxy_probe_${randomUUID().replaceAll("-", "").slice(0, 16)}`;
  #sequence = 0;
  #bufferedBytes = 0;
  #droppedUnreported = 0;
  #lastDropReportMs = 0;
  /** Whether a notification from another session has ever arrived. */
  #hearsOthers = false;
  /** The session that held the lock last. */
  #backend: Backend | undefined;
  /** When the session was last known to hear. */
  #heardAtMs = 0;
  /** Since when nothing is heard; what was notified since is gone. */
  #deafSinceMs: number | undefined;
  /** When the probe was sent that has not arrived. */
  #probedAtMs: number | undefined;

  constructor(options: NotifySourceOptions) {
    this.#options = options;
    this.#log = options.log;
  }

  get figures(): SourceFigures {
    return {
      heardAtMs: this.#heardAtMs === 0 ? undefined : this.#heardAtMs,
      droppedEvents: this.counts.dropped,
      slot: undefined,
    };
  }

  silence(nowMs: number): string | undefined {
    if (this.#probedAtMs === undefined || nowMs - this.#probedAtMs < PROBE_EXPECTED_MS) return undefined;
    return `a notification to ourselves has not arrived for ${Math.round((nowMs - this.#probedAtMs) / 1000)} s`;
  }

  async run(options: RunOptions): Promise<void> {
    let onProbe: (() => void) | undefined;
    const session = await openSqlSession(this.#options.params, {
      action: ACTION,
      onNotify: (channel, payload) => {
        if (channel === this.#probeChannel) onProbe?.();
        else if (!options.stopping.aborted) this.#receive(channel, payload);
      },
      onNotice: (message) => this.#log.debug("notice from PostgreSQL: {message}", { message }),
    }, options.stopping);
    let listening = false;
    try {
      await this.#begin(session, options.stopping);
      const probe = () => this.#probe(session, (arrived) => onProbe = arrived, listening, options.stopping);
      await probe();
      listening = true;
      this.#reportGap();
      options.onOpen();
      await this.#probeUntilLost(session, probe, options.stopping);
    } catch (error) {
      if (listening) this.#deafSinceMs = error instanceof SilentError ? this.#heardAtMs : Date.now();
      throw error;
    } finally {
      // Nobody may be left to report to later.
      this.#reportDropped();
      await session.close();
    }
  }

  /** Ends the session if the server does not answer in time, or when it is time to stop. */
  async #begin(session: SqlSession, stopping: AbortSignal): Promise<void> {
    const giveUp = () => void session.close();
    const timer = setTimeout(giveUp, BEGIN_PATIENCE_MS);
    stopping.addEventListener("abort", giveUp);
    try {
      await this.#claim(session);
      await this.#listen(session);
    } finally {
      clearTimeout(timer);
      stopping.removeEventListener("abort", giveUp);
    }
  }

  /** Two that listen would double every notification. The lock goes with the session, so that a dead one frees it. */
  async #claim(session: SqlSession): Promise<void> {
    await this.#query(session, () => session.sql.unsafe(KEEPALIVE_SQL));
    let claimed = await this.#tryLock(session);
    if (!claimed && await this.#endLeftover(session)) {
      const deadlineMs = Date.now() + END_PATIENCE_MS;
      while (!claimed && Date.now() < deadlineMs) {
        await sleep(END_POLL_MS);
        claimed = await this.#tryLock(session);
      }
    }
    if (!claimed) throw new StandingByError(`another instance with this configuration listens at ${session.where}`);
    [this.#backend] = await this.#query(
      session,
      () =>
        session.sql<Backend[]>`
          select pid, backend_start::text as since from pg_stat_activity where pid = pg_backend_pid()`,
    );
  }

  async #tryLock(session: SqlSession): Promise<boolean> {
    const key = Buffer.from(hash("sha256", this.#options.identity, "hex"), "hex").readInt32BE(0);
    const [row] = await this.#query(
      session,
      () => session.sql<{ ok: boolean }[]>`select pg_try_advisory_lock(${LOCK_CLASS}, ${key}) as ok`,
    );
    return row?.ok === true;
  }

  /**
   * Of a connection that the network has lost, PostgreSQL learns late: our own session of before would keep us out until
   * then. Returns whether it was still there.
   */
  async #endLeftover(session: SqlSession): Promise<boolean> {
    const backend = this.#backend;
    if (backend === undefined) return false;
    const rows = await this.#query(
      session,
      () =>
        session.sql`
          select pg_terminate_backend(pid) from pg_stat_activity
           where pid = ${backend.pid} and backend_start::text = ${backend.since}`,
    );
    return rows.length > 0;
  }

  async #listen(session: SqlSession): Promise<void> {
    for (const channel of [...this.#options.channels, this.#probeChannel]) {
      await this.#query(session, () => session.sql.unsafe(`LISTEN ${quoteIdentifier(channel)}`));
    }
  }

  async #query<T>(session: SqlSession, query: () => PromiseLike<T>): Promise<T> {
    try {
      return await query();
    } catch (error) {
      throw session.explain(error, ACTION);
    }
  }

  async #probeUntilLost(session: SqlSession, probe: () => Promise<void>, stopping: AbortSignal): Promise<void> {
    const ended = new AbortController();
    const stop = unlessAborted(session.closed, stopping).then(() => ended.abort());
    while (!ended.signal.aborted) {
      await sleep(PROBE_INTERVAL_MS, ended.signal);
      if (!ended.signal.aborted) await Promise.race([probe(), stop]);
    }
    if (stopping.aborted) return;
    throw new TransientError(`the connection to PostgreSQL at ${session.where} was lost`);
  }

  /** Notifies ourselves: finds a connection that is open but dead, and a pooler that swallows LISTEN. */
  async #probe(
    session: SqlSession,
    onArrival: (arrived: () => void) => void,
    proven: boolean,
    stopping: AbortSignal,
  ): Promise<void> {
    const arrival = Promise.withResolvers<"arrived">();
    const patience = new AbortController();
    onArrival(() => arrival.resolve("arrived"));
    let answered = false;
    this.#probedAtMs = Date.now();
    const sent = this.#notifyOurselves(session, stopping);
    const outcome = await Promise.race([
      sent.then(() => {
        answered = true;
        return arrival.promise;
      }),
      session.closed.then(() => "closed" as const),
      sleep(PROBE_PATIENCE_MS, patience.signal).then(() => "silent" as const),
    ]);
    patience.abort();
    this.#probedAtMs = undefined;
    if (outcome === "arrived") {
      this.#hearsOthers = true;
      this.#heardAtMs = Date.now();
      return;
    }
    sent.catch(() => {});
    if (outcome === "closed") throw new TransientError(`the connection to PostgreSQL at ${session.where} was lost`);
    const text = `a notification to ourselves did not arrive from PostgreSQL at ${session.where} within ` +
      `${PROBE_PATIENCE_MS / 1000} s`;
    if (proven || !answered) throw new SilentError(`${text}: the connection is given up`);
    throw new PermanentError(`${text}: a pooler in transaction mode swallows LISTEN; connect to PostgreSQL directly`);
  }

  /**
   * The first time from another session: to its own, a notification comes back through a pooler in transaction mode as well,
   * as long as that gives it the same connection to the server.
   */
  async #notifyOurselves(session: SqlSession, stopping: AbortSignal): Promise<void> {
    let other: QuerySession | undefined;
    if (!this.#hearsOthers) {
      const params = { ...this.#options.params, hosts: [session.host], targetSessionAttrs: "any" } as const;
      // A role may be allowed one session only.
      other = await QuerySession.open(params, ACTION, stopping).catch(() => undefined);
    }
    try {
      if (other !== undefined) await other.query(`select pg_notify('${this.#probeChannel}', '')`);
      else await this.#query(session, () => session.sql`select pg_notify(${this.#probeChannel}, '')`);
    } finally {
      other?.close();
    }
  }

  #receive(channel: string, payload: string): void {
    const { routingKey, message, json } = parseNotification(payload);
    const bytes = Buffer.from(message);
    this.counts.received++;
    this.#heardAtMs = Date.now();
    const size = bytes.length + OVERHEAD_BYTES;
    if (this.#bufferedBytes + size > this.#options.maxBufferBytes) return this.#drop();
    const event: Event = {
      id: `${this.#idPrefix}-${this.#sequence++}`,
      type: "notify",
      channel,
      routingKey,
      payload: bytes,
      json,
      receivedAtMs: Date.now(),
    };
    this.#options.sink.emit(event, this.#buffered(size));
  }

  /** Counts the bytes as long as any lane holds the event. */
  #buffered(size: number): Completion {
    let holders = 0;
    return {
      retain: () => {
        if (holders++ === 0) this.#bufferedBytes += size;
      },
      release: () => {
        if (--holders > 0) return;
        this.#bufferedBytes -= size;
        // With half of the room free again the flood is over.
        if (this.#bufferedBytes <= this.#options.maxBufferBytes / 2) this.#reportDropped();
      },
    };
  }

  #drop(): void {
    this.counts.dropped++;
    this.#droppedUnreported++;
    if (Date.now() - this.#lastDropReportMs >= DROP_REPORT_MS) this.#reportDropped();
  }

  #reportDropped(): void {
    if (this.#droppedUnreported === 0) return;
    this.#lastDropReportMs = Date.now();
    this.#log.error(
      "dropped {count} notifications ({total} since the start): {bytes} bytes of them wait for an upstream, and no more are " +
        "held; use durable messages or the WAL for events that must not be lost",
      { count: this.#droppedUnreported, total: this.counts.dropped, bytes: this.#bufferedBytes },
    );
    this.#droppedUnreported = 0;
  }

  #reportGap(): void {
    if (this.#deafSinceMs === undefined) return;
    this.#log.warn(
      "notifications sent in the {seconds} s between {from} and {to} are lost: PostgreSQL keeps them for connected " +
        "listeners only",
      {
        seconds: Math.round((Date.now() - this.#deafSinceMs) / 100) / 10,
        from: new Date(this.#deafSinceMs).toISOString(),
        to: new Date().toISOString(),
      },
    );
  }
}
