/** Health and who may ask for what, over HTTP. */

import assert from "node:assert/strict";
import process from "node:process";
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { health, httpBase, LISTEN_ENV, rawRequest, waitForHealth } from "../support/http.ts";
import { runProxy } from "../support/proxy.ts";
import { bridgeEnv, printedEvents, scenario, type Scope, uniqueName, waitForPrinted } from "../support/scenario.ts";
import { startPostgres, startRedis } from "../support/servers.ts";
import { until } from "../support/wait.ts";

async function terminalEnv(scope: Scope): Promise<Record<string, string>> {
  const database = await scope.database();
  return { ...bridgeEnv({ uri: database.uri, kind: "stdout", bindings: "events->topic:t" }), ...LISTEN_ENV };
}

scenario("the token guards everything but health", async (scope) => {
  const proxy = scope.proxy({
    env: { ...await terminalEnv(scope), "PGPROXY_HTTP-TOKEN_FILE": "token" },
    files: { token: "s3cret/+~\n" },
  });
  const base = await httpBase(proxy);
  assert.match(base, /^http:\/\/127\.0\.0\.1:\d+$/, "a port alone means 127.0.0.1");
  await proxy.waitForReady();
  assert.equal((await health(base, "/health/live")).code, 200);
  assert.deepEqual(await health(base), { code: 200, status: "ready", reasons: [] });

  const basic = (text: string) => `Basic ${Buffer.from(text).toString("base64")}`;
  const status = async (authorization?: string, path = "/nothing") => {
    const response = await fetch(base + path, authorization === undefined ? {} : { headers: { authorization } });
    await response.text();
    return response.status;
  };
  for (const path of ["/", "/metrics", "/stream", "/nothing", "/health", "/health/live/"]) {
    assert.equal(await status(undefined, path), 401, path);
  }
  for (const wrong of ["Bearer", "Bearer x", "Bearer s3cret/+", "Bearer s3cret/+~x", "s3cret/+~", basic("u:x")]) {
    assert.equal(await status(wrong), 401, wrong);
  }
  for (const right of ["Bearer s3cret/+~", "bearer  s3cret/+~", basic("u:s3cret/+~"), basic(":s3cret/+~")]) {
    assert.equal(await status(right), 404, right);
  }
  const page = await fetch(base, { headers: { authorization: "Bearer s3cret/+~" } });
  assert.equal(page.status, 200);
  assert.ok((await page.arrayBuffer()).byteLength < 100_000, "the page is in one small piece");
  const asked = await fetch(base, { headers: { accept: "text/html" } });
  assert.match(asked.headers.get("www-authenticate") ?? "", /^Basic /);
  assert.ok(!(await asked.text()).includes("s3cret"));
  assert.ok(!proxy.stderr.includes("s3cret"));
});

scenario("slow and oversized requests are cut off, and other sites' pages sent away", async (scope) => {
  const proxy = scope.proxy({ env: await terminalEnv(scope) });
  const base = await httpBase(proxy);
  const get = (headers: string) => rawRequest(base, `GET /metrics HTTP/1.1\r\nConnection: close\r\n${headers}`);
  const [silent, slow, large, body, foreign, own] = await Promise.all([
    rawRequest(base, ""),
    get("Host: localhost\r\nX: "),
    get(`Host: localhost\r\nX: ${"x".repeat(50_000)}\r\n\r\n`),
    get("Host: localhost\r\nContent-Length: 1000000000\r\n\r\nabc"),
    get("Host: example.com\r\n\r\n"),
    get("Host: localhost:1\r\n\r\n"),
  ]);
  assert.ok(!/^HTTP\/1\.1 200/.test(silent + slow + large), "none of them was a request");
  assert.match(body, /^HTTP\/1\.1 413/);
  assert.match(foreign, /^HTTP\/1\.1 403/);
  assert.match(own, /^HTTP\/1\.1 200/);
  const posted = await fetch(`${base}/health/live`, { method: "POST" });
  assert.equal(posted.status, 405);
  assert.equal((await health(base, "/health/live")).code, 200);
});

scenario("an address that is taken ends the program with the remedy", async (scope) => {
  const env = await terminalEnv(scope);
  const first = scope.proxy({ env });
  const { port } = new URL(await httpBase(first));
  const { code, stderr } = await runProxy({ env: { ...env, "PGPROXY_HTTP-LISTEN": `127.0.0.1:${port}` } });
  assert.equal(code, 1);
  assert.match(stderr, new RegExp(`listening at 127\\.0\\.0\\.1 port ${port} failed: .*; set listen in \\[http\\]`));
});

scenario("an instance that stands by is live and says so, and takes over", async (scope) => {
  const database = await scope.database();
  const slot = uniqueName("slot");
  const bindings = "events->topic:t, wal2json->topic:t";
  const env = { ...bridgeEnv({ uri: database.uri, slot, kind: "stdout", bindings }), ...LISTEN_ENV };
  scope.defer(() => database.sql`select pg_drop_replication_slot(${slot})`);
  const first = await scope.readyProxy({ env });
  const second = scope.proxy({ env });
  const base = await httpBase(second);
  const standing = await waitForHealth(base, ({ status }) => status === "standing by");
  assert.equal(standing.code, 503);
  assert.ok(standing.reasons.some((reason) => reason.startsWith("local: source notify is standing by: ")));
  const live = await health(base, "/health/live");
  assert.deepEqual([live.code, live.status], [200, "standing by"]);
  assert.equal((await health(base, "/health/ready?standby=ok")).code, 200);
  await first.stop();
  await waitForHealth(base, ({ code, status }) => code === 200 && status === "ready");
});

scenario("an upstream that is away, and one that comes back", async (scope) => {
  const database = await scope.database();
  const redis = scope.keep(await startRedis());
  const proxy = scope.proxy({
    env: {
      ...bridgeEnv({ uri: database.uri, kind: "redis", upstreamUri: redis.uri, bindings: "events->topic:t" }),
      ...LISTEN_ENV,
    },
  });
  const base = await httpBase(proxy);
  await proxy.waitForReady();
  await redis.kill();
  const away = await waitForHealth(base, ({ code }) => code === 503);
  assert.equal(away.status, "not ready");
  assert.match(away.reasons[0] ?? "", /^local: redis upstream "local" is connecting(: .+)?$/);
  const live = await health(base, "/health/live");
  assert.deepEqual([live.code, live.status], [200, "not ready"]);
  await redis.start();
  await waitForHealth(base, ({ code }) => code === 200);
});

scenario("a connection that is open but silent is not ready", async (scope) => {
  const server = scope.keep(await startPostgres({ settings: { wal_sender_timeout: "12s" } }));
  const database = await scope.database(server);
  const proxy = scope.proxy({
    env: { ...bridgeEnv({ uri: database.uri, kind: "stdout", bindings: "wal2json->topic:t" }), ...LISTEN_ENV },
  });
  const base = await httpBase(proxy);
  await proxy.waitForReady();
  server.freeze();
  try {
    const silent = await waitForHealth(base, ({ code }) => code === 503);
    assert.match(
      silent.reasons.join("\n"),
      /source wal pg_event_proxy is silent: PostgreSQL at .* is silent for \d+ s/,
    );
  } finally {
    server.thaw();
  }
  await waitForHealth(base, ({ code }) => code === 200);
});

scenario("contents are streamed to the page only when asked for", async (scope) => {
  const { uri, sql } = await scope.database();
  const env = { ...bridgeEnv({ uri, kind: "stdout", bindings: "events->topic:t" }), ...LISTEN_ENV };
  for (const shown of [false, true]) {
    const proxy = await scope.readyProxy({ env: { ...env, "PGPROXY_HTTP-SHOW_PAYLOADS": String(shown) } });
    const base = await httpBase(proxy);
    await sql`notify events, 'a key|a secret text'`;
    await waitForPrinted(proxy, 1);
    const stop = new AbortController();
    const response = await fetch(`${base}/stream`, { signal: stop.signal });
    assert.equal(response.headers.get("content-type"), "text/event-stream");
    let text = "";
    for await (const chunk of response.body!) {
      text += Buffer.from(chunk).toString();
      if (/"last":\{[^}]*\}.*\n\n/.test(text)) break;
    }
    stop.abort();
    assert.match(text, /^event: history\ndata: .*\n\nevent: status\n/);
    assert.equal(text.includes("a secret text") && text.includes('"routingKey":"a key"'), shown);
    await proxy.stop();
  }
});

scenario("pages beyond the twentieth are refused, and those that are closed make room", async (scope) => {
  const proxy = scope.proxy({ env: await terminalEnv(scope) });
  const url = `${await httpBase(proxy)}/stream`;
  const stop = new AbortController();
  const open = () => fetch(url, { signal: stop.signal });
  const opened = await Promise.all(Array.from({ length: 20 }, open));
  assert.deepEqual(new Set(opened.map(({ status }) => status)), new Set([200]));
  assert.equal((await fetch(url)).status, 503);
  stop.abort();
  await until(async () => {
    const again = new AbortController();
    const { status } = await fetch(url, { signal: again.signal });
    again.abort();
    return status === 200;
  }, { what: "room for another page" });
  const { code } = await proxy.stop();
  assert.equal(code, 0);
});

scenario("SIGHUP has every event logged, without its contents, and ends it again", async (scope) => {
  const { uri, sql } = await scope.database();
  const proxy = await scope.readyProxy({ env: bridgeEnv({ uri, kind: "stdout", bindings: "events->topic:t" }) });
  const send = async (count: number) => {
    await sql`notify events, 'a key|a secret text'`;
    await waitForPrinted(proxy, count);
  };
  await send(1);
  process.kill(proxy.pid, "SIGHUP");
  await proxy.waitForLog(/every event is now logged/);
  await send(2);
  const { json, text } = await proxy.waitForLog(/delivered event/);
  assert.deepEqual(
    [json?.level, json?.channel, json?.target, json?.bytes, json?.id],
    ["debug", "events", "topic:t", 13, printedEvents(proxy)[1]?.id],
  );
  assert.ok(!text.includes("secret") && !text.includes("a key"));
  process.kill(proxy.pid, "SIGHUP");
  await proxy.waitForLog(/left out/);
  await send(3);
  assert.equal((await proxy.stop()).code, 0);
  assert.equal(proxy.log.filter(({ text }) => text.includes("delivered event")).length, 1);
});

scenario("it is off unless it is configured", async (scope) => {
  const { "PGPROXY_HTTP-LISTEN": _listen, ...env } = await terminalEnv(scope);
  const deaf = await scope.readyProxy({ env: { ...env, "PGPROXY_HTTP-TOKEN": "unused" } });
  assert.equal(listeningSockets(deaf.pid), 0);
  await deaf.stop();
  const listening = await scope.readyProxy({ env: { ...env, ...LISTEN_ENV } });
  assert.equal(listeningSockets(listening.pid), 1);
});

/** proc(5): `/proc/net/tcp` names the socket by its inode, in state 0A (LISTEN). */
function listeningSockets(pid: number): number {
  const inodes = new Set(
    readFileSync("/proc/net/tcp", "utf8").split("\n").map((line) => line.trim().split(/\s+/))
      .filter((fields) => fields[3] === "0A").map((fields) => `socket:[${fields[9]}]`),
  );
  return readdirSync(`/proc/${pid}/fd`).filter((fd) => {
    try {
      return inodes.has(readlinkSync(`/proc/${pid}/fd/${fd}`));
    } catch {
      return false;
    }
  }).length;
}
