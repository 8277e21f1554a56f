/** Waiting on conditions, with an error that says what was waited for. */

import { setTimeout as delay } from "node:timers/promises";

export interface UntilOptions {
  /** Default 45,000. */
  readonly timeoutMs?: number;
  /** Completes the sentence "waited 15 s for …". A function is asked at the end, so that it can tell what was seen. */
  readonly what: string | (() => string);
  /** Default 20. */
  readonly intervalMs?: number;
}

/**
 * Asks `condition` again and again until it gives something other than undefined, null or false, and returns that. A
 * condition that throws counts as not yet met; its last error is told when time runs out.
 */
export async function until<T>(
  condition: () => T | Promise<T>,
  { timeoutMs = 45_000, what, intervalMs = 20 }: UntilOptions,
): Promise<Exclude<T, undefined | null | false>> {
  const deadline = performance.now() + timeoutMs;
  let lastError: unknown;
  for (;;) {
    try {
      const result = await condition();
      if (result !== undefined && result !== null && result !== false) {
        return result as Exclude<T, undefined | null | false>;
      }
      lastError = undefined;
    } catch (error) {
      lastError = error;
    }
    if (performance.now() >= deadline) {
      const subject = typeof what === "function" ? what() : what;
      const reason = lastError === undefined ? "" : `; last error: ${String(lastError)}`;
      throw new Error(`waited ${timeoutMs / 1000} s for ${subject}${reason}`, { cause: lastError });
    }
    await delay(intervalMs);
  }
}
