/**
 * Keeps the log readable during an outage: the first failure, a line at most every 30 s, and the recovery. Where a
 * connection comes and goes, its outages after the fifth in ten minutes count as one.
 */

import type { Logger } from "../log.ts";
import { errorText, PermanentError } from "./errors.ts";

const REPEAT_MS = 30_000;
const FLAPPING_MS = 600_000;
const FLAPPING_OUTAGES = 5;

export class OutageLog {
  readonly #log: Logger;
  readonly #what: string;
  #since: number | undefined;
  #reason: string | undefined;
  #lastLineAt = 0;
  #failures = 0;
  /** When the latest outages began that have a line. */
  #told: number[] = [];
  /** Whether the present outage has no line. */
  #quiet = false;
  /** The last permanent fault of the present outage. */
  #permanent: string | undefined;

  /** `what` names the connection in the lines: `amqp upstream "local"`. */
  constructor(log: Logger, what: string) {
    this.#log = log;
    this.#what = what;
  }

  get ongoing(): boolean {
    return this.#since !== undefined;
  }

  /** Of the last failure of the present outage. */
  get reason(): string | undefined {
    return this.#since === undefined ? undefined : this.#reason;
  }

  /** A fault that only the operator can mend has a line as soon as it shows, also in the middle of an outage. */
  failed(error: unknown): void {
    const now = Date.now();
    const reason = errorText(error);
    this.#reason = reason;
    this.#failures++;
    const isNews = error instanceof PermanentError && reason !== this.#permanent;
    if (isNews) this.#permanent = reason;
    const level = error instanceof PermanentError ? "error" : "warn";
    const due = isNews || now - this.#lastLineAt >= REPEAT_MS;
    if (this.#since === undefined) {
      this.#since = now;
      this.#told = this.#told.filter((at) => now - at < FLAPPING_MS);
      this.#quiet = this.#told.length >= FLAPPING_OUTAGES && !due;
      if (this.#quiet) return;
      this.#told = [...this.#told, now].slice(-FLAPPING_OUTAGES);
      this.#lastLineAt = now;
      this.#log[level]("{what} is not available{again}: {reason}; retrying", {
        what: this.#what,
        again: this.#failures > 1 ? `, after ${this.#failures - 1} failures not listed, between which it was back` : "",
        reason,
      });
    } else if (due) {
      this.#lastLineAt = now;
      this.#quiet = false;
      this.#log[level]("{what} is still not available after {seconds} s and {failures} failures: {reason}; retrying", {
        what: this.#what,
        seconds: Math.round((now - this.#since) / 1000),
        failures: this.#failures,
        reason,
      });
    }
  }

  /** `detail` is added to the line: how many events were sent again, say. */
  recovered(detail = ""): void {
    if (this.#since === undefined) return;
    const seconds = (Date.now() - this.#since) / 1000;
    this.#since = undefined;
    this.#permanent = undefined;
    if (this.#quiet) return;
    this.#failures = 0;
    this.#log.info("{what} is back after {seconds} s{detail}", {
      what: this.#what,
      seconds: Math.round(seconds * 10) / 10,
      detail: detail === "" ? "" : `; ${detail}`,
    });
  }
}
