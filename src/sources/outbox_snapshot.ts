/**
 * Which rows of the outbox have been seen. Ids come from a sequence, and a transaction may commit after another whose ids
 * are higher, so that the highest id seen does not tell; a snapshot does.
 */

/** What `txid_current_snapshot()` prints: `xmin:xmax:xip_list` (PostgreSQL documentation, "Transaction ID Functions"). */
export interface Snapshot {
  /** Transactions from this one on had not begun. */
  readonly xmax: string;
  /** Those below it that were running. */
  readonly inProgress: ReadonlySet<string>;
}

export function parseSnapshot(text: string): Snapshot {
  const match = /^\d+:(\d+):((?:\d+(?:,\d+)*)?)$/.exec(text);
  if (match === null) throw new Error(`"${text}" is not a snapshot (xmin:xmax:xip_list)`);
  const list = match[2]!;
  return { xmax: match[1]!, inProgress: new Set(list === "" ? [] : list.split(",")) };
}

/** The rows to look at next: those above `afterId`, and of those up to it the ones that the last look could not see. */
export interface PageRequest {
  readonly afterId: string;
  /** Of the late rows, only those above this id: the ones below were seen by the page before. */
  readonly lateAfterId: string;
  /** Late rows are of these transactions … */
  readonly xids: readonly string[];
  /** … or of this one and later ones. */
  readonly fromXid: string;
}

/** What a look has found, in the order of ids. */
export interface PageExtent {
  readonly snapshot: Snapshot;
  /** The highest id looked at; undefined where there was none. */
  readonly lastId: string | undefined;
  /** Whether rows above `lastId` were left for the next page. */
  readonly cut: boolean;
}

/** Below every id. */
const LOWEST_ID = String(-(2n ** 63n));

/**
 * The invariant: every row with an id up to `afterId` that is visible to the snapshot `#looked` has been seen. A row that
 * was not is of a transaction that was running then, or began later; looking for those finds it as soon as it is there.
 * A page in which late rows alone fill the limit is continued, and `#looked` moves only when the last of them was read, to
 * the snapshot of the first page of that series.
 */
export class OutboxPosition {
  #afterId = LOWEST_ID;
  #lateAfterId = LOWEST_ID;
  #looked: Snapshot | undefined;
  #series: Snapshot | undefined;

  request(): PageRequest {
    return {
      afterId: this.#afterId,
      lateAfterId: this.#lateAfterId,
      xids: [...this.#looked?.inProgress ?? []],
      fromXid: this.#looked?.xmax ?? "0",
    };
  }

  advance({ snapshot, lastId, cut }: PageExtent): void {
    const last = lastId === undefined ? undefined : BigInt(lastId);
    const endsAmongLate = last !== undefined && last <= BigInt(this.#afterId);
    if (cut && endsAmongLate) {
      this.#lateAfterId = lastId!;
      this.#series ??= snapshot;
      return;
    }
    if (last !== undefined && !endsAmongLate) this.#afterId = lastId!;
    this.#looked = this.#series ?? snapshot;
    this.#series = undefined;
    this.#lateAfterId = LOWEST_ID;
  }

  /** From the lowest id again. */
  restart(): void {
    this.#afterId = LOWEST_ID;
    this.#lateAfterId = LOWEST_ID;
    this.#looked = undefined;
    this.#series = undefined;
  }
}
