/** Tells the server what is confirmed: on a timer, when it asks, and when the confirmed LSN moved. Design, section 4, rule 5. */

import type { AckTracker } from "../core/ack_tracker.ts";
import { TransientError } from "../core/errors.ts";
import type { ReplicationSession } from "../postgres/replication.ts";
import type { WalReader } from "./wal_reader.ts";

const INTERVAL_MS = 10_000;
/** At most this often after a move of the confirmed LSN. */
const AFTER_MOVE_MS = 100;
/** How long an answer may take, in milliseconds; where the server gives up on us soon, a twelfth of that. */
const ANSWER_MS = 5_000;
/** Where the server never gives up on us, we give up on it after this long: its default. */
const STANDARD_TIMEOUT_MS = 60_000;

export class StandbyStatusSender {
  readonly #session: ReplicationSession;
  readonly #tracker: AckTracker;
  readonly #reader: WalReader;
  readonly #onSilence: (error: Error) => void;
  readonly #timeoutMs: number;
  #interval: ReturnType<typeof setInterval> | undefined;
  #moveTimer: ReturnType<typeof setTimeout> | undefined;
  #lastSentMs = 0;
  #lastReceivedMs = Date.now();
  /** When the server was asked for an answer that has not come. */
  #askedAtMs: number | undefined;
  #running = false;
  /** While we do not read, the server's silence means nothing. */
  paused = false;

  constructor(
    session: ReplicationSession,
    tracker: AckTracker,
    reader: WalReader,
    onSilence: (error: Error) => void,
  ) {
    this.#session = session;
    this.#tracker = tracker;
    this.#reader = reader;
    this.#onSilence = onSilence;
    this.#timeoutMs = session.settings.walSenderTimeoutMs || STANDARD_TIMEOUT_MS;
  }

  start(): void {
    this.#running = true;
    this.#lastReceivedMs = Date.now();
    this.#interval = setInterval(() => this.#tick(), this.#intervalMs);
    this.confirmedMoved();
  }

  get #intervalMs(): number {
    return Math.min(INTERVAL_MS, this.#timeoutMs / 4);
  }

  stop(): void {
    this.#running = false;
    clearInterval(this.#interval);
    clearTimeout(this.#moveTimer);
  }

  received(nowMs: number): void {
    this.#lastReceivedMs = nowMs;
    this.#askedAtMs = undefined;
  }

  get lastReceivedMs(): number {
    return this.#lastReceivedMs;
  }

  silence(nowMs: number): string | undefined {
    if (this.paused || this.#askedAtMs === undefined) return undefined;
    if (nowMs - this.#askedAtMs < Math.min(ANSWER_MS, this.#timeoutMs / 12)) return undefined;
    return `PostgreSQL at ${this.#session.where} is silent for ${
      Math.round((nowMs - this.#lastReceivedMs) / 1000)
    } s ` +
      "and does not answer";
  }

  /** The confirmed LSN has moved: the server learns of it within AFTER_MOVE_MS. */
  confirmedMoved(): void {
    if (!this.#running || this.#moveTimer !== undefined) return;
    const waitMs = Math.max(0, this.#lastSentMs + AFTER_MOVE_MS - Date.now());
    this.#moveTimer = setTimeout(() => this.sendNow(), waitMs);
  }

  sendNow(replyRequested = false): void {
    clearTimeout(this.#moveTimer);
    this.#moveTimer = undefined;
    if (!this.#running) return;
    this.#lastSentMs = Date.now();
    const confirmed = this.#tracker.confirmedLsn;
    const received = this.#reader.receivedLsn;
    this.#session.sendStatus({
      writtenLsn: received > confirmed ? received : confirmed,
      flushedLsn: confirmed,
      appliedLsn: confirmed,
      replyRequested,
    });
  }

  /**
   * An idle server sends nothing as long as it hears from us, so that we must ask it to find a dead connection; soon, since
   * health is told from it.
   */
  #tick(): void {
    const silenceMs = this.paused ? 0 : Date.now() - this.#lastReceivedMs;
    if (silenceMs > this.#timeoutMs) {
      this.#onSilence(
        new TransientError(
          `the replication connection to ${this.#session.where} is silent for ${Math.round(silenceMs / 1000)} s ` +
            "(wal_sender_timeout): it is given up",
        ),
      );
      return;
    }
    // Timers may be a little early.
    const asks = silenceMs > this.#intervalMs * 0.9;
    if (asks) this.#askedAtMs ??= Date.now();
    this.sendNow(asks);
  }
}
