/** One JSON line per event on the standard output (jsonlines.org): useful with no broker at all. */

import { write } from "node:fs";
import type { StdoutConfig } from "../config/config.ts";
import { errorText, PermanentError } from "../core/errors.ts";
import type { Event, EventType } from "../core/event.ts";
import { textOf } from "../core/payload.ts";
import type { Delivery, Session, Target, Upstream } from "../core/upstream.ts";
import { copyBytes } from "./slab.ts";

/** Measured: with 10,000 no faster, and a third more memory for small rows. */
const DEFAULT_MAX_IN_FLIGHT = 4000;
const STDOUT_FD = 1;
/** A write is put together up to about this size. */
const BATCH_BYTES = 256 * 1024;
/** How long to wait for a reader that left its pipe in non-blocking mode and full. */
const RETRY_MS = 5;
const NEWLINE = 0x0a;
const CLOSING_BRACE = 0x7d;

export class StdoutUpstream implements Upstream {
  readonly kind = "stdout";
  readonly name: string;
  readonly maxInFlight: number;
  readonly #writer: Writer;
  readonly #payloadsAreLines: boolean;

  /** `fd` is the file descriptor to write to; it is not closed. */
  constructor(config: StdoutConfig, fd = STDOUT_FD) {
    this.name = config.name;
    this.maxInFlight = config.maxInFlight ?? DEFAULT_MAX_IN_FLIGHT;
    this.#writer = fd === STDOUT_FD ? STDOUT : new Writer(fd);
    // The payload then is a CloudEvent in one line of JSON.
    this.#payloadsAreLines = config.cloudEventsSource !== undefined;
  }

  async connect(_targets: readonly Target[], onLost: (cause: Error) => void, signal: AbortSignal): Promise<Session> {
    signal.throwIfAborted();
    return new StdoutSession(this.#writer, new Batch(this.#payloadsAreLines), onLost);
  }
}

type Written = (error: NodeJS.ErrnoException | undefined) => void;

/** Writes one after the other, each whole: a pipe takes long ones in parts, which two at a time would mix. */
export class Writer {
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
  readonly #batch: Batch;
  #writing = false;
  #ended = false;
  #onIdle: () => void = () => {};

  constructor(writer: Writer, batch: Batch, onLost: (cause: Error) => void) {
    this.#writer = writer;
    this.#batch = batch;
    this.#onLost = onLost;
  }

  publish(delivery: Delivery): void {
    if (!this.#ended) this.#waiting.push(delivery);
  }

  flush(): void {
    if (this.#ended || this.#writing || this.#waiting.length === 0) return;
    const batch = this.#batch;
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

const LINE_START = Buffer.from(`{"id":"`);

/** What stands between the id and the payload: the same for all events of a table. */
class LineMiddle {
  #type: EventType = "notify";
  #channel = "";
  #routingKey = "";
  #target: Target | undefined;
  #bytes = Buffer.alloc(0);

  of({ type, channel, routingKey }: Event, target: Target): Buffer {
    if (
      target === this.#target && routingKey === this.#routingKey && channel === this.#channel && type === this.#type
    ) return this.#bytes;
    this.#target = target;
    this.#type = type;
    this.#channel = channel;
    this.#routingKey = routingKey;
    return this.#bytes = Buffer.from(
      `","type":"${type}","channel":${JSON.stringify(channel)},"target":${JSON.stringify(target.name)},` +
        `"routing_key":${JSON.stringify(routingKey)},"payload":`,
    );
  }
}

const BUFFER_BYTES = BATCH_BYTES + 16 * 1024;

/** Gathers lines in one buffer, which is used again for the next batch: only one is written at a time. */
export class Batch {
  readonly #middle = new LineMiddle();
  #buffer = Buffer.allocUnsafeSlow(BUFFER_BYTES);
  readonly #payloadsAreLines: boolean;
  bytes = 0;

  constructor(payloadsAreLines: boolean) {
    this.#payloadsAreLines = payloadsAreLines;
  }

  add({ event, target }: Pick<Delivery, "event" | "target">): void {
    if (this.#payloadsAreLines) return this.#addLine(event.payload);
    const { id } = event;
    const middle = this.#middle.of(event, target);
    const payload = isOneLineJson(event) ? event.payload : Buffer.from(JSON.stringify(textOf(event.payload)));
    this.#reserve(LINE_START.length + id.length + middle.length + payload.length + 2);
    const buffer = this.#buffer;
    let at = copyBytes(LINE_START, buffer, this.bytes);
    // Ids are LSNs, numbers and UUIDs: ASCII without anything that JSON escapes.
    for (let i = 0; i < id.length; i++) buffer[at++] = id.charCodeAt(i);
    at = copyBytes(payload, buffer, copyBytes(middle, buffer, at));
    buffer[at++] = CLOSING_BRACE;
    buffer[at++] = NEWLINE;
    this.bytes = at;
  }

  #addLine(line: Uint8Array): void {
    this.#reserve(line.length + 1);
    this.#buffer.set(line, this.bytes);
    this.bytes += line.length;
    this.#buffer[this.bytes++] = NEWLINE;
  }

  /** What was gathered; valid until the next `add`. */
  take(): Uint8Array {
    const taken = this.#buffer.subarray(0, this.bytes);
    this.bytes = 0;
    // Made for one large event, and not kept for it.
    if (this.#buffer.length > BUFFER_BYTES) this.#buffer = Buffer.allocUnsafeSlow(BUFFER_BYTES);
    return taken;
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
