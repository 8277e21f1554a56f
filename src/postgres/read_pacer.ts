/**
 * Lets a busy replication socket rest before the next read.
 *
 * A walsender flushes a packet for each message, and on the loopback a packet costs it as much as the decoding. A client
 * that reads as fast as it can wakes for each of them besides: the two then fight for the processor. While the socket
 * rests, nothing is acknowledged; as soon as the congestion window is full of small packets, the kernel gathers what
 * follows and sends it as a few large ones. Measured with 100-row transactions: 0.8 packets per event with a rest of 1 ms,
 * 0.25 with 20 ms, and a walsender that needs two thirds of the processor time. Idle traffic never waits: only a chunk
 * that came right after another is followed by a rest, and only a stream of thousands of events per second by a long one.
 */

import { IS_DENO } from "../runtime.ts";
import { PauseReason, type ServerConnection } from "./connection.ts";

const SHORT_REST_MS = 1;
const LONG_REST_MS = 20;
/** A stream this fast gets the long rest, in bytes per millisecond: some 20,000 small rows per second. */
const FAST_BYTES_PER_MS = 8 * 1024;
/** Chunks closer together than this are a stream. */
const BUSY_MS = 1.5;
/** As much as the runtime reads at once: more is waiting. */
const FULL_CHUNK_BYTES = IS_DENO ? 64 * 1024 : 512 * 1024;

export class ReadPacer {
  readonly #connection: ServerConnection;
  readonly #resume: () => void;
  #lastChunkMs = 0;
  #lastRestMs = 0;
  #bytesSinceRest = 0;
  /** The next chunk was read before the rest. */
  #readsOn = false;

  constructor(connection: ServerConnection) {
    this.#connection = connection;
    this.#resume = () => {
      this.#lastChunkMs = performance.now();
      this.#readsOn = connection.unreadBytes > 0;
      connection.resume(PauseReason.Rest);
    };
  }

  afterChunk(bytes: number): void {
    const nowMs = performance.now();
    const busy = nowMs - this.#lastChunkMs < BUSY_MS;
    this.#lastChunkMs = nowMs;
    this.#bytesSinceRest += bytes;
    if (!busy || !this.#connection.hasPackets || bytes >= FULL_CHUNK_BYTES) return;
    if (this.#readsOn) {
      this.#readsOn = false;
      return;
    }
    const fast = this.#bytesSinceRest >= (nowMs - this.#lastRestMs) * FAST_BYTES_PER_MS;
    this.#lastRestMs = nowMs;
    this.#bytesSinceRest = 0;
    this.#connection.pause(PauseReason.Rest);
    setTimeout(this.#resume, fast ? LONG_REST_MS : SHORT_REST_MS);
  }
}
