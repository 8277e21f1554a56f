/** The bytes of an event as the runtime's own kinds of them; nothing is copied but for text. */

export function bufferOf(bytes: Uint8Array): Buffer {
  return Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** Read as UTF-8; what is invalid is replaced. */
export function textOf(bytes: Uint8Array): string {
  return bufferOf(bytes).toString();
}
