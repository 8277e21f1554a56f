/** Durable messages as a source of events: the rows of `events.events`, deleted when they are delivered. */

import { sleep } from "../core/backoff.ts";
import { errorText, PermanentError, StandingByError } from "../core/errors.ts";
import type { RunOptions, Sink, Source, SourceFigures } from "../core/source.ts";
import type { Logger } from "../log.ts";
import type { ConnectionParams } from "../postgres/connection_uri.ts";
import { openSqlSession, type SqlSession } from "../postgres/sql_session.ts";
import { type DrainResult, type OutboxCounts, OutboxDrain } from "./outbox_drain.ts";
import { InFlightRows } from "./outbox_in_flight.ts";
import { type Backend, inspect, type Layout, OutboxTable, prepareSession, WAKE_CHANNEL } from "./outbox_table.ts";

export interface OutboxSourceOptions {
  readonly params: ConnectionParams;
  /** All channels with a binding; asked for at each connection. */
  readonly channels: () => readonly string[];
  readonly sink: Sink;
  readonly log: Logger;
  /** How often a database without the table is looked at, in milliseconds; default 30,000. */
  readonly absentRetryMs?: number;
}

const ACTION = "draining durable messages";
/** How often a database without the table is looked at. No connection is kept meanwhile. */
const ABSENT_RETRY_MS = 30_000;
/** Before a table that was altered is looked at anew. */
const CHANGED_RETRY_MS = 200;
const DELETE_BATCH_ROWS = 1_000;
/** How long the server may take to answer before the first look. */
const BEGIN_PATIENCE_MS = 15_000;
/** How long a session that PostgreSQL was told to end may take to do so. */
const END_PATIENCE_MS = 3_000;
const END_POLL_MS = 100;

export class OutboxSource implements Source {
  readonly name = "outbox";
  readonly counts: OutboxCounts = { received: 0, deleted: 0 };
  readonly #options: OutboxSourceOptions;
  readonly #log: Logger;
  /** What the lanes hold; as long as it is the same table of the same server, a new connection goes on with it. */
  #inFlight = new InFlightRows(DELETE_BATCH_ROWS);
  #layout: Layout | undefined;
  /** Our last session with the table. */
  #backend: Backend | undefined;
  readonly #reportedChannels = new Set<string>();
  #absentReason: string | undefined;
  #toldOfOldHelper = false;
  /** Of the present connection. */
  #drain: OutboxDrain | undefined;
  #heardAtMs: number | undefined;

  constructor(options: OutboxSourceOptions) {
    this.#options = options;
    this.#log = options.log;
  }

  get figures(): SourceFigures {
    return { heardAtMs: this.#drain?.answeredAtMs ?? this.#heardAtMs, droppedEvents: 0, slot: undefined };
  }

  silence(nowMs: number): string | undefined {
    return this.#drain?.silence(nowMs);
  }

  async run(options: RunOptions): Promise<void> {
    while (!options.stopping.aborted) {
      const outcome = await this.#connect(options);
      if (outcome === "stopped") return;
      const absentRetryMs = this.#options.absentRetryMs ?? ABSENT_RETRY_MS;
      await sleep(outcome === "absent" ? absentRetryMs : CHANGED_RETRY_MS, options.stopping);
    }
  }

  async #connect(options: RunOptions): Promise<DrainResult | "absent"> {
    let drain: OutboxDrain | undefined;
    const wasAbsent = this.#absentReason !== undefined;
    try {
      const session = await openSqlSession(this.#options.params, {
        action: ACTION,
        onNotify: () => drain?.call(),
        onNotice: (message) => this.#log.debug("notice from PostgreSQL: {message}", { message }),
      }, options.stopping);
      try {
        drain = await this.#prepare(session, options.stopping);
        this.#heardAtMs = Date.now();
        this.#drain = drain;
        options.onOpen();
        return drain === undefined ? "absent" : await drain.run(options);
      } finally {
        this.#heardAtMs = drain?.answeredAtMs ?? this.#heardAtMs;
        this.#drain = undefined;
        await session.close();
      }
    } catch (error) {
      // As long as there is nothing to drain, a server that is away is not this source's to complain of.
      if (!wasAbsent || drain !== undefined || error instanceof PermanentError) throw error;
      this.#log.debug("looking for durable messages failed: {reason}", { reason: errorText(error) });
      return "absent";
    }
  }

  /** Undefined where there is nothing to drain. Ends the session if the server is silent, or when it is time to stop. */
  async #prepare(session: SqlSession, stopping: AbortSignal): Promise<OutboxDrain | undefined> {
    const giveUp = () => void session.close();
    const timer = setTimeout(giveUp, BEGIN_PATIENCE_MS);
    stopping.addEventListener("abort", giveUp);
    try {
      await prepareSession(session.sql);
      const layout = await this.#inspect(session);
      if (layout === undefined) return undefined;
      this.#keepOrForget(layout);
      await session.sql.unsafe(`LISTEN ${WAKE_CHANNEL}`);
      const table = await OutboxTable.open(session.sql, layout);
      return this.#makeDrain(session, table, layout, await this.#claim(session, table));
    } catch (error) {
      if (error instanceof StandingByError || error instanceof PermanentError) throw error;
      throw session.explain(error, ACTION);
    } finally {
      clearTimeout(timer);
      stopping.removeEventListener("abort", giveUp);
    }
  }

  #makeDrain(session: SqlSession, table: OutboxTable, layout: Layout, claimed: readonly string[]): OutboxDrain {
    const channels = this.#options.channels();
    this.#tellWhatIsMissing(layout, channels, claimed);
    return new OutboxDrain({
      session,
      table,
      layout,
      channels,
      claimed,
      sink: this.#options.sink,
      inFlight: this.#inFlight,
      counts: this.counts,
      log: this.#log,
      action: ACTION,
      onOtherChannel: (channel) => this.#reportOtherChannel(table, channel),
    });
  }

  /**
   * The channels that no other session drains. Of a connection that the network has lost, PostgreSQL learns late: our own
   * session of before would keep us out until then, and is ended.
   */
  async #claim(session: SqlSession, table: OutboxTable): Promise<readonly string[]> {
    const channels = this.#options.channels();
    const leftover = this.#backend !== undefined && await table.terminate(this.#backend);
    this.#backend = await table.backend();
    const deadlineMs = performance.now() + END_PATIENCE_MS;
    const claimed = await table.claim(channels);
    while (leftover && claimed.length < channels.length && performance.now() < deadlineMs) {
      await sleep(END_POLL_MS);
      claimed.push(...await table.claim(channels.filter((channel) => !claimed.includes(channel))));
    }
    if (claimed.length > 0) return claimed;
    throw new StandingByError(`another instance drains the durable messages of ${list(channels)} at ${session.where}`);
  }

  async #inspect(session: SqlSession): Promise<Layout | undefined> {
    const inspection = await inspect(session.sql);
    switch (inspection.kind) {
      case "present":
        this.#absentReason = undefined;
        return inspection.layout;
      case "absent":
        if (this.#absentReason !== inspection.reason) {
          this.#log.debug("no durable messages at {where}: {reason}; looks again every 30 s", {
            where: session.where,
            reason: inspection.reason,
          });
        }
        this.#absentReason = inspection.reason;
        return undefined;
      case "forbidden":
        throw new PermanentError(
          `${ACTION} at ${session.where}: this role may not read and delete in events.events; run as its owner, ` +
            `"${inspection.owner}": ${inspection.remedy}; or set outbox=false`,
        );
    }
  }

  /** Another table, or another server, may give the same ids to other messages: theirs must not pass for delivered. */
  #keepOrForget(layout: Layout): void {
    const before = this.#layout;
    this.#layout = layout;
    if (before === undefined) return;
    if (before.fingerprint === layout.fingerprint && before.timeline === layout.timeline) return;
    if (this.#inFlight.size > 0) {
      this.#log.warn("events.events was altered or is another server's: {messages} messages may be delivered twice", {
        messages: this.#inFlight.size,
      });
    }
    this.#inFlight = new InFlightRows(DELETE_BATCH_ROWS);
  }

  #tellWhatIsMissing(layout: Layout, channels: readonly string[], claimed: readonly string[]): void {
    if (claimed.length < channels.length) {
      this.#log.warn("another session drains the durable messages of {others}, and this one those of {claimed} only", {
        others: list(channels.filter((channel) => !claimed.includes(channel))),
        claimed: list(claimed),
      });
    }
    if (layout.current || this.#toldOfOldHelper) return;
    this.#toldOfOldHelper = true;
    this.#log.info(
      "events.events is the older helper's: it is looked at every 30 s; pg-event-proxy sql --install brings durable " +
        "messages at once, and keeps those that are stored",
    );
  }

  async #reportOtherChannel(table: OutboxTable, channel: string): Promise<void> {
    if (this.#reportedChannels.has(channel)) return;
    this.#reportedChannels.add(channel);
    this.#log.warn(
      'channel "{channel}" has no binding: its durable messages, {messages} now, stay in events.events; bind it in ' +
        "bridge_channels, or delete them",
      { messages: await table.count(channel), channel },
    );
  }
}

function list(channels: readonly string[]): string {
  return channels.map((channel) => `"${channel}"`).join(", ");
}
