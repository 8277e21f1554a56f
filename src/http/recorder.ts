/** Keeps what the status page plots: one sample a second of the last minutes. */

import { quantileMs } from "../core/latency.ts";
import type { LaneMeter } from "../core/lane_meter.ts";
import type { BridgeStatus, SourceStatus, UpstreamStatus } from "../core/status.ts";

export const SAMPLE_INTERVAL_MS = 1_000;
/** Five minutes. */
export const SAMPLES_KEPT = 300;

/** Of one interval; sources and upstreams in their order over all bridges. */
export interface Sample {
  readonly atMs: number;
  /** Events per second. */
  readonly received: readonly number[];
  readonly delivered: readonly number[];
  /** Null where nothing was delivered. */
  readonly p50Ms: readonly (number | null)[];
  readonly p99Ms: readonly (number | null)[];
}

interface Totals {
  readonly atMs: number;
  readonly received: readonly number[];
  readonly delivered: readonly number[];
  /** Counts of both histograms, added up. */
  readonly latency: readonly Float64Array[];
}

export class Recorder {
  readonly #observe: () => readonly BridgeStatus[];
  readonly #samples: Sample[] = [];
  readonly #listeners = new Set<() => void>();
  readonly #timer: ReturnType<typeof setInterval>;
  #before: Totals | undefined;

  /** Takes samples until `close`. */
  constructor(observe: () => readonly BridgeStatus[]) {
    this.#observe = observe;
    this.#timer = setInterval(() => this.#take(), SAMPLE_INTERVAL_MS);
  }

  /** The oldest first. */
  get samples(): readonly Sample[] {
    return this.#samples;
  }

  get listeners(): number {
    return this.#listeners.size;
  }

  /** Calls `listener` after each sample, until the function that is returned is called. */
  onSample(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  close(): void {
    clearInterval(this.#timer);
  }

  #take(): void {
    const totals = totalsOf(this.#observe(), performance.now());
    // Before the first bridge is there nothing is counted.
    if (this.#before !== undefined && this.#before.delivered.length === totals.delivered.length) {
      this.#samples.push(sampleBetween(this.#before, totals));
      if (this.#samples.length > SAMPLES_KEPT) this.#samples.shift();
    }
    this.#before = totals;
    for (const listener of this.#listeners) listener();
  }
}

export function receivedBy({ received }: SourceStatus): number {
  return received.reduce((sum, { events }) => sum + events, 0);
}

export function deliveredBy({ meter }: UpstreamStatus): number {
  let events = 0;
  for (const { delivered } of meter?.channels.values() ?? []) events += delivered;
  return events;
}

function totalsOf(bridges: readonly BridgeStatus[], atMs: number): Totals {
  const upstreams = bridges.flatMap((bridge) => bridge.upstreams);
  return {
    atMs,
    received: bridges.flatMap((bridge) => bridge.sources.map(receivedBy)),
    delivered: upstreams.map(deliveredBy),
    latency: upstreams.map(({ meter }) => meter === undefined ? new Float64Array(0) : latencyOf(meter)),
  };
}

function latencyOf({ sinceCommit, sinceReceipt }: LaneMeter): Float64Array {
  return sinceCommit.buckets.map((count, i) => count + sinceReceipt.buckets[i]!);
}

function sampleBetween(before: Totals, after: Totals): Sample {
  const seconds = Math.max(1, after.atMs - before.atMs) / 1000;
  const rates = (now: readonly number[], then: readonly number[]) =>
    now.map((total, i) => Math.round(((total - (then[i] ?? 0)) / seconds) * 10) / 10);
  const latency = after.latency.map((buckets, i) => buckets.map((count, j) => count - (before.latency[i]?.[j] ?? 0)));
  const quantiles = (quantile: number) => latency.map((buckets) => rounded(quantileMs(buckets, quantile)));
  return {
    atMs: Date.now(),
    received: rates(after.received, before.received),
    delivered: rates(after.delivered, before.delivered),
    p50Ms: quantiles(0.5),
    p99Ms: quantiles(0.99),
  };
}

function rounded(ms: number | undefined): number | null {
  return ms === undefined ? null : Math.round(ms * 100) / 100;
}
