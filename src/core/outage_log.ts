/** Keeps the log readable during an outage: the first failure, a line at most every 30 s, and the recovery. */

import type { Logger } from "../log.ts";
import { errorText } from "./errors.ts";

const REPEAT_MS = 30_000;

export class OutageLog {
  readonly #log: Logger;
  readonly #what: string;
  #since: number | undefined;
  #lastLineAt = 0;
  #failures = 0;

  /** `what` names the connection in the lines: `amqp upstream "local"`. */
  constructor(log: Logger, what: string) {
    this.#log = log;
    this.#what = what;
  }

  get ongoing(): boolean {
    return this.#since !== undefined;
  }

  failed(error: unknown): void {
    const now = Date.now();
    this.#failures++;
    if (this.#since === undefined) {
      this.#since = now;
      this.#lastLineAt = now;
      this.#log.warn("{what} is not available: {reason}; retrying", { what: this.#what, reason: errorText(error) });
    } else if (now - this.#lastLineAt >= REPEAT_MS) {
      this.#lastLineAt = now;
      this.#log.warn("{what} is still not available after {seconds} s and {failures} failures: {reason}; retrying", {
        what: this.#what,
        seconds: Math.round((now - this.#since) / 1000),
        failures: this.#failures,
        reason: errorText(error),
      });
    }
  }

  /** `detail` is added to the line: how many events were sent again, say. */
  recovered(detail = ""): void {
    if (this.#since === undefined) return;
    const seconds = (Date.now() - this.#since) / 1000;
    this.#log.info("{what} is back after {seconds} s{detail}", {
      what: this.#what,
      seconds: Math.round(seconds * 10) / 10,
      detail: detail === "" ? "" : `; ${detail}`,
    });
    this.#since = undefined;
    this.#failures = 0;
  }
}
