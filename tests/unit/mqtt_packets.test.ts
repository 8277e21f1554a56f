/** The encoder against mqtt-packet, mqtt.js's own parser. */

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { test } from "node:test";
import {
  encodeProperties,
  type PacketToPublish,
  PubackFilter,
  PublishEncoder,
} from "../../src/upstreams/mqtt_packets.ts";

interface Packet {
  readonly cmd: string;
  readonly topic: string;
  readonly qos: number;
  readonly retain: boolean;
  readonly dup: boolean;
  readonly messageId?: number;
  readonly payload: Buffer;
  readonly properties?: { readonly contentType?: string; readonly userProperties?: Record<string, string> };
}
interface Parser {
  on(event: "packet", listener: (packet: Packet) => void): void;
  on(event: "error", listener: (error: Error) => void): void;
  parse(bytes: Buffer): number;
}
const fromMqtt = createRequire(createRequire(import.meta.url).resolve("mqtt"));
const { parser } = fromMqtt("mqtt-packet") as { parser(options: { protocolVersion: number }): Parser };

function parseAll(chunks: readonly Uint8Array[], protocolVersion: 4 | 5): Packet[] {
  const packets: Packet[] = [];
  const parsing = parser({ protocolVersion });
  parsing.on("packet", (packet) => packets.push(packet));
  parsing.on("error", (error) => assert.fail(error));
  assert.equal(parsing.parse(Buffer.concat(chunks)), 0, "nothing is left over");
  return packets;
}

const PAYLOADS = [0, 1, 50, 115, 127, 128, 16_370, 16_384, 20_000, 300_000].map((length) => Buffer.alloc(length, 0x61));
const TOPICS = ["t", "a/b.c", "größe/λ", "x".repeat(65_535)];

for (const protocolVersion of [4, 5] as const) {
  test(`mqtt-packet parses what was encoded for protocol version ${protocolVersion}`, () => {
    const properties = { id: "0/1A-5", type: "wal", "ключ": "значение" };
    const encoded = protocolVersion === 5 ? encodeProperties("application/json", properties) : undefined;
    const chunks: Uint8Array[] = [];
    const encoder = new PublishEncoder((bytes) => chunks.push(bytes));
    const sent: PacketToPublish[] = [];
    let identifier = 1;
    for (const topic of TOPICS) {
      for (const qos of [0, 1, 2] as const) {
        for (const payload of PAYLOADS) {
          sent.push({ topic, qos, retain: identifier % 3 === 0, identifier, properties: encoded, payload });
          identifier = identifier * 7 % 65_536;
        }
      }
    }
    for (const [index, packet] of sent.entries()) {
      encoder.add(packet);
      if (index % 4 === 0) encoder.flush();
    }
    encoder.flush();
    const packets = parseAll(chunks, protocolVersion);
    assert.equal(packets.length, sent.length);
    for (const [index, packet] of packets.entries()) {
      const wanted = sent[index]!;
      assert.equal(packet.cmd, "publish");
      assert.equal(packet.topic, wanted.topic);
      assert.equal(packet.qos, wanted.qos);
      assert.equal(packet.retain, wanted.retain);
      assert.equal(packet.dup, false);
      if (wanted.qos > 0) assert.equal(packet.messageId, wanted.identifier);
      assert.ok(Buffer.from(packet.payload).equals(wanted.payload));
      if (protocolVersion === 5) {
        assert.equal(packet.properties?.contentType, "application/json");
        assert.deepEqual({ ...packet.properties?.userProperties }, properties);
      }
    }
  });
}

test("properties longer than 127 bytes have a length of two bytes, and none may pass 65,535", () => {
  const encoded = encodeProperties("text/plain", { id: "i".repeat(200) });
  const chunks: Uint8Array[] = [];
  const encoder = new PublishEncoder((bytes) => chunks.push(bytes));
  encoder.add({ topic: "t", qos: 1, retain: false, identifier: 9, properties: encoded, payload: Buffer.from("p") });
  encoder.flush();
  assert.equal(parseAll(chunks, 5)[0]?.properties?.userProperties?.id, "i".repeat(200));
  assert.throws(() => encodeProperties("text/plain", { id: "i".repeat(65_536) }), /MQTT allows 65535/);
});

/** Acknowledgements among other packets: a long PUBLISH, a PINGRESP, a PUBACK with a reason. */
const OTHERS = [
  Buffer.concat([Buffer.from([0x30, 0xc8, 0x01]), Buffer.alloc(200, 0x40)]),
  Buffer.from([0xd0, 0x00]),
  Buffer.from([0x40, 0x03, 0x00, 0x07, 0x87]),
];
const STREAM = Buffer.concat([
  Buffer.from([0x40, 2, 0, 1, 0x40, 2, 0, 2]),
  OTHERS[0]!,
  Buffer.from([0x40, 2, 0xff, 0xff]),
  OTHERS[1]!,
  OTHERS[2]!,
  Buffer.from([0x40, 2, 0x40, 2, 0x40, 2, 0, 3]),
]);
const IDENTIFIERS = [1, 2, 0xffff, 0x4002, 3];

function filterIn(chunks: readonly Buffer[]): { identifiers: number[]; rest: Buffer } {
  const identifiers: number[] = [];
  const filter = new PubackFilter((identifier) => identifiers.push(identifier));
  return { rest: Buffer.concat(chunks.map((chunk) => filter.push(chunk))), identifiers };
}

test("acknowledgements are taken out of the stream wherever it is cut in two, and the rest is passed on", () => {
  for (let cut = 0; cut <= STREAM.length; cut++) {
    const { identifiers, rest } = filterIn([STREAM.subarray(0, cut), STREAM.subarray(cut)]);
    assert.deepEqual(identifiers, IDENTIFIERS, `cut at ${cut}`);
    assert.ok(rest.equals(Buffer.concat(OTHERS)), `cut at ${cut}`);
  }
  const { identifiers, rest } = filterIn([...STREAM].map((byte) => Buffer.from([byte])));
  assert.deepEqual(identifiers, IDENTIFIERS);
  assert.ok(rest.equals(Buffer.concat(OTHERS)));
});

test("a malformed length reaches the parser", () => {
  const malformed = Buffer.from([0x30, 0xff, 0xff, 0xff, 0xff, 0xff]);
  assert.ok(filterIn([malformed]).rest.length >= 5);
});
