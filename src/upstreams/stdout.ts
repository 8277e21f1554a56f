/** One JSON line per event on the standard output (jsonlines.org): useful with no broker at all. */

import { write } from "node:fs";
import type { StdoutConfig } from "../config/config.ts";
import { errorText, PermanentError } from "../core/errors.ts";
import type { Event } from "../core/event.ts";
import type { Delivery, Session, Target, Upstream } from "../core/upstream.ts";

const DEFAULT_MAX_IN_FLIGHT = 10_000;
const STDOUT_FD = 1;
/** A write is put together up to about this size. */
const BATCH_BYTES = 256 * 1024;
/** How long to wait for a reader that left its pipe in non-blocking mode and full. */
const RETRY_MS = 5;
const NEWLINE = 0x0a;

export class StdoutUpstream implements Upstream {
  readonly kind = "stdout";
  readonly name: string;
  readonly maxInFlight: number;
  readonly #writer: Writer;

  /** `fd` is the file descriptor to write to; it is not closed. */
  constructor(config: StdoutConfig, fd = STDOUT_FD) {
    this.name = config.name;
    this.maxInFlight = config.maxInFlight ?? DEFAULT_MAX_IN_FLIGHT;
    this.#writer = fd === STDOUT_FD ? STDOUT : new Writer(fd);
  }

  async connect(_targets: readonly Target[], onLost: (cause: Error) => void, signal: AbortSignal): Promise<Session> {
    signal.throwIfAborted();
    return new StdoutSession(this.#writer, onLost);
  }
}

type Written = (error: NodeJS.ErrnoException | undefined) => void;

/** Writes one after the other, each whole: a pipe takes long ones in parts, which two at a time would mix. */
class Writer {
  readonly #fd: number;
  readonly #waiting: Array<{ readonly bytes: Uint8Array; readonly done: Written }> = [];
  #writing = false;

  constructor(fd: number) {
    this.#fd = fd;
  }

  write(bytes: Uint8Array, done: Written): void {
    this.#waiting.push({ bytes, done });
    if (!this.#writing) this.#next();
  }

  #next(): void {
    const first = this.#waiting.shift();
    this.#writing = first !== undefined;
    if (first !== undefined) this.#write(first.bytes, first.done);
  }

  #write(bytes: Uint8Array, done: Written): void {
    write(this.#fd, bytes, (error, written) => {
      if (error?.code === "EAGAIN") {
        setTimeout(() => this.#write(bytes, done), RETRY_MS);
      } else if (!error && written < bytes.length) {
        this.#write(bytes.subarray(written), done);
      } else {
        done(error ?? undefined);
        this.#next();
      }
    });
  }
}

/** Of all upstreams of this kind, as there is one standard output in a process. */
const STDOUT = new Writer(STDOUT_FD);

class StdoutSession implements Session {
  readonly #writer: Writer;
  readonly #onLost: (cause: Error) => void;
  /** Waiting for the write in progress. */
  #waiting: Delivery[] = [];
  #writing = false;
  #ended = false;
  #onIdle: () => void = () => {};

  constructor(writer: Writer, onLost: (cause: Error) => void) {
    this.#writer = writer;
    this.#onLost = onLost;
  }

  publish(delivery: Delivery): void {
    if (!this.#ended) this.#waiting.push(delivery);
  }

  flush(): void {
    if (this.#ended || this.#writing || this.#waiting.length === 0) return;
    const batch = new Batch();
    let count = 0;
    while (count < this.#waiting.length && batch.bytes < BATCH_BYTES) batch.add(this.#waiting[count++]!);
    const deliveries = this.#waiting.splice(0, count);
    this.#writing = true;
    this.#write(batch.take(), deliveries);
  }

  async close(deadlineMs: number): Promise<void> {
    if (this.#writing && !this.#ended) {
      const { promise: idle, resolve } = Promise.withResolvers<void>();
      this.#onIdle = resolve;
      const deadline = setTimeout(resolve, deadlineMs);
      await idle;
      clearTimeout(deadline);
    }
    this.#ended = true;
  }

  #write(bytes: Uint8Array, deliveries: readonly Delivery[]): void {
    this.#writer.write(bytes, (error) => {
      if (error !== undefined) return this.#failed(error);
      this.#writing = false;
      if (!this.#ended) { for (const delivery of deliveries) delivery.acknowledge(this); }
      this.flush();
      if (!this.#writing) this.#onIdle();
    });
  }

  #failed(error: NodeJS.ErrnoException): void {
    this.#writing = false;
    this.#onIdle();
    if (this.#ended) return;
    this.#ended = true;
    this.#onLost(
      new PermanentError(
        error.code === "EPIPE"
          ? "stdout was closed: the program that read it has ended; start the pipeline again"
          : `cannot write to stdout: ${errorText(error)}; free the disk or the reader it goes to`,
      ),
    );
  }
}

/** Gathers lines in one buffer. */
class Batch {
  #buffer = Buffer.allocUnsafe(BATCH_BYTES + 16 * 1024);
  bytes = 0;

  add({ event, target }: Delivery): void {
    const head =
      `{"id":${JSON.stringify(event.id)},"type":"${event.type}","channel":${JSON.stringify(event.channel)},` +
      `"target":${JSON.stringify(target.name)},"routing_key":${JSON.stringify(event.routingKey)},"payload":`;
    if (isOneLineJson(event)) {
      this.#reserve(head.length * 3 + event.payload.length + 2);
      this.bytes += this.#buffer.write(head, this.bytes);
      this.#buffer.set(event.payload, this.bytes);
      this.bytes += event.payload.length;
      this.bytes += this.#buffer.write("}\n", this.bytes);
      return;
    }
    const line = `${head}${JSON.stringify(textOf(event.payload))}}\n`;
    this.#reserve(line.length * 3);
    this.bytes += this.#buffer.write(line, this.bytes);
  }

  take(): Uint8Array {
    return this.#buffer.subarray(0, this.bytes);
  }

  #reserve(bytes: number): void {
    const needed = this.bytes + bytes;
    if (needed <= this.#buffer.length) return;
    const larger = Buffer.allocUnsafe(Math.max(needed, this.#buffer.length * 2));
    larger.set(this.#buffer.subarray(0, this.bytes));
    this.#buffer = larger;
  }
}

/** wal2json's records go out byte for byte, unless pretty-printed, which would break the line. */
function isOneLineJson({ type, json, payload }: Event): boolean {
  return type === "wal" && json && payload.indexOf(NEWLINE) === -1;
}

function textOf(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString();
}
