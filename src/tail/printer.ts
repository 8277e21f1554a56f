/** Writes events to standard output as they come, and has the source stop reading where that is slow. */

import type { Event } from "../core/event.ts";
import type { Completion, Sink } from "../core/source.ts";
import type { Target } from "../core/upstream.ts";
import { Batch, type Writer } from "../upstreams/stdout.ts";

/** More than this waits to be written: the source stops. */
const MAX_WAITING_BYTES = 8 * 2 ** 20;
/** A write is put together up to about this size. */
const WRITE_BYTES = 256 * 1024;

export interface PrinterOptions {
  readonly writer: Writer;
  /** Channels of which logical messages are events of that channel. */
  readonly channels: readonly string[];
  /** For people; undefined: the JSON lines of the upstream `stdout`. */
  readonly line: ((event: Event) => string) | undefined;
  readonly wants: (event: Event) => boolean;
  /** The reader has closed the pipe, or writing failed. Called once; whatever comes later is discarded. */
  onEnd(error: NodeJS.ErrnoException): void;
}

interface Waiting {
  readonly event: Event;
  readonly completion: Completion;
}

export class Printer implements Sink {
  readonly #options: PrinterOptions;
  readonly #batch = new Batch(false);
  readonly #targets = new Map<string, Target>();
  #waiting: Waiting[] = [];
  #waitingBytes = 0;
  #writing = false;
  #ended = false;
  #onRelief: Array<() => void> = [];

  constructor(options: PrinterOptions) {
    this.#options = options;
  }

  accepts(channel: string): boolean {
    return this.#options.channels.includes(channel);
  }

  emit(event: Event, completion: Completion): number {
    if (this.#ended || !this.#options.wants(event)) return 0;
    completion.retain();
    this.#waiting.push({ event, completion });
    this.#waitingBytes += event.payload.length;
    if (!this.#writing) {
      this.#writing = true;
      // What else is in the same chunk goes out in the same write.
      queueMicrotask(() => this.#write());
    }
    return 1;
  }

  get congested(): boolean {
    return this.#waitingBytes > MAX_WAITING_BYTES;
  }

  onRelief(resume: () => void): void {
    if (this.congested) this.#onRelief.push(resume);
    else resume();
  }

  #write(): void {
    let bytes = 0;
    let count = 0;
    while (count < this.#waiting.length && bytes < WRITE_BYTES) bytes += this.#waiting[count++]!.event.payload.length;
    const written = this.#waiting.splice(0, count);
    this.#options.writer.write(this.#bytesOf(written), (error) => {
      this.#settle(written);
      if (error !== undefined) return this.#end(error);
      this.#writing = this.#waiting.length > 0;
      if (this.#writing) this.#write();
    });
  }

  #bytesOf(waiting: readonly Waiting[]): Uint8Array {
    const { line } = this.#options;
    if (line !== undefined) return Buffer.from(waiting.map(({ event }) => line(event)).join(""));
    for (const { event } of waiting) this.#batch.add({ event, target: this.#targetOf(event.channel) });
    return this.#batch.take();
  }

  /** The same object for each event of a channel. */
  #targetOf(channel: string): Target {
    let target = this.#targets.get(channel);
    if (target === undefined) this.#targets.set(channel, target = { type: "topic", name: channel });
    return target;
  }

  #settle(waiting: readonly Waiting[]): void {
    for (const { event, completion } of waiting) {
      this.#waitingBytes -= event.payload.length;
      completion.release();
    }
    if (this.congested) return;
    for (const resume of this.#onRelief.splice(0)) resume();
  }

  #end(error: NodeJS.ErrnoException): void {
    this.#ended = true;
    this.#settle(this.#waiting.splice(0));
    this.#options.onEnd(error);
  }
}
