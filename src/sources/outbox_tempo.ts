/** Whether to be woken for each message, or to look by oneself because they come so fast. */

/** So many arrivals are remembered. */
const ARRIVALS = 10;
/** That many within this time, and one looks by oneself … */
const BUSY_WITHIN_MS = 100;
/** … until they take longer than this. */
const CALM_BEYOND_MS = 200;

/**
 * A sender that wakes the proxy commits alone (see `send_message` in events.sql). Below 100 arrivals a second that costs
 * the senders nothing; above, looking every few milliseconds takes no more queries than being woken for each.
 */
export class Tempo {
  #times: number[] = [];
  #busy = false;

  /** A look has found `rows` new ones. */
  found(rows: number, nowMs: number): void {
    for (let i = 0; i < Math.min(rows, ARRIVALS); i++) this.#times.push(nowMs);
    this.#times = this.#times.slice(-ARRIVALS);
  }

  busy(nowMs: number): boolean {
    const oldestMs = this.#times.length < ARRIVALS ? -Infinity : this.#times[0]!;
    this.#busy = nowMs - oldestMs < (this.#busy ? CALM_BEYOND_MS : BUSY_WITHIN_MS);
    return this.#busy;
  }
}
