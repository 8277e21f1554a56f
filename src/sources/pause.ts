/** A wait that can be cut short, also just before it begins. */

/** The longest delay that timers take; more than enough. */
const LONGEST_MS = 60_000;

/** For one waiter. */
export class Pause {
  #ended = false;
  #resume: (() => void) | undefined;

  /** Ends the present pause, or the next one at once. */
  end(): void {
    this.#ended = true;
    this.#resume?.();
  }

  /** Resolves after `ms`, at the latest after a minute, or as soon as `end` is called or was since the last pause. */
  for(ms: number): Promise<void> {
    if (this.#ended) {
      this.#ended = false;
      return Promise.resolve();
    }
    return new Promise((resolve) => {
      const done = () => {
        clearTimeout(timer);
        this.#resume = undefined;
        this.#ended = false;
        resolve();
      };
      const timer = setTimeout(done, Math.min(Math.max(ms, 0), LONGEST_MS));
      this.#resume = done;
    });
  }
}
