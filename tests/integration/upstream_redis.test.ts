import assert from "node:assert/strict";
import { test } from "node:test";
import { Redis } from "ioredis";
import { PermanentError } from "../../src/core/errors.ts";
import { COMMON_CONFIG, NO_TLS, TestLane, upstreamContract, walEvent } from "../support/upstream_contract.ts";
import type { RedisConfig, TlsConfig } from "../../src/config/config.ts";
import { consumeRedis } from "../support/consumers.ts";
import { startRedis } from "../support/servers.ts";

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

const TIMEOUT = { timeout: 180_000 };
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
