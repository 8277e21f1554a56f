/** Draining the outbox over one connection: look, hand out, delete what is acknowledged, sleep. */

import type { Event } from "../core/event.ts";
import { OperatorError, TransientError } from "../core/errors.ts";
import { parseNotification } from "../core/notification.ts";
import type { RunOptions, Sink } from "../core/source.ts";
import type { Logger } from "../log.ts";
import type { SqlSession } from "../postgres/sql_session.ts";
import type { InFlightRows } from "./outbox_in_flight.ts";
import { OutboxPosition } from "./outbox_snapshot.ts";
import type { Layout, OutboxPage, OutboxRow, OutboxTable } from "./outbox_table.ts";
import { Tempo } from "./outbox_tempo.ts";
import { Pause } from "./pause.ts";

/** How often the table is looked at though nobody has called. */
const SLOW_MS = 30_000;
/** How often it is looked at while messages come fast. */
const BUSY_MS = 5;
/** Between attempts to go to sleep, and to get the channels that another session drains. */
const SLEEP_RETRY_MS = 50;
const CLAIM_RETRY_MS = 1_000;
/** Pauses between looks for transactions that may have sent without calling: the first and the longest. */
const STRAGGLER_FIRST_MS = 10;
const STRAGGLER_LONGEST_MS = 1_000;
/** An acknowledged row waits this long for others to be deleted with it. */
const DELETE_AFTER_MS = 100;
/** Rows handed out and not deleted, however small: what they cost beside their bytes. */
const MAX_ROWS_IN_FLIGHT = 10_000;
/** A statement that is not answered in this time: the connection is given up. Counting may read a large table. */
const PATIENCE_MS = 20_000;
const COUNT_PATIENCE_MS = 300_000;
/** A statement that takes longer makes the connection not ready. */
const EXPECTED_MS = 5_000;

/** SQLSTATEs of a table that is gone or altered: undefined_table, undefined_column, invalid_schema_name. */
const LAYOUT_CODES = new Set(["42P01", "42703", "3F000"]);

/** Counts since the start. */
export interface OutboxCounts {
  /** Messages handed to the lanes. */
  received: number;
  /** Messages deleted, since every upstream had acknowledged them. */
  deleted: number;
}

export interface OutboxDrainOptions {
  readonly session: SqlSession;
  readonly table: OutboxTable;
  readonly layout: Layout;
  /** All channels with a binding. */
  readonly channels: readonly string[];
  /** Those of them that this session has the lock of. */
  readonly claimed: readonly string[];
  readonly sink: Sink;
  readonly inFlight: InFlightRows;
  readonly counts: OutboxCounts;
  readonly log: Logger;
  /** Begins error texts. */
  readonly action: string;
  /** Rows of channels without a binding were passed over. */
  onOtherChannel(channel: string): Promise<void>;
}

/** `stopped`: everything is done. `changed`: the table is not what it was and has to be looked at anew. */
export type DrainResult = "stopped" | "changed";

/**
 * States between looks: *awake* (senders need not call; the next look is due at once, or in 5 ms while messages come
 * fast), *asleep* (senders call). Going to sleep is in three steps, so that no message is missed: take the lock that makes
 * senders call; look once more; and look again until the transactions that were running at that look have ended, since
 * they may have sent before the lock was taken.
 */
export class OutboxDrain {
  readonly #options: OutboxDrainOptions;
  readonly #position = new OutboxPosition();
  readonly #tempo = new Tempo();
  readonly #pause = new Pause();
  #claimed: string[];
  #nextClaimMs = 0;
  /** Of the last page: those not handed out yet. */
  #rows: OutboxRow[] = [];
  #awaitsRelief = false;
  #nextLookMs = 0;
  #called = false;
  #asleep = false;
  #stragglers: readonly string[] | undefined;
  #stragglerMs = STRAGGLER_FIRST_MS;
  #acknowledgedSinceMs: number | undefined;
  #lost = false;
  /** When the statement was sent that is not answered; not where it may take long. */
  #askedAtMs: number | undefined;
  /** When the last answer came. */
  answeredAtMs: number | undefined;
  /** Ends the wait for the present answer. */
  #giveUp: () => void = () => {};

  constructor(options: OutboxDrainOptions) {
    this.#options = options;
    this.#claimed = [...options.claimed];
  }

  /** A sender calls. */
  call(): void {
    this.#called = true;
    this.#nextLookMs = 0;
    this.#pause.end();
  }

  silence(nowMs: number): string | undefined {
    if (this.#askedAtMs === undefined || nowMs - this.#askedAtMs < EXPECTED_MS) return undefined;
    const seconds = Math.round((nowMs - this.#askedAtMs) / 1000);
    return `PostgreSQL at ${this.#options.session.where} has not answered for ${seconds} s`;
  }

  /** Until `stopping`. Throws when the connection is lost. */
  async run({ stopping, deadline }: Pick<RunOptions, "stopping" | "deadline">): Promise<DrainResult> {
    const { inFlight, session } = this.#options;
    inFlight.onAcknowledged = () => this.#pause.end();
    void session.closed.then(() => {
      this.#lost = true;
      this.#giveUp();
      this.#pause.end();
    });
    const onStop = () => this.#pause.end();
    const onDeadline = () => {
      this.#giveUp();
      this.#pause.end();
    };
    stopping.addEventListener("abort", onStop);
    deadline.addEventListener("abort", onDeadline);
    try {
      while (!stopping.aborted) {
        if (await this.#step() === "changed") return "changed";
      }
      await this.#finish(deadline);
      return "stopped";
    } catch (error) {
      if (deadline.aborted) {
        this.#tellUnfinished();
        return "stopped";
      }
      if (isLayoutError(error)) return "changed";
      throw error instanceof OperatorError ? error : session.explain(error, this.#options.action);
    } finally {
      stopping.removeEventListener("abort", onStop);
      deadline.removeEventListener("abort", onDeadline);
      inFlight.onAcknowledged = () => {};
    }
  }

  async #step(): Promise<DrainResult | undefined> {
    const nowMs = performance.now();
    if (this.#lost) throw this.#connectionLost();
    if (this.#deleteInMs(nowMs) <= 0) {
      await this.#delete();
    } else if (!this.#hasRoom()) {
      await this.#getUp();
      await this.#pause.for(this.#deleteInMs(nowMs));
    } else if (this.#rows.length > 0) {
      this.#handOut();
    } else if (this.#claimed.length < this.#options.channels.length && nowMs >= this.#nextClaimMs) {
      await this.#claimMore(nowMs);
    } else if (nowMs >= this.#nextLookMs) {
      return await this.#look();
    } else {
      const claimInMs = this.#claimed.length < this.#options.channels.length ? this.#nextClaimMs - nowMs : Infinity;
      await this.#pause.for(Math.min(this.#nextLookMs - nowMs, this.#deleteInMs(nowMs), claimInMs));
    }
    return undefined;
  }

  #connectionLost(): TransientError {
    return new TransientError(`the connection to PostgreSQL at ${this.#options.session.where} was lost`);
  }

  #hasRoom(): boolean {
    const { sink, inFlight } = this.#options;
    if (inFlight.size >= MAX_ROWS_IN_FLIGHT) return false;
    if (!sink.congested) return true;
    if (!this.#awaitsRelief) {
      this.#awaitsRelief = true;
      sink.onRelief(() => {
        this.#awaitsRelief = false;
        this.#pause.end();
      });
    }
    return false;
  }

  #handOut(): void {
    let taken = 0;
    while (taken < this.#rows.length && this.#hasRoom()) this.#emit(this.#rows[taken++]!);
    this.#rows = this.#rows.slice(taken);
  }

  #emit({ id, channel, routingKey, message }: OutboxRow): void {
    // With a bar before it a message is never taken for JSON as a whole, so that an empty key is not looked for in it.
    const parsed = parseNotification(routingKey === null ? message : `|${message}`);
    const event: Event = {
      id,
      type: "notify",
      channel,
      routingKey: routingKey ?? parsed.routingKey,
      payload: Buffer.from(parsed.message),
      json: parsed.json,
      receivedAtMs: Date.now(),
    };
    const { sink, inFlight, counts } = this.#options;
    const completion = inFlight.add(id);
    counts.received++;
    // Held here too, so that a lane that answers at once does not complete it before the next has taken it. What no lane
    // has taken is not delivered, and must not be deleted.
    completion.retain();
    if (sink.emit(event, completion) > 0) completion.release();
  }

  async #look(): Promise<DrainResult | undefined> {
    const { table, layout, inFlight } = this.#options;
    this.#called = false;
    const page = await this.#answered(table.page(this.#claimed, this.#position.request()));
    if (page.fingerprint !== layout.fingerprint) return "changed";
    this.#position.advance(page);
    this.#rows = page.rows.filter(({ id }) => !inFlight.has(id));
    // The older helper's table does not tell late rows: every look begins at its lowest id.
    if (!layout.current && !page.cut) this.#position.restart();
    await this.#planNextLook(page);
    for (const channel of page.otherChannels) {
      if (this.#options.channels.includes(channel)) continue;
      await this.#answered(this.#options.onOtherChannel(channel), COUNT_PATIENCE_MS);
    }
    return undefined;
  }

  async #planNextLook(page: OutboxPage): Promise<void> {
    const nowMs = performance.now();
    this.#tempo.found(this.#rows.length, nowMs);
    if (page.cut || this.#tempo.busy(nowMs)) {
      await this.#getUp();
      this.#nextLookMs = page.cut ? 0 : nowMs + BUSY_MS;
    } else if (!this.#asleep) {
      this.#asleep = await this.#answered(this.#options.table.lieDown(this.#claimed));
      this.#stragglers = undefined;
      this.#nextLookMs = this.#asleep ? 0 : nowMs + SLEEP_RETRY_MS;
    } else {
      const { inProgress } = page.snapshot;
      if (this.#stragglers === undefined) this.#stragglerMs = STRAGGLER_FIRST_MS;
      this.#stragglers = (this.#stragglers ?? [...inProgress]).filter((xid) => inProgress.has(xid));
      this.#nextLookMs = nowMs + (this.#stragglers.length === 0 ? SLOW_MS : this.#stragglerMs);
      this.#stragglerMs = Math.min(this.#stragglerMs * 2, STRAGGLER_LONGEST_MS);
    }
    if (this.#called) this.#nextLookMs = 0;
  }

  async #getUp(): Promise<void> {
    if (!this.#asleep) return;
    this.#asleep = false;
    await this.#answered(this.#options.table.getUp(this.#claimed));
  }

  /** Channels that another session drained till now may be free: their rows may have any id. */
  async #claimMore(nowMs: number): Promise<void> {
    this.#nextClaimMs = nowMs + CLAIM_RETRY_MS;
    const missing = this.#options.channels.filter((channel) => !this.#claimed.includes(channel));
    const claimed = await this.#answered(this.#options.table.claim(missing));
    if (claimed.length === 0) return;
    await this.#getUp();
    this.#claimed = [...this.#claimed, ...claimed];
    this.#options.log.info("drains durable messages of {channels} too: the other session has let go of them", {
      channels: claimed.join(", "),
    });
    this.#position.restart();
    this.#nextLookMs = 0;
  }

  /** Milliseconds until acknowledged rows are to be deleted; Infinity where there are none. */
  #deleteInMs(nowMs: number): number {
    const { inFlight } = this.#options;
    if (inFlight.deletable === 0) {
      this.#acknowledgedSinceMs = undefined;
      return Infinity;
    }
    this.#acknowledgedSinceMs ??= nowMs;
    if (inFlight.deletable >= inFlight.batchRows) return 0;
    return this.#acknowledgedSinceMs + DELETE_AFTER_MS - nowMs;
  }

  async #delete(): Promise<void> {
    const { inFlight, table, counts } = this.#options;
    const batch = inFlight.batch();
    await this.#answered(table.delete(batch));
    inFlight.deleted(batch);
    counts.deleted += batch.length;
    this.#acknowledgedSinceMs = undefined;
  }

  /** Hands out no more, waits for the acknowledgements of what was, and deletes it. */
  async #finish(deadline: AbortSignal): Promise<void> {
    const { inFlight } = this.#options;
    this.#rows = [];
    for (;;) {
      while (inFlight.deletable > 0 && !this.#lost) await this.#delete();
      if (inFlight.unacknowledged === 0 || this.#lost || deadline.aborted) break;
      await this.#pause.for(SLOW_MS);
    }
    this.#tellUnfinished();
  }

  #tellUnfinished(): void {
    const { inFlight, log } = this.#options;
    if (inFlight.size === 0) return;
    log.warn("stopping with {messages} durable messages not acknowledged; they are sent again at the next start", {
      messages: inFlight.size,
    });
  }

  /** The answer, unless the connection is lost or silent, or time to stop is up. One at a time. */
  async #answered<T>(query: Promise<T>, patienceMs = PATIENCE_MS): Promise<T> {
    const patience = Promise.withResolvers<undefined>();
    this.#giveUp = () => patience.resolve(undefined);
    if (this.#lost) this.#giveUp();
    if (patienceMs === PATIENCE_MS) this.#askedAtMs = Date.now();
    const timer = setTimeout(this.#giveUp, patienceMs);
    try {
      const answer = await Promise.race([query.then((value) => ({ value })), patience.promise]);
      if (answer !== undefined) {
        this.answeredAtMs = Date.now();
        return answer.value;
      }
    } finally {
      clearTimeout(timer);
      this.#askedAtMs = undefined;
      this.#giveUp = () => {};
    }
    query.catch(() => {});
    if (this.#lost) throw this.#connectionLost();
    throw new TransientError(
      `PostgreSQL at ${this.#options.session.where} did not answer in ${
        patienceMs / 1000
      } s: the connection is given up`,
    );
  }
}

function isLayoutError(error: unknown): boolean {
  return error instanceof Error && LAYOUT_CODES.has(String((error as { code?: unknown }).code));
}
