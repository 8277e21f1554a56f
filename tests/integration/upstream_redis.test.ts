import assert from "node:assert/strict";
import { test } from "node:test";
import { Redis } from "ioredis";
import { PermanentError } from "../../src/core/errors.ts";
import {
  COMMON_CONFIG,
  NO_TLS,
  notifyEvent,
  TestLane,
  upstreamContract,
  walEvent,
} from "../support/upstream_contract.ts";
import type { RedisConfig, TlsConfig } from "../../src/config/config.ts";
import { consumeRedis, consumeRedisStream } from "../support/consumers.ts";
import { uniqueName } from "../support/scenario.ts";
import { sharedServer, startRedis } from "../support/servers.ts";

const TARGET = { type: "topic", name: "contract" };

function config(uri: string, tls: TlsConfig = NO_TLS): RedisConfig {
  return { ...COMMON_CONFIG, kind: "redis", uri, maxlen: undefined, tls };
}

upstreamContract({
  title: "redis",
  target: TARGET,
  startServer: startRedis,
  config,
  consume: (uri) => consumeRedis(uri, TARGET.name),
  keyOf: () => TARGET.name,
  clientCertificateConfig: ["tls-auth-clients yes"],
  refusedLogin: async () => {
    const server = await startRedis({ config: ["requirepass the-right-one"] });
    return {
      config: config(server.uri.replace("://", "://:a-wr0ng-s3cret@")),
      secret: "a-wr0ng-s3cret",
      close: () => server.stop(),
    };
  },
});

const STREAM = { type: "stream", name: "contract stream" };

upstreamContract({
  title: "redis stream",
  target: STREAM,
  startServer: startRedis,
  config,
  consume: (uri) => consumeRedisStream(uri, STREAM.name),
  keyOf: ({ routingKey }) => routingKey,
  clientCertificateConfig: ["tls-auth-clients yes"],
  refusedLogin: async () => {
    const server = await startRedis({ config: ["requirepass the-right-one"] });
    return {
      config: config(server.uri.replace("://", "://:a-wr0ng-s3cret@")),
      secret: "a-wr0ng-s3cret",
      close: () => server.stop(),
    };
  },
});

const TIMEOUT = { timeout: 180_000 };

test("redis: a stream stores what was sent, with its id, and keeps about as much as maxlen says", TIMEOUT, async () => {
  const { uri } = await sharedServer("redis");
  const redis = new Redis(uri);
  const stream = { type: "stream", name: uniqueName("stream") };
  try {
    const lane = await TestLane.open({ ...config(uri), maxlen: 100 }, [stream]);
    const events = Array.from({ length: 1_000 }, (_, i) => walEvent(`{"n":${i}}`));
    lane.send(stream, ...events, notifyEvent("text", { routingKey: "key" }));
    await lane.answered();
    const entries = await redis.xrange(stream.name, "-", "+");
    // Whole nodes of 100 entries are removed (redis.conf, stream-node-max-entries).
    assert.ok(entries.length >= 100 && entries.length <= 300, `${entries.length} entries`);
    const last = (i: number) => entries.at(i)?.[1];
    const { id } = events[999]!;
    assert.deepEqual(last(-2), ["id", id, "key", "public.orders.insert", "payload", '{"n":999}', "type", "wal"]);
    assert.deepEqual(last(-1)?.slice(2), ["key", "key", "payload", "text", "type", "notify"]);
    await lane.close();
  } finally {
    await redis.del(stream.name);
    redis.disconnect();
  }
});

test(
  "redis: a key that is no stream is told at the start, and refuses events when it appears later",
  TIMEOUT,
  async () => {
    const { uri } = await sharedServer("redis");
    const redis = new Redis(uri);
    const stream = { type: "stream", name: uniqueName("stream") };
    try {
      const lane = await TestLane.open(config(uri), [stream]);
      await redis.set(stream.name, "a string");
      const [refused] = lane.send(stream, walEvent("1"));
      await lane.answered();
      assert.match(refused!.refusal ?? "", /^Redis refused it: WRONGTYPE /);
      await lane.close();
      await assert.rejects(TestLane.open(config(uri), [stream]), (error) => {
        assert.ok(error instanceof PermanentError, String(error));
        assert.match(error.message, /^Redis holds a string under the key "stream_.*remove it, or name another key$/);
        return true;
      });
    } finally {
      await redis.del(stream.name);
      redis.disconnect();
    }
  },
);
const signal = new AbortController().signal;

test("redis: a user who may only publish, and only to one channel", TIMEOUT, async () => {
  const server = await startRedis({ config: ["user proxy on >pass%w0rd resetchannels &allowed -@all +publish"] });
  try {
    const lane = await TestLane.open(config(server.uri.replace("://", "://proxy:pass%25w0rd@")), [TARGET]);
    const [first] = lane.send({ type: "topic", name: "allowed" }, walEvent("1"));
    const [refused] = lane.send({ type: "topic", name: "forbidden" }, walEvent("2"));
    const [last] = lane.send({ type: "topic", name: "allowed" }, walEvent("3"));
    await lane.answered();
    assert.equal(first!.outcome, "acknowledged");
    assert.match(refused!.refusal ?? "", /^Redis refused it: NOPERM /);
    assert.equal(last!.outcome, "acknowledged");
    await lane.close();
  } finally {
    await server.stop();
  }
});

test("redis: a missing password and a database that does not exist are permanent", TIMEOUT, async () => {
  const server = await startRedis({ config: ["requirepass secret", "databases 4"] });
  try {
    const permanent = (uri: string, expected: RegExp) =>
      assert.rejects(TestLane.open(config(uri), [TARGET]), (error) => {
        assert.ok(error instanceof PermanentError, String(error));
        assert.match(error.message, expected);
        return true;
      });
    await permanent(server.uri, /refused a login without a password: NOAUTH .*; correct the user name and password/);
    await permanent(server.uri.replace("://", "://:secret@") + "/9", /refused database 9: .*; correct the path of uri/);
    const lane = await TestLane.open(config(server.uri.replace("://", "://:secret@") + "/3"), [TARGET]);
    lane.send(TARGET, walEvent("in database 3"));
    await lane.answered();
    await lane.close();
  } finally {
    await server.stop();
  }
});

test("redis: an error that is the server's state, not the event's fault, ends the session", TIMEOUT, async () => {
  const server = await startRedis({ config: ["lua-time-limit 1"] });
  const other = new Redis(server.uri, { retryStrategy: () => null });
  other.on("error", () => {});
  try {
    const lane = await TestLane.open(config(server.uri), [TARGET]);
    const looping = other.eval("while true do end", 0).catch(() => {});
    // Without an answer to this, the loop has not begun.
    const admin = new Redis(server.uri, { enableReadyCheck: false, retryStrategy: () => null });
    admin.on("error", () => {});
    let busy = false;
    while (!busy) busy = await admin.ping().then(() => false, (error: Error) => error.message.startsWith("BUSY"));
    lane.send(TARGET, walEvent("1"), walEvent("2"));
    const cause = await lane.lost();
    assert.match(cause.message, /BUSY/);
    assert.ok(!(cause instanceof PermanentError));
    assert.equal(lane.unanswered, 2);
    await admin.script("KILL");
    await looping;
    const next = await TestLane.open(lane.upstream, [TARGET]);
    next.send(TARGET, walEvent("1"), walEvent("2"));
    await next.answered();
    await next.close();
    admin.disconnect();
  } finally {
    other.disconnect();
    await server.stop();
  }
});

test("redis: a URI that cannot be used is told without the URI", async () => {
  const cases: [string, RegExp][] = [
    ["amqp://host", /^uri begins with amqp:\/\/; write one of redis:\/\/, rediss:\/\/$/],
    ["redis://host/one", /^the path of uri is "one"; write the number of the database/],
    ["redis://:secret%zz@host", /^the password in uri holds a %/],
    ["secret", /^uri is not a valid URI/],
  ];
  for (const [uri, expected] of cases) {
    await assert.rejects(TestLane.open(config(uri), [TARGET], signal), (error) => {
      assert.ok(error instanceof PermanentError);
      assert.match(error.message, expected);
      assert.doesNotMatch(error.message, /secret/);
      return true;
    });
  }
});
