/**
 * What an MQTT session that only publishes says and hears most (3.1.1 and 5, sections 3.3 and 3.4): PUBLISH packets, encoded
 * many into one buffer, and PUBACK packets, read without a parser's object for each. mqtt.js, which clones, stores, logs
 * and parses each of them, needs three times the processor time for a message.
 */

import { copyBytes, MAX_COPIED_PAYLOAD_BYTES, Slab, writeUint16 } from "./slab.ts";

const PUBLISH = 0x30;
/** A PUBACK that has only a packet identifier, which means success (MQTT 5, section 3.4.2.1). */
const PUBACK = 0x40;
const PUBACK_LENGTH = 2;
const PUBACK_BYTES = 4;
/** Identifiers of properties (MQTT 5, section 2.2.2.2). */
const CONTENT_TYPE = 0x03;
const USER_PROPERTY = 0x26;
/** The packet type and the longest remaining length (section 2.1.4). */
const MAX_FIXED_HEADER_BYTES = 5;

export interface PacketToPublish {
  /** At most 65,535 bytes. */
  readonly topic: string;
  readonly qos: 0 | 1 | 2;
  readonly retain: boolean;
  /** For a quality of service above 0; it is not sent otherwise. */
  readonly identifier: number;
  /** Encoded, with their length; undefined for MQTT 3.1.1. */
  readonly properties: Uint8Array | undefined;
  readonly payload: Uint8Array;
}

export class PublishEncoder {
  readonly #slab = new Slab();
  readonly #write: (bytes: Uint8Array) => void;
  /** The last topic: the same for all events of a binding. */
  #topic = "";
  #topicBytes: Uint8Array = new Uint8Array(0);

  /** `write` gets what was encoded, in order; nothing writes to it again. */
  constructor(write: (bytes: Uint8Array) => void) {
    this.#write = write;
  }

  add({ topic, qos, retain, identifier, properties, payload }: PacketToPublish): void {
    if (topic !== this.#topic) {
      this.#topicBytes = Buffer.from(topic);
      this.#topic = topic;
    }
    const topicBytes = this.#topicBytes;
    const headerBytes = 2 + topicBytes.length + (qos > 0 ? 2 : 0) + (properties?.length ?? 0);
    const copied = payload.length <= MAX_COPIED_PAYLOAD_BYTES;
    const slab = this.#slab;
    slab.reserve(MAX_FIXED_HEADER_BYTES + headerBytes + (copied ? payload.length : 0));
    const { bytes } = slab;
    let { at } = slab;
    bytes[at++] = PUBLISH | qos << 1 | (retain ? 1 : 0);
    at = writeVariableByteInteger(bytes, headerBytes + payload.length, at);
    at = writeUint16(bytes, topicBytes.length, at);
    at = copyBytes(topicBytes, bytes, at);
    if (qos > 0) at = writeUint16(bytes, identifier, at);
    if (properties !== undefined) at = copyBytes(properties, bytes, at);
    if (copied) at = copyBytes(payload, bytes, at);
    slab.at = at;
    if (slab.full || !copied) this.flush();
    if (!copied) this.#write(payload);
  }

  flush(): void {
    const bytes = this.#slab.take();
    if (bytes.length > 0) this.#write(bytes);
  }
}

/** The properties of a PUBLISH packet with their length before them (MQTT 5, section 3.3.2.3). */
export function encodeProperties(contentType: string, userProperties: Readonly<Record<string, string>>): Uint8Array {
  const parts: Uint8Array[] = [Uint8Array.of(CONTENT_TYPE), utf8String(contentType)];
  for (const [name, value] of Object.entries(userProperties)) {
    parts.push(Uint8Array.of(USER_PROPERTY), utf8String(name), utf8String(value));
  }
  const properties = Buffer.concat(parts);
  const length = Buffer.alloc(4);
  return Buffer.concat([length.subarray(0, writeVariableByteInteger(length, properties.length, 0)), properties]);
}

/** A string with its length before it (section 1.5.4). Throws RangeError beyond 65,535 bytes. */
function utf8String(text: string): Uint8Array {
  const bytes = Buffer.from(text);
  if (bytes.length > 0xffff) throw new RangeError(`a string of ${bytes.length} bytes; MQTT allows 65535`);
  const encoded = Buffer.alloc(2 + bytes.length);
  copyBytes(bytes, encoded, writeUint16(encoded, bytes.length, 0));
  return encoded;
}

/** Takes the PUBACK packets that mean success out of the server's byte stream. */
export class PubackFilter {
  readonly #onPuback: (identifier: number) => void;
  /** The first bytes of a packet whose rest has not arrived. */
  #start: Buffer = Buffer.alloc(0);
  /** Bytes of another packet that are still to come. */
  #passing = 0;

  constructor(onPuback: (identifier: number) => void) {
    this.#onPuback = onPuback;
  }

  /** Returns what else the chunk holds. The first chunk must begin with a packet. */
  push(chunk: Buffer): Buffer {
    const bytes = this.#start.length === 0 ? chunk : Buffer.concat([this.#start, chunk]);
    this.#start = NOTHING;
    const others: Buffer[] = [];
    let at = Math.min(this.#passing, bytes.length);
    if (at > 0) others.push(bytes.subarray(0, at));
    this.#passing -= at;
    while (at < bytes.length) {
      if (bytes[at] === PUBACK && bytes[at + 1] === PUBACK_LENGTH && at + PUBACK_BYTES <= bytes.length) {
        this.#onPuback(bytes[at + 2]! << 8 | bytes[at + 3]!);
        at += PUBACK_BYTES;
        continue;
      }
      const packetBytes = packetLength(bytes, at);
      if (packetBytes === undefined || (bytes[at] === PUBACK && at + packetBytes > bytes.length)) {
        this.#start = bytes.subarray(at);
        break;
      }
      const end = Math.min(at + packetBytes, bytes.length);
      others.push(bytes.subarray(at, end));
      this.#passing = at + packetBytes - end;
      at = end;
    }
    return others.length === 1 ? others[0]! : Buffer.concat(others);
  }
}

const NOTHING = Buffer.alloc(0);

/** Of the packet that begins at `at`, its header included; undefined while too little of that has arrived. */
function packetLength(bytes: Buffer, at: number): number | undefined {
  let length = 0;
  for (let i = 1; i < MAX_FIXED_HEADER_BYTES; i++) {
    const byte = bytes[at + i];
    if (byte === undefined) return undefined;
    length += (byte & 0x7f) * 128 ** (i - 1);
    if (byte < 0x80) return length + 1 + i;
  }
  // Malformed: the parser that gets it says so.
  return MAX_FIXED_HEADER_BYTES;
}

/** Seven bits a byte, the lowest first (section 1.5.5). */
function writeVariableByteInteger(to: Buffer, value: number, at: number): number {
  let rest = value;
  let next = at;
  while (rest > 0x7f) {
    to[next++] = rest & 0x7f | 0x80;
    rest >>>= 7;
  }
  to[next++] = rest;
  return next;
}
