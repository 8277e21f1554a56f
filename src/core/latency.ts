/** How long deliveries took, in buckets. */

/**
 * Powers of two in milliseconds, so that the bucket of a value is found without a search. Clocks are read in whole
 * milliseconds: what took less than two counts to the first bucket.
 */
export const LATENCY_BOUNDS_MS: readonly number[] = Array.from({ length: 18 }, (_, i) => 2 ** i);

export class LatencyHistogram {
  /** One more than there are bounds: the last is for what took longer. Not cumulative. */
  readonly buckets = new Float64Array(LATENCY_BOUNDS_MS.length + 1);
  sumMs = 0;
  count = 0;

  /** Clocks of two machines may differ: less than nothing counts as nothing. */
  record(ms: number): void {
    const bucket = ms <= 1 ? 0 : Math.min(32 - Math.clz32(Math.min(ms, 2 ** 31) - 1), LATENCY_BOUNDS_MS.length);
    this.buckets[bucket]!++;
    if (ms > 0) this.sumMs += ms;
    this.count++;
  }
}

/**
 * The value in milliseconds below which `quantile` of the counts lie, taken evenly within its bucket; undefined where
 * nothing was counted.
 */
export function quantileMs(buckets: ArrayLike<number>, quantile: number): number | undefined {
  let total = 0;
  for (let i = 0; i < buckets.length; i++) total += buckets[i]!;
  if (total === 0) return undefined;
  let rest = total * quantile;
  for (let i = 0; i < LATENCY_BOUNDS_MS.length; i++) {
    const count = buckets[i]!;
    if (rest <= count && count > 0) {
      const lower = i === 0 ? 0 : LATENCY_BOUNDS_MS[i - 1]!;
      return lower + (LATENCY_BOUNDS_MS[i]! - lower) * (rest / count);
    }
    rest -= count;
  }
  return LATENCY_BOUNDS_MS.at(-1);
}
