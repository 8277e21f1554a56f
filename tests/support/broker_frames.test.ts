import assert from "node:assert/strict";
import { test } from "node:test";
import {
  amqpFrameLength,
  FrameSplitter,
  mqttPacketLength,
  observeAcknowledgements,
  respLength,
  withholdAcknowledgements,
} from "./broker_frames.ts";

const AMQP_ACK = Buffer.from([1, 0, 1, 0, 0, 0, 13, 0, 60, 0, 80, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0xce]);
const AMQP_HEARTBEAT = Buffer.from([8, 0, 0, 0, 0, 0, 0, 0xce]);
const MQTT_CONNECT_5 = Buffer.from([0x10, 13, 0, 4, 0x4d, 0x51, 0x54, 0x54, 5, 2, 0, 10, 0, 0, 0]);
const MQTT_PUBACK = Buffer.from([0x40, 2, 0, 9]);
const MQTT_REFUSED = Buffer.from([0x40, 3, 0, 9, 0x87]);
const MQTT_PINGRESP = Buffer.from([0xd0, 0]);

function text(value: string): Buffer {
  return Buffer.concat([Buffer.from([0, value.length]), Buffer.from(value)]);
}

function publishPacket(payload: string): Buffer {
  const properties = Buffer.concat([
    Buffer.from([0x03]),
    text("text/plain"),
    Buffer.from([0x26]),
    text("id"),
    text("0/1-2"),
  ]);
  const body = Buffer.concat([
    text("topic"),
    Buffer.from([0, 9, properties.length]),
    properties,
    Buffer.from(payload),
  ]);
  const length = [body.length & 0x7f | 0x80, body.length >> 7];
  return Buffer.concat([Buffer.from([0x32, ...length]), body]);
}

test("frames are found at every split point", () => {
  const streams = [
    [amqpFrameLength, [AMQP_ACK, AMQP_HEARTBEAT, AMQP_ACK]],
    [mqttPacketLength, [MQTT_CONNECT_5, publishPacket("x".repeat(200)), MQTT_PUBACK]],
    [
      respLength,
      ["+OK\r\n", "*3\r\n$7\r\npublish\r\n$1\r\na\r\n$4\r\n\r\n\r\n\r\n", "$-1\r\n", ":3\r\n"].map(Buffer.from),
    ],
  ] as const;
  for (const [lengthOf, frames] of streams) {
    const all = Buffer.concat(frames as Buffer[]);
    for (let split = 0; split <= all.length; split++) {
      const splitter = new FrameSplitter(lengthOf);
      const found = [...splitter.push(all.subarray(0, split)), ...splitter.push(all.subarray(split))];
      assert.deepEqual(found.map((frame) => frame.toString("hex")), frames.map((frame) => frame.toString("hex")));
    }
  }
});

test("acknowledgements are withheld, all else passes", () => {
  const withholding = { on: true };
  const amqp = withholdAcknowledgements("amqp", withholding);
  const mqtt = withholdAcknowledgements("mqtt", withholding);
  const redis = withholdAcknowledgements("redis", withholding);
  assert.deepEqual(amqp(Buffer.concat([AMQP_ACK, AMQP_HEARTBEAT])), AMQP_HEARTBEAT);
  assert.deepEqual(mqtt(Buffer.concat([MQTT_PUBACK, MQTT_PINGRESP])), MQTT_PINGRESP);
  assert.equal(redis(Buffer.from("+PONG\r\n:1\r\n")).toString(), "+PONG\r\n");
  withholding.on = false;
  assert.deepEqual(amqp(AMQP_ACK), AMQP_ACK);
  assert.deepEqual(mqtt(MQTT_PUBACK), MQTT_PUBACK);
});

test("MQTT: what was acknowledged is known by event id and payload", () => {
  const seen: string[] = [];
  const observer = observeAcknowledgements("mqtt", (id, payload) => seen.push(`${id} ${payload}`));
  observer.toServer(MQTT_CONNECT_5);
  observer.toServer(publishPacket("first"));
  observer.toClient(MQTT_REFUSED);
  observer.toClient(MQTT_PINGRESP);
  assert.deepEqual(seen, []);
  observer.toServer(publishPacket("second"));
  observer.toClient(MQTT_PUBACK);
  observer.toClient(MQTT_PUBACK);
  assert.deepEqual(seen, ["0/1-2 second"]);
});

test("Redis: what was acknowledged is known with the number of receivers", () => {
  const seen: string[] = [];
  const observer = observeAcknowledgements("redis", (_id, payload, receivers) => seen.push(`${payload} ${receivers}`));
  const publish = (payload: string) => `*3\r\n$7\r\npublish\r\n$1\r\na\r\n$${payload.length}\r\n${payload}\r\n`;
  observer.toServer(Buffer.from(`*1\r\n$4\r\nping\r\n${publish("one")}${publish("two")}${publish("three")}`));
  observer.toClient(Buffer.from("+PONG\r\n:1\r\n-OOM no\r\n"));
  assert.deepEqual(seen, ["one 1"]);
  observer.toClient(Buffer.from(":0\r\n"));
  assert.deepEqual(seen, ["one 1", "three 0"]);
});
