/** The WAL as a source of events: one replication connection, its slot, and what is confirmed to it. */

import { AckTracker } from "../core/ack_tracker.ts";
import { aborted, unlessAborted } from "../core/backoff.ts";
import { PermanentError, TransientError } from "../core/errors.ts";
import { formatLsn } from "../core/lsn.ts";
import type { RunOptions, Sink, SlotFigures, Source, SourceFigures } from "../core/source.ts";
import type { SlotConfig } from "../config/config.ts";
import type { Logger } from "../log.ts";
import { PauseReason } from "../postgres/connection.ts";
import type { ConnectionParams } from "../postgres/connection_uri.ts";
import { ReadPacer } from "../postgres/read_pacer.ts";
import { ReplicationSession } from "../postgres/replication.ts";
import { SlotMonitor, type SlotReading, timeUntilLostMs } from "./slot_monitor.ts";
import { StandbyStatusSender } from "./standby_status.ts";
import { WalReader } from "./wal_reader.ts";

export interface WalSourceOptions {
  readonly params: ConnectionParams;
  readonly slot: SlotConfig;
  /** Whether a slot that is created is synchronised to standbys. */
  readonly failover: boolean;
  /** Read from a slot that ends with the connection; default false. What happens between two connections is then lost. */
  readonly temporary?: boolean;
  /** Whether transactions tell when they were committed, as far as wal2json does (`include-timestamp`); default false. */
  readonly commitTimes?: boolean;
  readonly sink: Sink;
  readonly log: Logger;
}

/** How long the server may take to answer the end of the copy, in milliseconds. */
const END_OF_COPY_PATIENCE_MS = 1_000;
/** Creating a slot waits for running transactions; after this long the log says so. */
const SLOT_PATIENCE_MS = 5_000;
/** What was read of the slot longer ago tells nothing of it any more: it is read every 10 s. */
const READING_VALID_MS = 60_000;
/** How long a server that shuts down waits for acknowledgements before it is let go. */
const LET_GO_MS = 300;

export class WalSource implements Source {
  readonly #options: WalSourceOptions;
  readonly #log: Logger;
  /** Whether the slot has been seen in this process: one that then is missing was dropped, and changes are lost. */
  #slotSeen = false;
  #everStarted = false;
  /** Tables and texts that a warning was logged for. */
  readonly #noticed = new Set<string>();
  #reading: SlotReading | undefined;
  #readingBefore: SlotReading | undefined;
  #heardAtMs: number | undefined;
  /** Of the present connection. */
  #status: StandbyStatusSender | undefined;

  constructor(options: WalSourceOptions) {
    this.#options = options;
    this.#log = options.log;
  }

  /** What the server last said of the slot; undefined before the first look. */
  get slotReading(): SlotReading | undefined {
    return this.#reading;
  }

  get name(): string {
    return `wal ${this.#options.slot.name}`;
  }

  get figures(): SourceFigures {
    return { heardAtMs: this.#status?.lastReceivedMs ?? this.#heardAtMs, droppedEvents: 0, slot: this.#slotFigures };
  }

  get #slotFigures(): SlotFigures | undefined {
    if (this.#reading === undefined || Date.now() - this.#reading.atMs > READING_VALID_MS) return undefined;
    const { retainedBytes, lagBytes, safeBytes, walStatus } = this.#reading;
    const lostInMs = timeUntilLostMs(this.#readingBefore, this.#reading);
    return { name: this.#options.slot.name, retainedBytes, lagBytes, safeBytes, lostInMs, walStatus };
  }

  silence(nowMs: number): string | undefined {
    return this.#status?.silence(nowMs);
  }

  async run(options: RunOptions): Promise<void> {
    const session = await ReplicationSession.open(this.#options.params, options.stopping);
    try {
      this.#warnOfEncoding(session);
      await this.#stream(session, options);
    } finally {
      session.connection.terminate();
    }
  }

  async #stream(session: ReplicationSession, options: RunOptions): Promise<void> {
    const confirmedLsn = await this.#prepareSlot(session, options.stopping);
    const faults = Promise.withResolvers<Error>();
    const tracker = new AckTracker(confirmedLsn, () => status.confirmedMoved());
    const reader = new WalReader({
      sink: this.#options.sink,
      tracker,
      transactionRecords: wantsTransactionRecords(this.#options.slot),
      commitTimes: this.#options.commitTimes === true,
      onKeepalive: (walEnd, replyRequested) => {
        tracker.keepalive(walEnd);
        if (replyRequested) status.sendNow();
      },
      onFault: (reason) =>
        faults.resolve(new TransientError(`the replication stream from ${session.where} is out of order: ${reason}`)),
    });
    const status = new StandbyStatusSender(session, tracker, reader, (error) => faults.resolve(error));
    this.#readWithinBounds(session, reader, status);
    session.connection.onNotice = (notice) => this.#onNotice(notice.M ?? "");
    await session.start(this.#options.slot.name, streamOptions(this.#options.slot), (buffer, start, end) => {
      reader.receive(buffer, start, end);
    });
    status.start();
    this.#status = status;
    const ended = new AbortController();
    const monitor = this.#monitor(session, tracker, (error) => faults.resolve(error)).run(ended.signal);
    this.#everStarted = true;
    this.#log.debug("streaming the WAL from {where} after {lsn}", {
      where: session.where,
      lsn: formatLsn(confirmedLsn),
    });
    options.onOpen();
    try {
      const fault = await unlessAborted(Promise.race([session.connection.lost, faults.promise]), options.stopping);
      if (fault !== undefined) throw fault;
      await this.#finish(session, reader, tracker, status, options.deadline);
    } finally {
      status.stop();
      this.#heardAtMs = status.lastReceivedMs;
      this.#status = undefined;
      ended.abort();
      await monitor;
    }
  }

  /**
   * A server that shuts down waits for its walsenders until they have sent everything and we have confirmed it. Where
   * an upstream does not acknowledge, that would be for ever: the connection is then let go (design, section 4, rule 8).
   */
  #monitor(session: ReplicationSession, tracker: AckTracker, giveUp: (error: Error) => void): SlotMonitor {
    let shutdownSinceMs: number | undefined;
    return new SlotMonitor({
      params: { ...this.#options.params, hosts: [session.connection.host], targetSessionAttrs: "any" },
      slot: this.#options.slot.name,
      log: this.#log,
      onReading: (reading) => {
        this.#readingBefore = this.#reading;
        this.#reading = reading;
      },
      // While nothing is read, the end of the stream does not show on every runtime's socket.
      onInactive: (seen) =>
        giveUp(
          new TransientError(
            `the replication stream from ${session.where} has ended: slot "${this.#options.slot.name}" ${seen}`,
          ),
        ),
      onShutdown: () => {
        shutdownSinceMs ??= Date.now();
        if (tracker.idle || Date.now() - shutdownSinceMs < LET_GO_MS) return;
        giveUp(
          new TransientError(
            `PostgreSQL at ${session.where} shuts down; it is let go with ${tracker.pending} transactions not acknowledged`,
          ),
        );
      },
    });
  }

  #warnOfEncoding(session: ReplicationSession): void {
    if (session.settings.encoding !== "SQL_ASCII" || this.#slotSeen) return;
    this.#log.warn(
      "the encoding of the database is SQL_ASCII, which does not say what bytes above 127 mean: row changes are valid JSON " +
        "only as far as the applications write UTF-8; better is a database of encoding UTF8",
    );
  }

  /** Logs a wal2json warning once for each table, since it comes once for each row. */
  #onNotice(text: string): void {
    const table = /^no tuple identifier for (\w+) in table (".*")$/.exec(text);
    const key = table?.[2] ?? text;
    if (this.#noticed.has(key)) return;
    this.#noticed.add(key);
    if (table === null) {
      this.#log.warn("notice from PostgreSQL while reading the WAL: {text}", { text });
      return;
    }
    this.#log.warn(
      "{table} has no replica identity: its updates and deletes are not delivered; give it a primary key, or run: ALTER " +
        "TABLE {table} REPLICA IDENTITY FULL",
      { table: table[2] },
    );
  }

  /** Stops reading the socket while a lane holds more than its bound: the server then stops decoding. */
  #readWithinBounds(session: ReplicationSession, reader: WalReader, status: StandbyStatusSender): void {
    const { sink } = this.#options;
    session.connection.onChunkStart = () => {
      const nowMs = Date.now();
      reader.startChunk(nowMs);
      status.received(nowMs);
    };
    const pacer = new ReadPacer(session.connection);
    session.connection.onChunkEnd = (bytes) => {
      pacer.afterChunk(bytes);
      if (!sink.congested) return;
      session.connection.pause(PauseReason.Congestion);
      status.paused = true;
      sink.onRelief(() => {
        status.received(Date.now());
        status.paused = false;
        session.connection.resume(PauseReason.Congestion);
      });
    };
  }

  /** Reads to the end of the transaction, waits for the acknowledgements, confirms, and says goodbye. */
  async #finish(
    session: ReplicationSession,
    reader: WalReader,
    tracker: AckTracker,
    status: StandbyStatusSender,
    deadline: AbortSignal,
  ): Promise<void> {
    const lost = session.connection.lost;
    await Promise.race([reader.stop(), lost, aborted(deadline)]);
    await Promise.race([tracker.whenIdle(), lost, aborted(deadline)]);
    // Of a temporary slot there is no next start.
    if (!tracker.idle && !this.#options.temporary) {
      this.#log.warn(
        "stopping with {transactions} transactions not acknowledged; they are sent again at the next start",
        {
          transactions: tracker.pending,
        },
      );
    }
    status.sendNow();
    await session.end(END_OF_COPY_PATIENCE_MS);
    this.#log.debug("confirmed {lsn} at the end", { lsn: formatLsn(tracker.confirmedLsn) });
  }

  /** Looks at the slot before it is used, and creates it if it is missing. Returns its confirmed flush. */
  async #prepareSlot(session: ReplicationSession, signal: AbortSignal) {
    const { name } = this.#options.slot;
    let slot = await session.findSlot(name);
    if (slot === undefined) {
      if (this.#slotSeen && !this.#options.temporary) throw this.#slotVanished(session);
      await this.#createSlot(session, signal);
      slot = await session.findSlot(name);
    }
    if (slot === undefined) throw new TransientError(`replication slot "${name}" at ${session.where} is not there`);
    this.#slotSeen = true;
    // Nobody but us knows the name of a temporary one, which is ours from the beginning.
    if (!this.#options.temporary) session.checkSlot(name, slot);
    return slot.confirmedFlushLsn;
  }

  async #createSlot(session: ReplicationSession, signal: AbortSignal): Promise<void> {
    const { slot: { name }, failover, temporary } = this.#options;
    const timer = setTimeout(() =>
      this.#log.warn(
        'creating replication slot "{slot}" waits for transactions that are running on the server to end (select pid, ' +
          "xact_start, query from pg_stat_activity where xact_start is not null)",
        { slot: name },
      ), SLOT_PATIENCE_MS);
    const onAbort = () => session.connection.destroy();
    signal.addEventListener("abort", onAbort);
    try {
      await (temporary ? session.createTemporarySlot(name) : session.createSlot(name, failover));
    } finally {
      clearTimeout(timer);
      signal.removeEventListener("abort", onAbort);
    }
    if (temporary) return;
    this.#log.info('created replication slot "{slot}" at {where}: changes from now on are delivered', {
      slot: name,
      where: session.where,
    });
  }

  #slotVanished(session: ReplicationSession): PermanentError {
    const { name } = this.#options.slot;
    const since = this.#everStarted ? " since this program used it last" : "";
    return new PermanentError(
      `replication slot "${name}" at ${session.where} was dropped${since}: the changes in between are lost to it; start ` +
        "this program again to create it anew and go on from then",
    );
  }
}

/** `include-transaction` is always on: without COMMIT there is nothing to confirm (design, section 4, rule 2). */
export function streamOptions(slot: SlotConfig): ReadonlyArray<readonly [string, string]> {
  return [
    ...slot.wal2jsonParams.filter(([name]) => name !== "include-transaction"),
    ["include-transaction", "1"],
  ];
}

function wantsTransactionRecords(slot: SlotConfig): boolean {
  return isOn(slot, "include-transaction", true);
}

/** Whether records tell when their transaction was committed. */
export function wantsTimestamps(slot: SlotConfig): boolean {
  return isOn(slot, "include-timestamp", false);
}

function isOn(slot: SlotConfig, parameter: string, byDefault: boolean): boolean {
  const given = slot.wal2jsonParams.find(([name]) => name === parameter);
  return given === undefined ? byDefault : !/^(0|f|false|off|no|n)$/i.test(given[1].trim());
}
