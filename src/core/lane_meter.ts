/** What is told of the deliveries of one lane where somebody may ask: by channel, how long, and the last one. */

import { setImmediate } from "node:timers";
import type { Event } from "./event.ts";
import { LatencyHistogram } from "./latency.ts";
import type { Completion } from "./source.ts";

/** The last event is kept as it is, unless that would hold on to much memory. */
const MAX_KEPT_BYTES = 65_536;

/** Since the start. */
export interface ChannelCounts {
  delivered: number;
  deliveredBytes: number;
  resent: number;
  dropped: number;
}

/**
 * Counts in place, one call an event. The clock is read once in a turn of the event loop, which is as long as the chunks
 * take that the sockets had to give: a few milliseconds under full load.
 */
export class LaneMeter {
  readonly channels = new Map<string, ChannelCounts>();
  /** Of events whose transaction told when it was committed, from then to the acknowledgement. */
  readonly sinceCommit = new LatencyHistogram();
  /** Of all others, from when the proxy received them. */
  readonly sinceReceipt = new LatencyHistogram();
  lastDelivered: Event | undefined;
  #channel = "";
  #counts: ChannelCounts | undefined;
  #nowMs = 0;
  readonly #forgetNow = () => {
    this.#nowMs = 0;
  };

  delivered(event: Event, completion: Completion): void {
    const counts = this.#countsOf(event.channel);
    counts.delivered++;
    counts.deliveredBytes += event.payload.length;
    this.lastDelivered = event.payload.length <= MAX_KEPT_BYTES ? event : undefined;
    if (this.#nowMs === 0) {
      this.#nowMs = Date.now();
      setImmediate(this.#forgetNow);
    }
    const { committedAtMs } = completion;
    if (committedAtMs === undefined) this.sinceReceipt.record(this.#nowMs - event.receivedAtMs);
    else this.sinceCommit.record(this.#nowMs - committedAtMs);
  }

  resent(event: Event): void {
    this.#countsOf(event.channel).resent++;
  }

  dropped(event: Event): void {
    this.#countsOf(event.channel).dropped++;
  }

  /** Mostly the channel of the event before. */
  #countsOf(channel: string): ChannelCounts {
    if (this.#counts !== undefined && channel === this.#channel) return this.#counts;
    let counts = this.channels.get(channel);
    if (counts === undefined) {
      counts = { delivered: 0, deliveredBytes: 0, resent: 0, dropped: 0 };
      this.channels.set(channel, counts);
    }
    this.#channel = channel;
    this.#counts = counts;
    return counts;
  }
}
