/** Tells of an upstream that is connected, takes what it is given and acknowledges nothing. */

import type { Logger } from "../log.ts";
import { OutageLog } from "./outage_log.ts";

const INTERVAL_MS = 5_000;
const STALLED_AFTER_MS = 30_000;

export interface Progress {
  /** Deliveries sent and not answered. */
  readonly inFlight: number;
  /** Deliveries answered since the start. */
  readonly answered: number;
}

/** Looks now and then; an upstream that made no progress with something in flight for 30 s is stalled. */
export class StallWatch {
  readonly #outage: OutageLog;
  readonly #progress: () => Progress;
  #timer: ReturnType<typeof setInterval> | undefined;
  #answered = 0;
  #movedAtMs = 0;

  constructor(log: Logger, upstream: string, progress: () => Progress) {
    this.#outage = new OutageLog(log, `acknowledgement by ${upstream}`);
    this.#progress = progress;
  }

  get stalled(): boolean {
    return this.#outage.ongoing;
  }

  get reason(): string | undefined {
    return this.#outage.reason;
  }

  start(): void {
    this.#movedAtMs = Date.now();
    this.#timer = setInterval(() => this.#look(), INTERVAL_MS);
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  #look(): void {
    const { inFlight, answered } = this.#progress();
    const nowMs = Date.now();
    if (inFlight === 0 || answered !== this.#answered) {
      this.#answered = answered;
      this.#movedAtMs = nowMs;
      this.#outage.recovered();
    } else if (nowMs - this.#movedAtMs >= STALLED_AFTER_MS) {
      const seconds = Math.round((nowMs - this.#movedAtMs) / 1000);
      this.#outage.failed(`none of ${inFlight} events in flight was acknowledged for ${seconds} s, though connected`);
    }
  }
}
