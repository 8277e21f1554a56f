/** Buffers for encoded messages: many go into one, which is then written to the socket in one piece. */

const SLAB_BYTES = 64 * 1024;
/** A larger payload is better handed on as it is than copied. */
export const MAX_COPIED_PAYLOAD_BYTES = 16 * 1024;

export class Slab {
  /** Written to by whoever encodes, from `at` on. */
  bytes: Buffer = Buffer.alloc(0);
  /** Where the next byte goes. */
  at = 0;
  #start = 0;

  /** Makes room; what was written and not taken moves along. */
  reserve(byteCount: number): void {
    if (this.bytes.length - this.at >= byteCount) return;
    const written = this.take();
    this.bytes = Buffer.allocUnsafeSlow(Math.max(SLAB_BYTES, written.length + byteCount));
    this.#start = 0;
    this.at = copyBytes(written, this.bytes, 0);
  }

  /** Whether enough was written that it should be taken before more is. */
  get full(): boolean {
    return this.at - this.#start > SLAB_BYTES / 2;
  }

  /** What was written since the last call; nothing writes to it again. */
  take(): Buffer {
    const taken = this.bytes.subarray(this.#start, this.at);
    this.#start = this.at;
    return taken;
  }
}

/** For few bytes a loop is faster than a call of the runtime. Returns where they end. */
export function copyBytes(from: Uint8Array, to: Buffer, at: number): number {
  if (from.length > 256) {
    to.set(from, at);
  } else {
    for (let i = 0; i < from.length; i++) to[at + i] = from[i]!;
  }
  return at + from.length;
}

/** Big-endian, as in every protocol here. Returns where it ends. */
export function writeUint16(to: Buffer, value: number, at: number): number {
  to[at] = value >>> 8;
  to[at + 1] = value;
  return at + 2;
}

/** The lower 32 bits of `value`, big-endian. Returns where they end. */
export function writeUint32(to: Buffer, value: number, at: number): number {
  to[at] = value >>> 24;
  to[at + 1] = value >>> 16;
  to[at + 2] = value >>> 8;
  to[at + 3] = value;
  return at + 4;
}

/** Writes ASCII, or returns undefined where the text holds anything else. */
export function writeAscii(to: Buffer, text: string, at: number): number | undefined {
  const { length } = text;
  for (let i = 0; i < length; i++) {
    const code = text.charCodeAt(i);
    if (code > 0x7f) return undefined;
    to[at + i] = code;
  }
  return at + length;
}
