/** `pg-event-proxy tail`: events in the terminal, with no broker, and nothing left on the server. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import process from "node:process";
import { currentRuntime, programCommand, type Proxy, runProxy } from "../support/proxy.ts";
import { scenario, type Scope, type TestDatabase, waitForPrinted } from "../support/scenario.ts";
import { programPaths } from "../support/server_process.ts";
import { until } from "../support/wait.ts";

async function watch(scope: Scope, args: readonly string[]): Promise<Proxy> {
  const proxy = scope.proxy({ args: ["tail", ...args] });
  await proxy.waitForLog(/^watching /);
  return proxy;
}

/** Slots, and sessions that are not the test's own. */
async function traces({ sql, name }: TestDatabase): Promise<number> {
  const [row] = await sql<{ count: number }[]>`
    select (select count(*)::int from pg_replication_slots where database = ${name}) +
           (select count(*)::int from pg_stat_activity where datname = ${name} and application_name = 'pg-event-proxy')
        as count`;
  return row!.count;
}

async function untilNoTraces(database: TestDatabase): Promise<void> {
  await until(async () => (await traces(database)) === 0, { what: "slots and sessions of tail to be gone" });
}

scenario("piped, tail prints the row changes and notifications as JSON lines until Ctrl-C", async (scope) => {
  const database = await scope.database();
  const { sql } = database;
  await sql.unsafe("create table items(id int primary key, n numeric); create table other(id int)");
  const proxy = await watch(scope, [database.uri, "--channel", "one", "--channel", "Two", "--wal"]);
  const [slot] = await sql`select temporary from pg_replication_slots where database = ${database.name}`;
  assert.equal(slot?.temporary, true);
  await sql`insert into items values (1, 12345678901234567890.10)`;
  await sql`insert into other values (2)`;
  await sql`select pg_notify('one', 'key|first'), pg_notify('Two', 'second'), pg_notify('three', 'third')`;
  await sql`select pg_logical_emit_message(true, 'one', 'k|by the WAL')`;
  const events = await waitForPrinted(proxy, 5);
  const ofWal = events.filter(({ channel }) => channel === "wal2json");
  assert.deepEqual(ofWal.map(({ routing_key, type }) => [type, routing_key]), [
    ["wal", "public.items.insert"],
    ["wal", "public.other.insert"],
  ]);
  assert.match(ofWal[0]!.text, /"value":12345678901234567890\.10\}/);
  const notified = events.filter(({ type }) => type === "notify");
  assert.deepEqual(notified.map(({ channel, routing_key, text }) => [channel, routing_key, text]).sort(), [
    ["Two", "", "second"],
    ["one", "k", "by the WAL"],
    ["one", "key", "first"],
  ]);
  assert.deepEqual(await proxy.kill("SIGINT"), { code: 0, signal: null });
  assert.equal(proxy.stderr.trim().split("\n").length, 1, proxy.stderr);
  await untilNoTraces(database);
});

scenario("--table picks tables, with or without a schema, and tells of one that is not there", async (scope) => {
  const database = await scope.database();
  const { sql } = database;
  await sql.unsafe(`create schema shop; create table items(id int primary key); create table shop.items(id int);
    create table shop.orders(id int); create table orders(id int)`);
  const proxy = await watch(scope, [database.uri, "--table", "items", "--table", "shop.orders", "--table", "ietms"]);
  assert.match(proxy.stderr, /there is no table "ietms" in database/);
  await sql.unsafe(`insert into orders values (1); insert into items values (2); insert into shop.items values (3);
    select pg_logical_emit_message(true, 'one', 'of no table'); insert into shop.orders values (4)`);
  const events = await waitForPrinted(proxy, 3);
  assert.deepEqual(events.map(({ routing_key }) => routing_key), [
    "public.items.insert",
    "shop.items.insert",
    "shop.orders.insert",
  ]);
  assert.deepEqual(await proxy.stop(), { code: 0, signal: null });
});

scenario("only channels: a role that may do nothing but connect", async (scope) => {
  const database = await scope.database();
  const role = await scope.role(database, "");
  const proxy = await watch(scope, [role.uri, "--channel", "news"]);
  await database.sql`select pg_notify('news', '{"a": 1}')`;
  const [event] = await waitForPrinted(proxy, 1);
  assert.equal(event?.text, '{"a": 1}');
  await proxy.stop();
  const refused = await runProxy({ args: ["tail", role.uri] });
  assert.equal(refused.code, 1);
  assert.match(refused.stderr, /run as a superuser: ALTER ROLE "\w+" REPLICATION\n$/);
});

scenario("a reader that closes the pipe ends it with 0 and without a word", async (scope) => {
  const database = await scope.database();
  const { sql } = database;
  await sql.unsafe("create table items(id int primary key)");
  const [file = "", ...args] = [...programCommand(currentRuntime()), "tail", database.uri];
  const child = spawn(file, args, { stdio: ["ignore", "pipe", "pipe"], env: { ...process.env, NO_COLOR: "1" } });
  scope.defer(() => child.exitCode ?? child.kill("SIGKILL"));
  let stderr = "";
  child.stderr.on("data", (chunk: Uint8Array) => stderr += chunk);
  const exit = new Promise<number | null>((resolve) => child.once("close", resolve));
  await until(() => /^watching /m.test(stderr), { what: () => `tail to watch; it wrote ${stderr}` });
  const first = new Promise<void>((resolve) => child.stdout.once("data", () => resolve()));
  await sql`insert into items values (0)`;
  await first;
  child.stdout.destroy();
  for (let id = 1; child.exitCode === null && id < 500; id++) {
    await sql`insert into items values (${id})`;
    await Promise.race([exit, new Promise((resolve) => setTimeout(resolve, 20))]);
  }
  assert.equal(await exit, 0, stderr);
  assert.equal(stderr.trim().split("\n").length, 1, stderr);
  await untilNoTraces(database);
});

scenario("a slow reader makes it stop reading, and loses nothing", async (scope) => {
  const database = await scope.database();
  const { sql } = database;
  await sql.unsafe("create table items(id int primary key, t text)");
  const [file = "", ...args] = [...programCommand(currentRuntime()), "tail", database.uri];
  const child = spawn(file, args, { stdio: ["ignore", "pipe", "pipe"], env: { ...process.env, NO_COLOR: "1" } });
  scope.defer(() => child.exitCode ?? child.kill("SIGKILL"));
  let stderr = "";
  child.stderr.on("data", (chunk: Uint8Array) => stderr += chunk);
  await until(() => /^watching /m.test(stderr), { what: () => `tail to watch; it wrote ${stderr}` });
  await sql`insert into items select i, repeat('x', 10000) from generate_series(1, 3000) i`;
  // Not read yet: 30 MB are more than the pipe, the 8 MiB that wait in the program, and the sockets.
  await until(async () => {
    const [row] = await sql`select wait_event from pg_stat_activity join pg_replication_slots on active_pid = pid
      where database = ${database.name}`;
    return row?.wait_event === "WalSenderWriteData";
  }, { what: "the server to wait for us" });
  let lines = 0;
  child.stdout.on("data", (chunk: Uint8Array) => lines += String(chunk).split("\n").length - 1);
  await until(() => lines === 3000, { what: () => `3000 lines; there are ${lines}`, timeoutMs: 60_000 });
  child.kill("SIGINT");
  await new Promise<void>((resolve) => child.once("close", () => resolve()));
});

scenario(
  "on a terminal the lines are coloured, and nothing in them reaches the terminal as a command",
  async (scope) => {
    const database = await scope.database();
    const { sql } = database;
    await sql.unsafe("create table items(id int primary key, name text)");
    const [script] = programPaths("script").filter((path) => existsSync(path));
    assert.ok(script, "script of bsdutils is not installed");
    const command = [...programCommand(currentRuntime()), "tail", database.uri, "--wal", "--channel", "news"];
    const quoted = command.map((word) => `'${word.replaceAll("'", "'\\''")}'`).join(" ");
    const { NO_COLOR: _, ...env } = process.env;
    // exec: a shell that stayed (dash does) would take Ctrl-C as well, and end with 130 whatever the program says.
    const child = spawn(script, ["-qec", `exec ${quoted}`, "/dev/null"], {
      stdio: ["pipe", "pipe", "inherit"],
      env: { ...env, TERM: "xterm" },
    });
    scope.defer(() => child.exitCode ?? child.kill("SIGKILL"));
    let seen = "";
    child.stdout.on("data", (chunk: Uint8Array) => seen += chunk);
    const exit = new Promise<number | null>((resolve) => child.once("close", resolve));
    await until(() => seen.includes("Ctrl-C ends"), { what: () => `tail to watch; it wrote ${seen}` });
    await sql`insert into items values (1, ${"a\x1b[2Jb\nc"})`;
    await sql`update items set id = 2`;
    await sql`delete from items`;
    await sql`truncate items`;
    await sql`select pg_notify('news', ${"key|\x1b]0;title\x07 done"})`;
    await until(() => ["INSERT", "UPDATE", "DELETE", "TRUNCATE", "NOTIFY"].every((word) => seen.includes(word)), {
      what: () => `all lines; it wrote ${seen}`,
    });
    // deno-lint-ignore no-control-regex
    const plain = seen.replace(/\x1b\[\d*m/g, "");
    assert.ok(seen.length > plain.length, "there are colours");
    assert.ok(!plain.includes("\x1b"), JSON.stringify(plain));
    assert.match(plain, /\d\d:\d\d:\d\d\.\d{3} INSERT +public\.items +id=1 name="a\\u001b\[2Jb\\nc"/);
    assert.match(plain, /UPDATE +public\.items +id=2 name=".*" +was id=1/);
    assert.match(plain, /DELETE +public\.items +id=2/);
    assert.match(plain, /TRUNCATE +public\.items/);
    assert.match(plain, /NOTIFY +news +key +\\u001b\]0;title\\u0007 done/);
    // Ctrl-C at the terminal.
    child.stdin.write("\x03");
    assert.equal(await exit, 0, seen);
    await untilNoTraces(database);
  },
);

scenario("a connection that is lost ends it with 1 and says so", async (scope) => {
  const database = await scope.database();
  const proxy = await watch(scope, [database.uri]);
  await database
    .sql`select pg_terminate_backend(active_pid) from pg_replication_slots where database = ${database.name}`;
  assert.deepEqual(await proxy.exit, { code: 1, signal: null });
  assert.match(proxy.stderr, /pg-event-proxy: the connection to PostgreSQL at .* was lost/);
});

scenario("a command line that is wrong ends with 2", async () => {
  for (
    const [args, line] of [[[], /missing required argument 'uri'/], [
      ["mysql://x"],
      /expected postgresql:\/\//,
    ]] as const
  ) {
    const { code, stderr } = await runProxy({ args: ["tail", ...args] });
    assert.equal(code, 2, stderr);
    assert.match(stderr, line);
  }
});
