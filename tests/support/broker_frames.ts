/**
 * Just enough of each broker's protocol to see from outside which messages it has acknowledged, and to withhold its
 * acknowledgements. Written apart from the client libraries that the program uses.
 */

import type { Direction, Filter } from "./tcp_relay.ts";

/** Cuts a stream into frames; `lengthOf` tells the length of the frame at `start`, undefined while too little is there. */
export class FrameSplitter {
  readonly #lengthOf: (bytes: Buffer, start: number) => number | undefined;
  #rest: Buffer = Buffer.alloc(0);

  constructor(lengthOf: (bytes: Buffer, start: number) => number | undefined) {
    this.#lengthOf = lengthOf;
  }

  push(chunk: Buffer): Buffer[] {
    const bytes = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]);
    const frames: Buffer[] = [];
    let start = 0;
    for (;;) {
      const length = start < bytes.length ? this.#lengthOf(bytes, start) : undefined;
      if (length === undefined || start + length > bytes.length) break;
      frames.push(bytes.subarray(start, start + length));
      start += length;
    }
    this.#rest = bytes.subarray(start);
    return frames;
  }
}

/** AMQP 0-9-1, section 4.2.3: type, channel (2), size (4), payload, end octet. What the server sends has no other form. */
export function amqpFrameLength(bytes: Buffer, start: number): number | undefined {
  return start + 7 > bytes.length ? undefined : bytes.readUInt32BE(start + 3) + 8;
}

/** MQTT 5, section 2.1: packet type, remaining length in up to four bytes of seven bits. */
export function mqttPacketLength(bytes: Buffer, start: number): number | undefined {
  let remaining = 0;
  for (let i = 0; i < 4; i++) {
    const byte = bytes[start + 1 + i];
    if (byte === undefined) return undefined;
    remaining += (byte & 0x7f) << (7 * i);
    if (byte < 0x80) return 2 + i + remaining;
  }
  throw new Error("malformed MQTT packet length");
}

/** RESP 2: a line, or `$length` with so many bytes, or `*count` with so many values. */
export function respLength(bytes: Buffer, start: number): number | undefined {
  const lineEnd = bytes.indexOf("\r\n", start);
  if (lineEnd === -1) return undefined;
  const count = Number(bytes.toString("latin1", start + 1, lineEnd));
  let end = lineEnd + 2;
  switch (String.fromCharCode(bytes[start] ?? 0)) {
    case "$":
      return count < 0 ? end - start : end + count + 2 - start;
    case "*":
      for (let i = 0; i < count; i++) {
        const length = end < bytes.length ? respLength(bytes, end) : undefined;
        if (length === undefined) return undefined;
        end += length;
      }
      return end - start;
    default:
      return end - start;
  }
}

/** While `on`, no publisher is told that its message was taken; all else passes, heartbeats among it. */
export interface Withholding {
  on: boolean;
}

export type BrokerKind = "amqp" | "mqtt" | "redis";

const AMQP_METHOD_FRAME = 1;
const AMQP_BASIC = 60;
const AMQP_BASIC_ACK = 80;
const MQTT_PUBACK = 4;
const REDIS_INTEGER = 0x3a;

const SPLIT_LENGTHS = { amqp: amqpFrameLength, mqtt: mqttPacketLength, redis: respLength } as const;

/** Drops the frames that acknowledge: `basic.ack`, PUBACK, the number that a PUBLISH is answered with. */
export function withholdAcknowledgements(kind: BrokerKind, withholding: Withholding): Filter {
  const splitter = new FrameSplitter(SPLIT_LENGTHS[kind]);
  const acknowledges = (frame: Buffer): boolean => {
    switch (kind) {
      case "amqp":
        return frame[0] === AMQP_METHOD_FRAME && frame.readUInt16BE(7) === AMQP_BASIC &&
          frame.readUInt16BE(9) === AMQP_BASIC_ACK;
      case "mqtt":
        return frame[0]! >> 4 === MQTT_PUBACK;
      case "redis":
        return frame[0] === REDIS_INTEGER;
    }
  };
  return (chunk) => Buffer.concat(splitter.push(chunk).filter((frame) => !withholding.on || !acknowledges(frame)));
}

/** Called with each message that the broker acknowledged; `receivers` is what Redis answers. */
export type OnAcknowledged = (id: string | undefined, payload: Buffer, receivers: number | undefined) => void;

/** Watches one connection of a publisher; changes nothing. */
export function observeAcknowledgements(
  kind: "mqtt" | "redis",
  onAcknowledged: OnAcknowledged,
): Record<Direction, Filter> {
  return kind === "mqtt" ? observeMqtt(onAcknowledged) : observeRedis(onAcknowledged);
}

interface MqttPublish {
  readonly packetId: number;
  readonly eventId: string | undefined;
  readonly payload: Buffer;
}

function observeMqtt(onAcknowledged: OnAcknowledged): Record<Direction, Filter> {
  const toServer = new FrameSplitter(mqttPacketLength);
  const toClient = new FrameSplitter(mqttPacketLength);
  const unanswered = new Map<number, MqttPublish>();
  let version = 4;
  return {
    toServer: (chunk) => {
      for (const packet of toServer.push(chunk)) {
        const type = packet[0]! >> 4;
        // CONNECT: the protocol's name, "MQTT" with its length, precedes the version (section 3.1.2.2).
        if (type === 1) version = packet[bodyStart(packet) + 6]!;
        const publish = type === 3 ? readPublish(packet, version) : undefined;
        if (publish !== undefined) unanswered.set(publish.packetId, publish);
      }
      return chunk;
    },
    toClient: (chunk) => {
      for (const packet of toClient.push(chunk)) {
        if (packet[0]! >> 4 !== MQTT_PUBACK) continue;
        const publish = unanswered.get(packet.readUInt16BE(bodyStart(packet)));
        // Reason codes from 0x80 on are failures; without one it is success (MQTT 5, section 3.4.2.1).
        const reason = packet[bodyStart(packet) + 2] ?? 0;
        if (publish === undefined || reason >= 0x80) continue;
        unanswered.delete(publish.packetId);
        onAcknowledged(publish.eventId, publish.payload, undefined);
      }
      return chunk;
    },
  };
}

function bodyStart(packet: Buffer): number {
  let start = 1;
  while (packet[start]! >= 0x80) start++;
  return start + 1;
}

/** Undefined for quality of service 0, which is never acknowledged. */
function readPublish(packet: Buffer, version: number): MqttPublish | undefined {
  if ((packet[0]! & 0x06) === 0) return undefined;
  let at = bodyStart(packet);
  at += 2 + packet.readUInt16BE(at);
  const packetId = packet.readUInt16BE(at);
  at += 2;
  if (version < 5) return { packetId, eventId: undefined, payload: packet.subarray(at) };
  let length = 0;
  for (let shift = 0;; shift += 7) {
    const byte = packet[at++]!;
    length += (byte & 0x7f) << shift;
    if (byte < 0x80) break;
  }
  const end = at + length;
  return { packetId, eventId: userProperty(packet, at, end, "id"), payload: packet.subarray(end) };
}

const CONTENT_TYPE = 0x03;
const USER_PROPERTY = 0x26;

function userProperty(packet: Buffer, start: number, end: number, wanted: string): string | undefined {
  let at = start;
  const text = () => {
    const length = packet.readUInt16BE(at);
    at += 2 + length;
    return packet.toString("utf8", at - length, at);
  };
  while (at < end) {
    switch (packet[at++]) {
      case CONTENT_TYPE:
        text();
        break;
      case USER_PROPERTY: {
        const [name, value] = [text(), text()];
        if (name === wanted) return value;
        break;
      }
      default:
        throw new Error(`unexpected MQTT property 0x${packet[at - 1]!.toString(16)}`);
    }
  }
  return undefined;
}

function observeRedis(onAcknowledged: OnAcknowledged): Record<Direction, Filter> {
  const toServer = new FrameSplitter(respLength);
  const toClient = new FrameSplitter(respLength);
  /** The payload for a PUBLISH, undefined for any other command; replies come in the order of the commands. */
  const unanswered: (Buffer | undefined)[] = [];
  let next = 0;
  return {
    toServer: (chunk) => {
      for (const command of toServer.push(chunk)) unanswered.push(publishedBy(command));
      return chunk;
    },
    toClient: (chunk) => {
      for (const reply of toClient.push(chunk)) {
        const payload = unanswered[next++];
        if (payload === undefined || reply[0] !== REDIS_INTEGER) continue;
        onAcknowledged(undefined, payload, Number(reply.toString("latin1", 1, reply.length - 2)));
      }
      if (next > 1_000) unanswered.splice(0, next), next = 0;
      return chunk;
    },
  };
}

/** `*3 $7 publish $n channel $m payload`. */
function publishedBy(command: Buffer): Buffer | undefined {
  const parts: Buffer[] = [];
  let at = command.indexOf("\r\n") + 2;
  while (at < command.length) {
    const lineEnd = command.indexOf("\r\n", at);
    const length = Number(command.toString("latin1", at + 1, lineEnd));
    parts.push(command.subarray(lineEnd + 2, lineEnd + 2 + length));
    at = lineEnd + 2 + length + 2;
  }
  return parts.length === 3 && parts[0]!.toString().toLowerCase() === "publish" ? parts[2] : undefined;
}
