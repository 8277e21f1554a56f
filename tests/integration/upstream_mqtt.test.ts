import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import type { MqttConfig, TlsConfig } from "../../src/config/config.ts";
import { ChannelRejectedError, PermanentError } from "../../src/core/errors.ts";
import { consumeMqtt } from "../support/consumers.ts";
import { freePort, type Server, startMosquitto } from "../support/servers.ts";
import {
  COMMON_CONFIG,
  NO_TLS,
  notifyEvent,
  TestLane,
  upstreamContract,
  walEvent,
} from "../support/upstream_contract.ts";

const TARGET = { type: "topic", name: "contract/events" };
const TIMEOUT = { timeout: 180_000 };

function config(uri: string, tls: TlsConfig = NO_TLS, more: Partial<MqttConfig> = {}): MqttConfig {
  return {
    ...COMMON_CONFIG,
    kind: "mqtt",
    uri,
    tls,
    username: undefined,
    password: undefined,
    clientId: undefined,
    qos: 1,
    retain: false,
    topicSeparator: ".",
    protocolVersion: 4,
    ...more,
  };
}

/** With 0, which means no limit, Mosquitto 2.0.11 ends the connection after it has refused a message. */
const QUEUED_MESSAGES = ["max_queued_messages 100000"];

/** A broker that knows one user, `proxy` with the password `right`. */
async function startGuarded(lines: readonly string[] = []): Promise<{ server: Server; close(): Promise<void> }> {
  const dir = mkdtempSync(join(tmpdir(), "pg-event-proxy-test-passwords-"));
  const file = join(dir, "passwords");
  execFileSync("mosquitto_passwd", ["-b", "-c", file, "proxy", "right"], { stdio: "ignore" });
  const server = await startMosquitto({ config: ["allow_anonymous false", `password_file ${file}`, ...lines] });
  return {
    server,
    close: async () => {
      await server.stop();
      rmSync(dir, { recursive: true, force: true });
    },
  };
}

for (
  const [title, more] of [
    ["mqtt 3.1.1, QoS 1", {}],
    ["mqtt 5, QoS 2", { protocolVersion: 5, qos: 2 }],
  ] as const
) {
  upstreamContract({
    title,
    target: TARGET,
    startServer: startMosquitto,
    config: (uri, tls) => config(uri, tls, more),
    consume: (uri) => consumeMqtt(uri, "#", { qos: 2 }),
    keyOf: ({ type, routingKey }) => type === "wal" || routingKey === "" ? TARGET.name : `${TARGET.name}.${routingKey}`,
    clientCertificateConfig: ["require_certificate true"],
    refusedLogin: async () => {
      const { server, close } = await startGuarded();
      return {
        config: config(server.uri, NO_TLS, { ...more, username: "proxy", password: "a-wr0ng-s3cret" }),
        secret: "a-wr0ng-s3cret",
        close,
      };
    },
  });
}

let started: Promise<Server> | undefined;
const mosquitto = () => started ??= startMosquitto({ config: QUEUED_MESSAGES });
after(async () => {
  await (await started)?.stop();
});

test("mqtt: user name and password from the configuration, or from the URI", TIMEOUT, async () => {
  const { server, close } = await startGuarded();
  try {
    const inUri = server.uri.replace("://", "://proxy:right@");
    const accepted = [
      config(server.uri, NO_TLS, { username: "proxy", password: "right" }),
      config(inUri),
      config(inUri.replace("mqtt:", "tcp:"), NO_TLS, { protocolVersion: 5 }),
      config(server.uri.replace("://", "://proxy:wrong@"), NO_TLS, { password: "right" }),
    ];
    for (const mqttConfig of accepted) {
      const lane = await TestLane.open(mqttConfig, [TARGET]);
      lane.send(TARGET, walEvent("x"));
      await lane.answered();
      await lane.close();
    }
    for (const protocolVersion of [4, 5] as const) {
      await assert.rejects(TestLane.open(config(server.uri, NO_TLS, { protocolVersion }), [TARGET]), (error) => {
        assert.ok(error instanceof PermanentError, String(error));
        assert.match(error.message, /refused a login without a user name: .*; (set|correct) username and password/);
        return true;
      });
    }
  } finally {
    await close();
  }
});

test("mqtt: every quality of service arrives, retained if so configured", TIMEOUT, async () => {
  const { uri } = await mosquitto();
  for (const qos of [0, 1, 2] as const) {
    for (const protocolVersion of [4, 5] as const) {
      const target = { type: "topic", name: `retained/${qos}/${protocolVersion}` };
      const consumer = await consumeMqtt(uri, target.name, { qos: 2 });
      const lane = await TestLane.open(config(uri, NO_TLS, { qos, retain: true, protocolVersion }), [target]);
      lane.send(target, ...Array.from({ length: 3_000 }, (_, i) => walEvent(`${i}`)));
      await lane.answered();
      assert.ok(lane.sent.every(({ outcome }) => outcome === "acknowledged"));
      const received = await consumer.waitFor(3_000);
      assert.deepEqual(received.map(({ text }) => text), lane.sent.map((_, i) => `${i}`));
      assert.ok(received.every((message) => message.qos === qos));
      const late = await consumeMqtt(uri, target.name);
      assert.deepEqual((await late.waitFor(1)).map(({ text, retain }) => [text, retain]), [["2999", true]]);
      await lane.close();
      await late.close();
      await consumer.close();
    }
  }
});

test("mqtt 5: properties carry content type, id, type and application", TIMEOUT, async () => {
  const { uri } = await mosquitto();
  const consumer = await consumeMqtt(uri, "properties/#", { protocolVersion: 5 });
  const target = { type: "topic", name: "properties/x" };
  const lane = await TestLane.open(config(uri, NO_TLS, { protocolVersion: 5 }), [target]);
  lane.send(target, walEvent("{}", { id: "0/16B3748-3" }), notifyEvent("text", { id: "n1" }));
  await lane.answered();
  const received = await consumer.waitFor(2);
  assert.deepEqual(received.map(({ properties }) => [properties?.contentType, { ...properties?.userProperties }]), [
    ["application/json", { id: "0/16B3748-3", type: "wal", app_id: "pg-event-proxy" }],
    ["text/plain; charset=utf-8", { id: "n1", type: "notify", app_id: "pg-event-proxy" }],
  ]);
  await lane.close();
  await consumer.close();
});

test("mqtt: topics: routing key and separator for notifications, the target for WAL events", TIMEOUT, async () => {
  const { uri } = await mosquitto();
  const consumer = await consumeMqtt(uri, ["topics", "topics/#"]);
  const target = { type: "topic", name: "topics" };
  const lane = await TestLane.open(config(uri, NO_TLS, { topicSeparator: "/" }), [target]);
  lane.send(target, walEvent("{}"), notifyEvent("x"), notifyEvent("x", { routingKey: "a/b" }));
  await lane.answered();
  assert.deepEqual((await consumer.waitFor(3)).map(({ topic }) => topic), ["topics", "topics", "topics/a/b"]);
  await lane.close();
  await consumer.close();
});

test("mqtt: a topic that would end the connection is refused, and the connection lives on", TIMEOUT, async () => {
  const { uri } = await mosquitto();
  const lane = await TestLane.open(config(uri), [TARGET]);
  const keys: [string, RegExp][] = [
    ["a+b", /it holds "\+"/],
    ["#", /it holds "#"/],
    ["a\0b", /it holds a NUL character/],
    ["ü".repeat(33_000), /it has 66016 bytes; MQTT allows 65535/],
  ];
  lane.send(TARGET, walEvent("before"));
  lane.send(TARGET, ...keys.map(([routingKey]) => notifyEvent("x", { routingKey })));
  const [last] = lane.send(TARGET, walEvent("after"));
  await lane.answered();
  for (const [i, [, expected]] of keys.entries()) assert.match(lane.sent[i + 1]!.refusal ?? "", expected);
  assert.equal(last!.outcome, "acknowledged");
  await lane.close();
  for (const name of ["", "all/#", "a/+/b"]) {
    await assert.rejects(TestLane.open(config(uri), [{ type: "topic", name }]), PermanentError);
  }
});

test("mqtt 5: what the server refuses by its acknowledgement is refused", TIMEOUT, async () => {
  const acl = join(mkdtempSync(join(tmpdir(), "pg-event-proxy-test-acl-")), "acl");
  writeFileSync(acl, "topic write allowed\n");
  const server = await startMosquitto({ config: [`acl_file ${acl}`, ...QUEUED_MESSAGES] });
  try {
    const [allowed, forbidden] = ["allowed", "forbidden"].map((name) => ({ type: "topic", name }));
    for (const qos of [1, 2] as const) {
      const lane = await TestLane.open(config(server.uri, NO_TLS, { protocolVersion: 5, qos }), [allowed!]);
      const [refused] = lane.send(forbidden!, walEvent("x"));
      const [accepted] = lane.send(allowed!, walEvent("x"));
      await lane.answered();
      assert.equal(refused!.refusal, "the MQTT server refused it: 0x87 (Not authorized)");
      assert.equal(accepted!.outcome, "acknowledged");
      await lane.close();
    }
  } finally {
    await server.stop();
    rmSync(join(acl, ".."), { recursive: true, force: true });
  }
});

test("mqtt 5: the server's limits of packet size and window are kept", TIMEOUT, async () => {
  const server = await startMosquitto({ config: ["max_packet_size 1000", "max_inflight_messages 5"] });
  try {
    const lane = await TestLane.open(config(server.uri, NO_TLS, { protocolVersion: 5 }), [TARGET]);
    const [tooLarge] = lane.send(TARGET, walEvent(Buffer.alloc(1_000, "x")));
    lane.send(TARGET, ...Array.from({ length: 2_000 }, () => walEvent("x")));
    await lane.answered();
    assert.match(tooLarge!.refusal ?? "", /its packet has \d+ bytes; the limit is 1000/);
    assert.equal(lane.sent.filter(({ outcome }) => outcome === "acknowledged").length, 2_000);
    await lane.close();
    // With version 3.1.1 the server ends the connection without a word.
    const silent = await TestLane.open(config(server.uri), [TARGET]);
    silent.send(TARGET, walEvent(Buffer.alloc(1_000, "x")));
    const cause = await silent.lost();
    assert.ok(!(cause instanceof PermanentError) && !(cause instanceof ChannelRejectedError), String(cause));
  } finally {
    await server.stop();
  }
});

test("mqtt 5: a quality of service or retaining that the server does not offer is permanent", TIMEOUT, async () => {
  const server = await startMosquitto({ config: ["max_qos 1", "retain_available false"] });
  try {
    const permanent = (more: Partial<MqttConfig>, expected: RegExp) =>
      assert.rejects(TestLane.open(config(server.uri, NO_TLS, { protocolVersion: 5, ...more }), [TARGET]), (error) => {
        assert.ok(error instanceof PermanentError, String(error));
        assert.match(error.message, expected);
        return true;
      });
    await permanent({ qos: 2 }, /allows a quality of service up to 1; set qos=1$/);
    await permanent({ retain: true }, /keeps no retained messages; set retain=false$/);
  } finally {
    await server.stop();
  }
});

test("mqtt 5: a DISCONNECT that blames what was sent has the lane look for the event", TIMEOUT, async () => {
  const { uri } = await mosquitto();
  const lane = await TestLane.open(config(uri, NO_TLS, { protocolVersion: 5 }), [TARGET]);
  // Mosquitto allows 200 levels.
  lane.send(TARGET, walEvent("x"), notifyEvent("x", { routingKey: "/".repeat(300) }));
  const cause = await lane.lost();
  assert.ok(cause instanceof ChannelRejectedError, String(cause));
  assert.match(cause.message, /the server ended it with reason 0x8[12]/);
});

test("mqtt: over WebSocket", TIMEOUT, async () => {
  const port = await freePort();
  const dir = mkdtempSync(join(tmpdir(), "pg-event-proxy-test-websocket-"));
  writeFileSync(join(dir, "websocket.conf"), `listener ${port} 127.0.0.1\nprotocol websockets\n`);
  const server = await startMosquitto({ config: [`include_dir ${dir}`] });
  try {
    const lane = await TestLane.open(config(`ws://127.0.0.1:${port}/mqtt`), [TARGET]);
    lane.send(TARGET, ...Array.from({ length: 1_000 }, () => walEvent("x")), walEvent(Buffer.alloc(500_000, "x")));
    await lane.answered();
    await lane.close();
  } finally {
    await server.stop();
    rmSync(dir, { recursive: true, force: true });
  }
});

test("mqtt: a second session with the same client id takes over from the first", TIMEOUT, async () => {
  const { uri } = await mosquitto();
  for (const protocolVersion of [4, 5] as const) {
    const mqttConfig = config(uri, NO_TLS, { clientId: "the-same", protocolVersion });
    const first = await TestLane.open(mqttConfig, [TARGET]);
    const second = await TestLane.open(mqttConfig, [TARGET]);
    const cause = await first.lost();
    assert.match(cause.message, /^the connection to the MQTT server was lost: /);
    second.send(TARGET, walEvent("x"));
    await second.answered();
    await second.close();
  }
});
