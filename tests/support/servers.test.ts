import assert from "node:assert/strict";
import { chmodSync, existsSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import amqp from "amqplib";
import { Redis } from "ioredis";
import mqtt from "mqtt";
import postgres from "postgres";
import { makeTlsFiles, type Server, startMosquitto, startPostgres, startRabbitmq, startRedis } from "./servers.ts";
import { until } from "./wait.ts";

const TIMEOUT = { timeout: 180_000 };

/** The folders of the temporary kind that processes work in. */
function workingFolders(): Map<number, string> {
  const found = new Map<number, string>();
  for (const entry of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    try {
      const cwd = readlinkSync(`/proc/${entry}/cwd`);
      if (cwd.includes("/pg-event-proxy-test-")) found.set(Number(entry), cwd);
    } catch {
      // Ended meanwhile, or not ours.
    }
  }
  return found;
}

function state(pid: number): string {
  return /^State:\s+(\S)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? "?";
}

/** Frozen, thawed, killed, started, shut down, started, stopped; `check` must succeed whenever it runs. */
async function liveThrough(server: Server, check: () => Promise<void>): Promise<void> {
  const folder = workingFolders().get(server.pid);
  assert.ok(folder !== undefined, "the server works in its folder");
  const pidsOf = () => [...workingFolders()].filter(([, cwd]) => cwd.startsWith(folder)).map(([pid]) => pid);
  try {
    await check();
    server.freeze();
    for (const pid of pidsOf()) await until(() => state(pid) === "T", { what: `process ${pid} to be frozen` });
    server.thaw();
    await check();
    const killedPid = server.pid;
    await server.kill();
    assert.deepEqual(pidsOf(), []);
    assert.ok(existsSync(folder));
    await server.start();
    assert.notEqual(server.pid, killedPid);
    await check();
    await server.shutdown();
    assert.deepEqual(pidsOf(), []);
    await server.start();
    await check();
  } finally {
    await server.stop();
    await server.stop();
  }
  assert.deepEqual(pidsOf(), []);
  assert.ok(!existsSync(folder));
}

test("PostgreSQL keeps its data through kill and shutdown and decodes with wal2json", TIMEOUT, async () => {
  const server = await startPostgres();
  const database = await server.createDatabase("servers");
  const query = async (work: (sql: postgres.Sql) => Promise<void>) => {
    const sql = postgres(database.uri, { max: 1, onnotice: () => {} });
    try {
      await work(sql);
    } finally {
      await sql.end();
    }
  };
  await query(async (sql) => {
    await sql`select pg_create_logical_replication_slot('servers_test', 'wal2json')`;
    await sql`create table kept (id int primary key)`;
  });
  let rows = 0;
  await liveThrough(server, () =>
    query(async (sql) => {
      await sql`insert into kept values (${++rows})`;
      const [{ count }] = await sql<{ count: number }[]>`select count(*)::int from kept`;
      assert.equal(count, rows);
      const changes = await sql<{ data: string }[]>`
        select data from pg_logical_slot_peek_changes('servers_test', null, null, 'format-version', '2')`;
      assert.equal(changes.filter(({ data }) => data.startsWith('{"action":"I"')).length, rows);
    }));
});

test("a database is dropped with its slots and sessions", TIMEOUT, async () => {
  const server = await startPostgres({ settings: { log_min_messages: "fatal" } });
  try {
    const database = await server.createDatabase();
    const session = postgres(database.uri, { max: 1, onclose: () => {} });
    await session`select pg_create_logical_replication_slot('dropped_test', 'pgoutput')`;
    await database.drop();
    await database.drop();
    const admin = postgres(server.superuserUri, { max: 1 });
    assert.equal((await admin`select from pg_replication_slots`).length, 0);
    assert.equal((await admin`select from pg_database where datname = ${database.name}`).length, 0);
    await admin.end();
    await session.end({ timeout: 0 });
  } finally {
    await server.stop();
  }
});

test("RabbitMQ keeps durable queues through kill and shutdown", TIMEOUT, async () => {
  const server = await startRabbitmq();
  let sent = 0;
  await liveThrough(server, async () => {
    const connection = await amqp.connect(server.uri);
    const channel = await connection.createConfirmChannel();
    await channel.assertQueue("kept", { durable: true });
    channel.sendToQueue("kept", Buffer.from("x"), { persistent: true });
    await channel.waitForConfirms();
    assert.equal((await channel.checkQueue("kept")).messageCount, ++sent);
    await connection.close();
  });
});

test("Mosquitto passes messages on after kill and shutdown", TIMEOUT, async () => {
  const server = await startMosquitto();
  await liveThrough(server, async () => {
    const client = await mqtt.connectAsync(server.uri);
    const received = new Promise<string>((resolve) => client.once("message", (_topic, body) => resolve(String(body))));
    await client.subscribeAsync("topic", { qos: 1 });
    await client.publishAsync("topic", "hello", { qos: 1 });
    assert.equal(await received, "hello");
    await client.endAsync();
  });
});

test("Redis keeps its data through kill and shutdown", TIMEOUT, async () => {
  const server = await startRedis();
  let count = 0;
  await liveThrough(server, async () => {
    const client = new Redis(server.uri);
    assert.equal(await client.incr("count"), ++count);
    await client.quit();
  });
});

test("all four speak TLS with the test certificates", TIMEOUT, async () => {
  const tls = await makeTlsFiles();
  const ca = readFileSync(tls.caFile);
  const stops: Array<() => Promise<void>> = [];
  const kept = <T extends Server>(server: T): T => {
    stops.push(() => server.stop());
    return server;
  };
  try {
    const clientAuth = ["hostssl all proxy_user 127.0.0.1/32 cert"];
    const database = kept(await startPostgres({ tls, clientAuth }));
    const admin = postgres(database.superuserUri, { max: 1 });
    await admin`create role proxy_user login`;
    await admin.end();
    const cert = readFileSync(tls.clientCertFile);
    const sql = postgres(`postgres://proxy_user@localhost:${database.port}/postgres`, {
      max: 1,
      ssl: { ca, cert, key: readFileSync(tls.clientKeyFile) },
    });
    const [row] = await sql<{ user: string; ssl: boolean }[]>`
      select current_user as user, ssl from pg_stat_ssl where pid = pg_backend_pid()`;
    assert.deepEqual({ ...row }, { user: "proxy_user", ssl: true });
    await sql.end();

    const rabbitmq = kept(await startRabbitmq({ tls }));
    await (await amqp.connect(rabbitmq.uri, { ca: [ca] })).close();
    const mosquitto = kept(await startMosquitto({ tls }));
    await (await mqtt.connectAsync(mosquitto.uri, { ca })).endAsync();
    const redis = kept(await startRedis({ tls }));
    const client = new Redis(redis.uri, { tls: { ca } });
    assert.equal(await client.ping(), "PONG");
    await client.quit();
  } finally {
    await Promise.all(stops.map((stop) => stop()));
    await tls.remove();
  }
  assert.ok(!existsSync(tls.dir));
});

test("a server that cannot start says why and leaves nothing", TIMEOUT, async () => {
  // A folder of its own for temporary folders tells what this test leaves from what others start meanwhile.
  const before = process.env.TMPDIR;
  const folder = mkdtempSync(join(tmpdir(), "pg-event-proxy-test-leftovers-"));
  chmodSync(folder, 0o755);
  process.env.TMPDIR = folder;
  try {
    await assert.rejects(startRedis({ config: ["no-such-directive 1"] }), /no-such-directive/);
    await assert.rejects(startPostgres({ settings: { no_such_setting: "1" } }), /no_such_setting/);
    assert.deepEqual([...workingFolders()].filter(([, cwd]) => cwd.startsWith(folder)), []);
    assert.deepEqual(readdirSync(folder).filter((name) => !name.includes("template")), []);
  } finally {
    if (before === undefined) delete process.env.TMPDIR;
    else process.env.TMPDIR = before;
    rmSync(folder, { recursive: true, force: true });
  }
});
