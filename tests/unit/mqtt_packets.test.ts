/** The encoder against mqtt-packet, mqtt.js's own parser. */

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { test } from "node:test";
import { encodeProperties, type PacketToPublish, PublishEncoder } from "../../src/upstreams/mqtt_packets.ts";

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
