/** The contract between a source of events and the bridge. */

import type { Event } from "./event.ts";

/** Counts the deliveries of an event; whoever made it learns when all of them are acknowledged. */
export interface Completion {
  /** A lane has taken the event. */
  retain(): void;
  /** A lane has got rid of it: acknowledged by its upstream, or dropped as configured. */
  release(): void;
  /** When the event's transaction was committed, by PostgreSQL's clock since the Unix epoch; where that is known. */
  readonly committedAtMs?: number | undefined;
}

/** What a source pours its events into. */
export interface Sink {
  /**
   * Hands the event to every lane bound to its channel; each calls `completion.retain` before this returns. Returns how
   * many lanes took it.
   */
  emit(event: Event, completion: Completion): number;
  /** Whether any binding names this channel. */
  accepts(channel: string): boolean;
  /** Whether a lane holds more than its memory bound: a source that can stop reading must. */
  readonly congested: boolean;
  /** Calls `resume` once, as soon as no lane is congested. */
  onRelief(resume: () => void): void;
}

/** What can be told of a source at any time. */
export interface SourceFigures {
  /** When the server was last heard; undefined before the first time. */
  readonly heardAtMs: number | undefined;
  /** Events given up since the start, because no memory was left for them. */
  readonly droppedEvents: number;
  /** Undefined where there is no slot, and where nothing was heard of it for a minute. */
  readonly slot: SlotFigures | undefined;
}

export interface SlotFigures {
  readonly name: string;
  /** WAL that the server keeps for the slot. */
  readonly retainedBytes: number;
  /** WAL not confirmed yet. */
  readonly lagBytes: number;
  /** WAL that may still be written before the slot is in danger; undefined without `max_slot_wal_keep_size`. */
  readonly safeBytes: number | undefined;
  /** Until that is used up, if WAL goes on being written as of late. */
  readonly lostInMs: number | undefined;
  /** `reserved`, `extended`, `unreserved` or `lost`. */
  readonly walStatus: string;
}

export interface RunOptions {
  /** Called once per connection, when events can flow. */
  onOpen(): void;
  /**
   * Aborted on shutdown: stop reading, wait for what was read to be acknowledged, tell PostgreSQL, end the connection
   * in the protocol's own way and return.
   */
  readonly stopping: AbortSignal;
  /** Aborted when waiting has to end: close and return at once. */
  readonly deadline: AbortSignal;
}

/** A stream of events out of PostgreSQL. */
export interface Source {
  /** For the log: `notify`, or `wal SLOT`. */
  readonly name: string;
  /**
   * Why the open connection is not to be relied on: the server owes an answer for longer than an answer takes. Undefined
   * while it answers.
   */
  silence(nowMs: number): string | undefined;
  readonly figures: SourceFigures;
  /**
   * The life of one connection. Returns after `stopping`; otherwise throws when the connection is lost or cannot be
   * made, and the supervisor calls it again after a pause. PermanentError: no retry mends it.
   */
  run(options: RunOptions): Promise<void>;
}
