/** Keeps one source running: starts it again, after a pause, whenever its connection is lost. */

import type { Logger } from "../log.ts";
import { Backoff, sleep, STABLE_MS } from "./backoff.ts";
import { errorText, PermanentError, StandingByError } from "./errors.ts";
import { OutageLog } from "./outage_log.ts";
import type { Source } from "./source.ts";
import type { SourceCondition } from "./status.ts";

/**
 * How often an instance that stands by looks whether the other is gone, in milliseconds; more often in the beginning, since
 * what holds us up is mostly our own session of before, which PostgreSQL is just clearing away.
 */
const STANDBY_POLL_MS = 1_000;
const FIRST_STANDBY_POLL_MS = 100;

/** States: *connecting*, *open*, *standing by* (another instance does the work), *ended*. */
export class SourceSupervisor {
  readonly #source: Source;
  readonly #log: Logger;
  readonly #outage: OutageLog;
  readonly #onChange: () => void;
  #open = false;
  #standingBySinceMs: number | undefined;
  #standingByReason: string | undefined;
  #connections = 0;

  constructor(source: Source, log: Logger, onChange: () => void) {
    this.#onChange = onChange;
    this.#source = source;
    this.#log = log;
    this.#outage = new OutageLog(log, `source ${source.name}`);
  }

  get open(): boolean {
    return this.#open;
  }

  get source(): Source {
    return this.#source;
  }

  /** Opened since the start. */
  get connections(): number {
    return this.#connections;
  }

  get condition(): SourceCondition {
    if (!this.#open && this.#standingByReason !== undefined) {
      return { state: "standing_by", reason: this.#standingByReason };
    }
    if (!this.#open) return { state: "connecting", reason: this.#outage.reason };
    const silence = this.#source.silence(Date.now());
    return silence === undefined ? { state: "open", reason: undefined } : { state: "silent", reason: silence };
  }

  /** Returns after `stopping`. Throws PermanentError for a fault at the first start that no retry mends. */
  async run(stopping: AbortSignal, deadline: AbortSignal): Promise<void> {
    const backoff = new Backoff();
    let everOpen = false;
    let standbyPollMs = FIRST_STANDBY_POLL_MS;
    while (!stopping.aborted) {
      let openedAtMs: number | undefined;
      try {
        await this.#source.run({
          stopping,
          deadline,
          onOpen: () => {
            everOpen = true;
            openedAtMs = Date.now();
            standbyPollMs = FIRST_STANDBY_POLL_MS;
            this.#opened();
          },
        });
        return;
      } catch (error) {
        this.#open = false;
        this.#onChange();
        if (stopping.aborted) return;
        if (error instanceof StandingByError) {
          this.#standBy(error);
          await sleep(standbyPollMs, stopping);
          standbyPollMs = Math.min(2 * standbyPollMs, STANDBY_POLL_MS);
          continue;
        }
        if (error instanceof PermanentError && !everOpen) throw error;
        this.#standingByReason = undefined;
        // A server that ends every session at once must not be called ten times a second.
        if (openedAtMs !== undefined && Date.now() - openedAtMs >= STABLE_MS) backoff.reset();
        this.#outage.failed(error);
      }
      await sleep(backoff.nextMs(), stopping);
    }
  }

  #opened(): void {
    // A source that only looks again whether there is something to read has lost nothing.
    if (!this.#open) this.#connections++;
    this.#open = true;
    this.#standingByReason = undefined;
    this.#outage.recovered();
    this.#onChange();
    if (this.#standingBySinceMs === undefined) return;
    this.#log.info("source {source} takes over after standing by for {seconds} s", {
      source: this.#source.name,
      seconds: Math.round((Date.now() - this.#standingBySinceMs) / 1000),
    });
    this.#standingBySinceMs = undefined;
  }

  #standBy(error: StandingByError): void {
    this.#standingByReason = errorText(error);
    if (this.#standingBySinceMs !== undefined) return;
    this.#standingBySinceMs = Date.now();
    this.#log.info("source {source} stands by: {reason}; it takes over when that ends", {
      source: this.#source.name,
      reason: this.#standingByReason,
    });
  }
}
