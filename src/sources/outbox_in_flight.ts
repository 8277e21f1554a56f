/** The rows of the outbox that have been handed to the lanes and are not deleted yet. */

import type { Completion } from "../core/source.ts";

class Row implements Completion {
  readonly #rows: InFlightRows;
  readonly #id: string;
  #holders = 0;

  constructor(rows: InFlightRows, id: string) {
    this.#rows = rows;
    this.#id = id;
  }

  retain(): void {
    this.#holders++;
  }

  release(): void {
    if (--this.#holders === 0) this.#rows.acknowledged(this.#id);
  }
}

/**
 * Outlives the connection: a row that a lane still holds when the connection is lost is not handed to it a second time.
 */
export class InFlightRows {
  readonly #ids = new Set<string>();
  #acknowledged: string[] = [];
  /** Called when there is something to delete, and when there are `batchRows` of it. */
  onAcknowledged: () => void = () => {};
  /** Rows deleted by one statement. */
  readonly batchRows: number;

  constructor(batchRows: number) {
    this.batchRows = batchRows;
  }

  has(id: string): boolean {
    return this.#ids.has(id);
  }

  /** Rows handed out and not deleted. */
  get size(): number {
    return this.#ids.size;
  }

  /** Rows that every upstream has acknowledged and that are not deleted. */
  get deletable(): number {
    return this.#acknowledged.length;
  }

  get unacknowledged(): number {
    return this.#ids.size - this.#acknowledged.length;
  }

  /** A row is about to be handed to the lanes; each that takes it retains the completion. */
  add(id: string): Completion {
    this.#ids.add(id);
    return new Row(this, id);
  }

  /** Called by a row's completion. */
  acknowledged(id: string): void {
    const count = this.#acknowledged.push(id);
    if (count === 1 || count % this.batchRows === 0 || this.unacknowledged === 0) this.onAcknowledged();
  }

  /** The next rows to delete, oldest acknowledgement first. */
  batch(): readonly string[] {
    return this.#acknowledged.slice(0, this.batchRows);
  }

  /** The rows of the last `batch` are gone. */
  deleted(batch: readonly string[]): void {
    for (const id of batch) this.#ids.delete(id);
    this.#acknowledged = this.#acknowledged.slice(batch.length);
  }
}
