/**
 * Cuts the server's byte stream into messages: one byte of type, four of length (itself included), the body.
 * PostgreSQL documentation, "Message Formats".
 */

/** `buffer[start..end)` is the body. The view is valid as long as the buffer is; nothing writes to it again. */
export type MessageHandler = (type: number, buffer: Buffer, start: number, end: number) => void;

const HEADER_BYTES = 5;
/** MaxAllocSize of the server, 1 GiB less one, plus room for the headers of CopyData and XLogData. */
export const MAX_MESSAGE_BYTES = 0x3fffffff + 64;
const FIRST_ALLOCATION_BYTES = 64 * 1024;

export class FramingError extends Error {
  override name = "FramingError";
}

/**
 * Messages that lie whole in a chunk are handed out as views into it. Only a message that spans chunks is copied, once,
 * into a buffer of its own, which grows with what has arrived and not with what the header claims.
 */
export class Framer {
  readonly #onMessage: MessageHandler;
  readonly #header = Buffer.alloc(HEADER_BYTES);
  #headerBytes = 0;
  /** The body of a message that spans chunks. */
  #body: Buffer | undefined;
  #bodyBytes = 0;
  #bodyLength = 0;

  constructor(onMessage: MessageHandler) {
    this.#onMessage = onMessage;
  }

  /** Whether the last chunk ended in the middle of a message. */
  get partial(): boolean {
    return this.#headerBytes > 0;
  }

  /** Throws FramingError when the length of a message is impossible; the stream is then of no use any more. */
  push(chunk: Buffer): void {
    let offset = this.#headerBytes > 0 ? this.#completePartial(chunk) : 0;
    const size = chunk.length;
    while (size - offset >= HEADER_BYTES) {
      const length = readLength(chunk, offset + 1);
      const start = offset + HEADER_BYTES;
      const end = start + length;
      if (end > size) break;
      this.#onMessage(chunk[offset]!, chunk, start, end);
      offset = end;
    }
    if (offset < size) this.#keep(chunk, offset);
  }

  /** Returns the offset at which the next message starts. */
  #completePartial(chunk: Buffer): number {
    let offset = 0;
    if (this.#headerBytes < HEADER_BYTES) {
      const taken = Math.min(HEADER_BYTES - this.#headerBytes, chunk.length);
      chunk.copy(this.#header, this.#headerBytes, 0, taken);
      this.#headerBytes += taken;
      offset = taken;
      if (this.#headerBytes < HEADER_BYTES) return offset;
      this.#startBody(readLength(this.#header, 1));
    }
    const taken = Math.min(this.#bodyLength - this.#bodyBytes, chunk.length - offset);
    this.#append(chunk, offset, taken);
    offset += taken;
    if (this.#bodyBytes === this.#bodyLength) {
      const body = this.#body!;
      this.#body = undefined;
      this.#headerBytes = 0;
      this.#onMessage(this.#header[0]!, body, 0, this.#bodyLength);
    }
    return offset;
  }

  #keep(chunk: Buffer, offset: number): void {
    const available = chunk.length - offset;
    this.#headerBytes = Math.min(HEADER_BYTES, available);
    chunk.copy(this.#header, 0, offset, offset + this.#headerBytes);
    if (available < HEADER_BYTES) return;
    this.#startBody(readLength(this.#header, 1));
    this.#append(chunk, offset + HEADER_BYTES, available - HEADER_BYTES);
  }

  #startBody(length: number): void {
    this.#bodyLength = length;
    this.#bodyBytes = 0;
    this.#body = Buffer.allocUnsafeSlow(Math.min(length, FIRST_ALLOCATION_BYTES));
  }

  #append(chunk: Buffer, offset: number, count: number): void {
    const needed = this.#bodyBytes + count;
    let body = this.#body!;
    if (needed > body.length) {
      const grown = Buffer.allocUnsafeSlow(Math.min(this.#bodyLength, Math.max(needed, body.length * 2)));
      body.copy(grown, 0, 0, this.#bodyBytes);
      body = this.#body = grown;
    }
    chunk.copy(body, this.#bodyBytes, offset, offset + count);
    this.#bodyBytes = needed;
  }
}

/** The length of the body: what the header says, less the four bytes of the length itself. */
function readLength(buffer: Buffer, offset: number): number {
  const length = (buffer[offset]! << 24 | buffer[offset + 1]! << 16 | buffer[offset + 2]! << 8 | buffer[offset + 3]!) -
    4;
  if (length < 0 || length > MAX_MESSAGE_BYTES) {
    throw new FramingError(
      `the server sent a message whose length field says ${length + 4} bytes; between 4 and ${MAX_MESSAGE_BYTES + 4} ` +
        "is possible: this is not PostgreSQL's protocol, or bytes were lost on the way",
    );
  }
  return length;
}
