/** A connection that has held this long counts as good: the next attempt after its loss is made soon, in milliseconds. */
export const STABLE_MS = 10_000;

/** Delays between attempts: exponential with full jitter, so that many proxies do not return in step. */
export class Backoff {
  readonly #firstMs: number;
  readonly #maxMs: number;
  #attempts = 0;

  /** The delay before attempt n is uniform between 0 and `min(maxMs, firstMs * 2^n)`, but at least a tenth of that. */
  constructor(firstMs = 100, maxMs = 10_000) {
    this.#firstMs = firstMs;
    this.#maxMs = maxMs;
  }

  nextMs(): number {
    const ceilingMs = Math.min(this.#maxMs, this.#firstMs * 2 ** Math.min(this.#attempts, 30));
    this.#attempts++;
    return ceilingMs * (0.1 + 0.9 * Math.random());
  }

  reset(): void {
    this.#attempts = 0;
  }
}

/** Resolves after `ms`, or at once when `signal` aborts. Never rejects. */
export function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal?.aborted) return resolve();
    const done = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal?.addEventListener("abort", done);
  });
}

/** Resolves when `signal` aborts. */
export function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener("abort", () => resolve(), { once: true });
  });
}

/**
 * What `promise` resolves to, or undefined as soon as `signal` aborts. Unlike a race with `aborted`, it leaves no listener
 * on a signal that outlives many such waits.
 */
export async function unlessAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T | undefined> {
  const stop = Promise.withResolvers<undefined>();
  const onAbort = () => stop.resolve(undefined);
  signal.addEventListener("abort", onAbort);
  if (signal.aborted) onAbort();
  try {
    return await Promise.race([promise, stop.promise]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}
