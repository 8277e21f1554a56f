/**
 * Lets a busy replication socket rest before the next read.
 *
 * A walsender flushes a packet for each message, and a client that reads as fast as it can wakes for each of them: the
 * two then fight for the processor. While the socket rests, the walsender fills it, and one read takes what would have
 * been dozens. Idle traffic never waits: only a chunk that came right after another is followed by a rest.
 */

import { IS_DENO } from "../runtime.ts";
import { PauseReason, type ServerConnection } from "./connection.ts";

const REST_MS = 1;
/** Chunks closer together than this are a stream. */
const BUSY_MS = 1.5;
/** Deno: a chunk of this size shows that the socket is full already, and its timer is too coarse to be worth it. */
const FULL_CHUNK_BYTES = 64 * 1024;

export class ReadPacer {
  readonly #connection: ServerConnection;
  readonly #resume: () => void;
  #lastChunkMs = 0;

  constructor(connection: ServerConnection) {
    this.#connection = connection;
    this.#resume = () => {
      this.#lastChunkMs = performance.now();
      connection.resume(PauseReason.Rest);
    };
  }

  afterChunk(bytes: number): void {
    const nowMs = performance.now();
    const busy = nowMs - this.#lastChunkMs < BUSY_MS;
    this.#lastChunkMs = nowMs;
    if (!busy || !this.#connection.hasPackets) return;
    if (IS_DENO && bytes >= FULL_CHUNK_BYTES) return;
    this.#connection.pause(PauseReason.Rest);
    setTimeout(this.#resume, REST_MS);
  }
}
