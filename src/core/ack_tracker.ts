/** Decides which LSN may be confirmed. Knows transactions and LSNs, and nothing else. */

import { type Lsn, NO_LSN } from "./lsn.ts";
import type { Completion } from "./source.ts";

/**
 * A transaction on its way: open until its commit record was read, then closed; done once closed with nothing
 * outstanding.
 */
export interface Transaction extends Completion {
  /** Deliveries of its events that no upstream has acknowledged yet. */
  readonly outstanding: number;
}

class TrackedTransaction implements Transaction {
  outstanding = 0;
  closed = false;
  endLsn: Lsn = NO_LSN;
  /** A keepalive's position instead of a transaction. */
  isMark = false;
  readonly committedAtMs: number | undefined;
  readonly #tracker: AckTracker;

  constructor(tracker: AckTracker, committedAtMs: number | undefined) {
    this.#tracker = tracker;
    this.committedAtMs = committedAtMs;
  }

  retain(): void {
    this.outstanding++;
  }

  release(): void {
    if (--this.outstanding === 0 && this.closed) this.#tracker.advance();
  }
}

/**
 * Transactions arrive in commit order and are acknowledged in any order; the confirmed LSN moves over a contiguous run
 * of done transactions only (design, section 4, rules 1, 3 and 4).
 */
export class AckTracker {
  readonly #onConfirmed: () => void;
  #transactions: TrackedTransaction[] = [];
  #head = 0;
  #confirmedLsn: Lsn;
  #idleListeners: (() => void)[] = [];

  /** `onConfirmed` is called whenever the confirmed LSN has moved. */
  constructor(confirmedLsn: Lsn, onConfirmed: () => void) {
    this.#confirmedLsn = confirmedLsn;
    this.#onConfirmed = onConfirmed;
  }

  /** Everything that ends before this LSN is acknowledged by every upstream. */
  get confirmedLsn(): Lsn {
    return this.#confirmedLsn;
  }

  /** Whether everything that was read is acknowledged, and no transaction is half read. */
  get idle(): boolean {
    return this.#head === this.#transactions.length;
  }

  /** The number of transactions read, in part or whole, and not yet done. */
  get pending(): number {
    return this.#transactions.length - this.#head;
  }

  /** Resolves as soon as `idle` holds. */
  whenIdle(): Promise<void> {
    this.advance();
    if (this.idle) return Promise.resolve();
    return new Promise((resolve) => this.#idleListeners.push(resolve));
  }

  /** `committedAtMs` is handed on to the transaction. */
  begin(committedAtMs?: number): Transaction {
    return this.#track(committedAtMs);
  }

  /** `endLsn` is the end of the commit record, exactly as received. */
  commit(transaction: Transaction, endLsn: Lsn): void {
    const tracked = transaction as TrackedTransaction;
    tracked.endLsn = endLsn;
    tracked.closed = true;
    if (tracked.outstanding > 0) return;
    const previous = this.#transactions.at(-2);
    if (tracked === this.#transactions.at(-1) && previous?.closed && this.#head < this.#transactions.length - 1) {
      // Nothing is left to wait for but what comes before it: during an outage, those that a filter empties would pile up.
      previous.endLsn = endLsn;
      this.#transactions.pop();
    }
    this.advance();
  }

  /**
   * For an event outside any transaction (a non-transactional logical message): it holds back what follows until it is
   * acknowledged, but has no commit, so no LSN of its own to confirm.
   */
  standalone(): Transaction {
    const transaction = this.#track();
    transaction.closed = true;
    return transaction;
  }

  /**
   * A keepalive told the server's position: every transaction that ends before it has been read. It is confirmed at once
   * when nothing is outstanding, otherwise as soon as all that was read before it is acknowledged. Inside a transaction
   * it is passed over.
   */
  keepalive(walEnd: Lsn): void {
    const last = this.#transactions.at(-1);
    if (this.idle || last === undefined) {
      this.#confirm(walEnd);
    } else if (last.closed) {
      const mark = last.isMark ? last : this.#track();
      mark.isMark = true;
      mark.closed = true;
      mark.endLsn = walEnd;
      if (last.outstanding === 0) this.advance();
    }
  }

  /** Called by a transaction that became done. */
  advance(): void {
    let confirmed = this.#confirmedLsn;
    while (this.#head < this.#transactions.length) {
      const transaction = this.#transactions[this.#head]!;
      if (!transaction.closed || transaction.outstanding > 0) break;
      if (transaction.endLsn > confirmed) confirmed = transaction.endLsn;
      this.#head++;
    }
    this.#forgetDone();
    this.#confirm(confirmed);
    if (this.idle && this.#idleListeners.length > 0) {
      for (const listener of this.#idleListeners.splice(0)) listener();
    }
  }

  #confirm(lsn: Lsn): void {
    if (lsn <= this.#confirmedLsn) return;
    this.#confirmedLsn = lsn;
    this.#onConfirmed();
  }

  #track(committedAtMs?: number): TrackedTransaction {
    const transaction = new TrackedTransaction(this, committedAtMs);
    this.#transactions.push(transaction);
    return transaction;
  }

  #forgetDone(): void {
    if (this.#head === this.#transactions.length) {
      this.#transactions = [];
      this.#head = 0;
    } else if (this.#head > 1024 && this.#head * 2 > this.#transactions.length) {
      this.#transactions = this.#transactions.slice(this.#head);
      this.#head = 0;
    }
  }
}
