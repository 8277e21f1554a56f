/** `pg-event-proxy check`: each fault is planted on real servers and found; a good setup shows nothing but marks. */

import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import type postgres from "postgres";
import { assertFinding, runCheck } from "../support/check_report.ts";
import { consumeAmqp, withAmqpChannel } from "../support/consumers.ts";
import { installEvents, OLD_HELPER_SQL, runScript } from "../support/events_schema.ts";
import { hasPgbouncer, startPgbouncer } from "../support/pgbouncer_server.ts";
import { runProxy } from "../support/proxy.ts";
import { bridgeEnv, iniText, scenario, type Scope, type TestDatabase, uniqueName } from "../support/scenario.ts";
import {
  freePort,
  type PostgresServer,
  type Server,
  sharedServer,
  startMosquitto,
  startPostgres,
  startRabbitmq,
} from "../support/servers.ts";
import { until } from "../support/wait.ts";

const BOTH = "events->topic:events, wal2json->topic:wal";
const SLOT_KEEP_MIB = 160;

let bounded: Promise<PostgresServer> | undefined;
let rabbitmq: Promise<Server> | undefined;
after(async () => {
  await (await bounded)?.stop();
  await (await rabbitmq)?.stop();
});

/** A server that bounds the WAL of slots, as a good one does. */
function boundedServer(): Promise<PostgresServer> {
  return bounded ??= startPostgres({ settings: { max_slot_wal_keep_size: `${SLOT_KEEP_MIB}MB` } });
}

/** Its user may write to nothing whose name begins with an f; RabbitMQ 3.10 mistakes read for write in this setting. */
function strictRabbitmq(): Promise<Server> {
  return rabbitmq ??= startRabbitmq({
    config: ["configure = .*", "read = ^[^f]", "write = ^[^f]"].map((right) => `default_permissions.${right}`),
  });
}

function stdoutEnv(uri: string, more: Partial<Parameters<typeof bridgeEnv>[0]> = {}): Record<string, string> {
  return bridgeEnv({ uri, kind: "stdout", bindings: BOTH, ...more });
}

/** Waits until the server has cleared away what the check used: slots and sessions. */
async function assertNothingLeft({ sql, name }: TestDatabase): Promise<void> {
  await until(async () => {
    const [row] = await sql<{ left: number }[]>`
      select (select count(*)::int from pg_replication_slots where database = ${name}) +
             (select count(*)::int from pg_stat_activity where datname = ${name} and application_name = 'pg-event-proxy')
          as left`;
    return row?.left === 0;
  }, { what: "the slots and sessions of the check to be gone", timeoutMs: 10_000 });
}

scenario("a good setup shows nothing but marks, and nothing is left of the check", async (scope) => {
  const database = await scope.database(await boundedServer());
  await database.sql.unsafe("create table items(id int primary key); create table logs(t text)");
  await database.sql.unsafe("alter table logs replica identity full");
  const role = await scope.role(database);
  await installEvents(database.uri);
  await database.sql.unsafe(`grant usage on schema events to ${role.name};
    grant select, delete on events.events to ${role.name}`);
  // It takes its time to start, and is needed further down.
  strictRabbitmq().catch(() => {});
  const { rabbitmq: broker, mosquitto, redis } = await scope.servers;
  const [exchange, queue] = [await scope.exchange(), await scope.queue()];
  const consumer = scope.keep(await consumeAmqp(broker.uri, { exchange }));
  const files = {
    "good.ini": iniText({
      database: { uri: role.uri },
      "upstream.rabbit": {
        kind: "amqp",
        uri: broker.uri,
        bridge_channels: `events->exchange:${exchange}, wal2json->exchange:${exchange}, events->queue:${queue}`,
      },
      "upstream.mqtt": {
        kind: "mqtt",
        uri: mosquitto.uri,
        bridge_channels: `events->topic:${uniqueName("topic")}, wal2json->topic:${uniqueName("topic")}`,
      },
      "upstream.redis": { kind: "redis", uri: redis.uri, bridge_channels: `events->topic:${uniqueName("topic")}` },
      "upstream.terminal": { kind: "stdout", bridge_channels: BOTH },
    }),
  };
  const quiet = await runCheck({}, ["good.ini"], { files });
  assert.equal(quiet.code, 0);
  // Of an MQTT topic nothing is known without a message.
  assert.deepEqual(quiet.faults.filter(({ mark }) => mark !== "unchecked"), []);
  assert.equal(quiet.faults.length, 2);
  assert.equal(consumer.received.length, 0, "no consumer saw anything");
  const { code, stdout, stderr } = await runProxy({ args: ["check", "--send", "good.ini"], files });
  assert.equal(code, 0, stdout);
  assert.equal(stderr, "");
  const [titles, marks] = [/^database(, upstream \w+)?: /, /^ {2}✓ \S/];
  for (const line of stdout.trimEnd().split("\n")) assert.ok(titles.test(line) || marks.test(line), line);
  assert.match(stdout, /✓ wal2json .*decodes/);
  const messages = await consumer.waitFor(2);
  assert.deepEqual(messages.map(({ key, text }) => [key, text]).sort(), [
    ["", '{"check":"pg-event-proxy"}'],
    ["events.events.insert", '{"check":"pg-event-proxy"}'],
  ]);
  await assertNothingLeft(database);
});

scenario("a running instance is told of and not disturbed", async (scope) => {
  const database = await scope.database();
  const mosquitto = await sharedServer("mosquitto");
  const env = bridgeEnv({
    uri: database.uri,
    slot: database.name,
    kind: "mqtt",
    upstreamUri: mosquitto.uri,
    bindings: `events->topic:${uniqueName("topic")}, wal2json->topic:${uniqueName("topic")}`,
    more: { client_id: uniqueName("client") },
  });
  const proxy = await scope.readyProxy({ env });
  const report = await runCheck(env, ["--send"]);
  assertFinding(report, `slot "${database.name}"`, /^ok: held by server process \d+, pg-event-proxy .*an instance is/);
  assertFinding(report, "NOTIFY", /^ok: arrives/);
  assert.equal(report.code, 0);
  const [slots] = await database.sql`select count(*)::int from pg_replication_slots where database = ${database.name}`;
  assert.equal(slots?.count, 1);
  assert.deepEqual(await proxy.stop(), { code: 0, signal: null });
  assert.ok(!/lost|stands by|failed/.test(proxy.stderr), proxy.stderr);
});

scenario("faults of the login and the role", async (scope) => {
  const database = await scope.database();
  const role = await scope.role(database, "");
  await database.sql.unsafe("create table items(id int primary key)");
  const other = new URL(database.uri);
  other.pathname = "/no_such_database";
  const nobody = new URL(database.uri);
  nobody.username = "no_such_role";
  const closed = new URL(database.uri);
  closed.port = String(await freePort());
  const [missing, unknown, unreachable, weak, tls] = await Promise.all([
    runCheck(stdoutEnv(other.href)),
    runCheck(stdoutEnv(nobody.href)),
    runCheck(stdoutEnv(closed.href)),
    runCheck(stdoutEnv(role.uri)),
    runCheck(stdoutEnv(`${database.uri}?sslmode=require`)),
  ]);
  assertFinding(missing, "connection", /^failure: .*does not exist -> check the database name/);
  assertFinding(unknown, "connection", /^failure: .*does not exist -> check that the role exists/);
  assertFinding(unreachable, "connection", /^failure: .*ECONNREFUSED.* -> check host and port/);
  assertFinding(tls, "connection", /^failure: .*does not offer TLS.* -> set ssl = on/);
  assertFinding(
    weak,
    "right to replicate",
    new RegExp(`^failure: .* -> run as a superuser: ALTER ROLE "${role.name}" REPL`),
  );
  await database.sql.unsafe(`revoke connect on database ${database.name} from public`);
  const shut = await runCheck(stdoutEnv(role.uri));
  assertFinding(
    shut,
    "connection",
    new RegExp(`^failure: .* -> run as the owner .*: GRANT CONNECT ON DATABASE "${database.name}"`),
  );
});

scenario("wal2json that is absent, is not allowed, or refuses its parameters", async (scope) => {
  const database = await scope.database(await boundedServer());
  const [absent, forbidden] = [await scope.role(database), await scope.role(database)];
  await database.sql.unsafe(`alter role ${absent.name} set dynamic_library_path = '/nonexistent'`);
  const [known] = await database.sql`select from pg_settings where name = 'output_plugin_libraries'`;
  if (known !== undefined) {
    await database.sql.unsafe(`alter role ${forbidden.name} set output_plugin_libraries = pgoutput`);
  }
  const [first, second, third] = await Promise.all([
    runCheck(stdoutEnv(absent.uri)),
    runCheck(stdoutEnv(forbidden.uri)),
    runCheck(stdoutEnv(database.uri, { params: `"format-version" '2', "add-tables" 'nodot'` })),
  ]);
  assertFinding(first, "wal2json", /^failure: .*wal2json.* -> .*(install wal2json|output_plugin_libraries)/);
  const allowed = known === undefined ? /^ok: / : /^failure: .* -> .*SET output_plugin_libraries = pgoutput, wal2json/;
  assertFinding(second, "wal2json", allowed);
  assertFinding(third, "wal2json", /^ok: decodes/);
  assertFinding(third, "wal2json_params", /^failure: wal2json refuses its parameters.* -> correct wal2json_params/);
  await assertNothingLeft(database);
});

scenario("a server that cannot decode: wal_level, slots and walsenders", async (scope) => {
  const server = scope.keep(
    await startPostgres({ settings: { wal_level: "replica", max_replication_slots: "1", max_wal_senders: "0" } }),
  );
  const database = await scope.database(server);
  await database.sql`select pg_create_physical_replication_slot('taken')`;
  const report = await runCheck(stdoutEnv(database.uri));
  assertFinding(report, "wal_level", /^failure: replica, wanted logical -> .*ALTER SYSTEM SET wal_level = logical/);
  assertFinding(report, "max_replication_slots", /^failure: 1, 0 free, 1 needed -> .*max_replication_slots = 3/);
  assertFinding(report, "max_wal_senders", /^failure: 0, 0 free, 1 needed -> .*max_wal_senders = 2/);
  const physical = await runCheck(stdoutEnv(database.uri, { slot: "taken" }));
  assertFinding(physical, 'slot "taken"', /^failure: .*is a physical slot.* -> set replication_slot/);
});

scenario("slots: of another plugin or database, in danger, lost", async (scope) => {
  const server = await boundedServer();
  const [database, other] = [await scope.database(server), await scope.database(server)];
  const { sql } = database;
  const foreign = uniqueName("slot");
  await other.sql`select pg_create_logical_replication_slot(${foreign}, 'wal2json')`;
  await sql`select pg_create_logical_replication_slot(${database.name}, 'test_decoding')`;
  const [plugin, elsewhere] = await Promise.all([
    runCheck(stdoutEnv(database.uri, { slot: database.name })),
    runCheck(stdoutEnv(database.uri, { slot: foreign })),
  ]);
  assertFinding(plugin, `slot "${database.name}"`, /^failure: .*plugin test_decoding.* -> .*drop it: select pg_drop/);
  assertFinding(elsewhere, `slot "${foreign}"`, /^failure: .*belongs to database.* -> set replication_slot/);
  const slot = uniqueName("slot");
  await sql`select pg_create_logical_replication_slot(${slot}, 'wal2json')`;
  const env = stdoutEnv(database.uri, { slot });
  assertFinding(
    await runCheck(env),
    `slot "${slot}"`,
    /^ok: nobody reads it; holds back \d+ MiB of WAL, \d+ MiB not con/,
  );
  await writeWal(sql, SLOT_KEEP_MIB * 0.75);
  assertFinding(
    await runCheck(env),
    `slot "${slot}"`,
    /^warning: nobody reads it; holds back 1\d\d MiB .* -> start the/,
  );
  await writeWal(sql, SLOT_KEEP_MIB);
  await sql`checkpoint`;
  assertFinding(await runCheck(env), `slot "${slot}"`, /^failure: .*is lost.* -> .*drop it and start again/);
});

scenario("a transaction that keeps a slot from being created; the check does not stay behind either", async (scope) => {
  const database = await scope.database(await boundedServer());
  await database.sql.unsafe("create table t(id int primary key)");
  await database.sql.begin(async (open) => {
    await open`insert into t values (1)`;
    const report = await runCheck(stdoutEnv(database.uri));
    assertFinding(report, "wal2json", /^warning: is loaded, but a new slot waits for transactions.* -> let them end/);
    await assertNothingLeft(database);
  });
});

/** A segment has 16 MiB; a switch leaves the rest of it empty. */
async function writeWal(sql: postgres.Sql, mebibytes: number): Promise<void> {
  for (let written = 0; written < mebibytes; written += 16) {
    await sql`select pg_logical_emit_message(false, 'filler', 'x')`;
    await sql`select pg_switch_wal()`;
  }
}

scenario("an unbounded slot, tables without replica identity, names that SQL folds", async (scope) => {
  const database = await scope.database();
  await database.sql.unsafe(`
    create table good(id int primary key);
    create table "Bad one"(t text);
    create table hidden(t text);
    create table nothing(id int primary key); alter table nothing replica identity nothing;
    create table deferred(id int primary key deferrable);
    create unlogged table unlogged(t text)`);
  const report = await runCheck(stdoutEnv(database.uri, {
    bindings: "events->topic:a, myEvents->topic:b, wal2json->topic:wal",
    params: `"format-version" '2', "filter-tables" '*.hidden'`,
  }));
  assert.equal(report.code, 0);
  assertFinding(
    report,
    "tables",
    /^warning: .* 3 of 4 tables.*: public\."Bad one", public\.deferred, public\.nothing -> .*ALTER TABLE public\."Bad one" R/,
  );
  assertFinding(report, 'channel "myEvents"', /^warning: .* goes to "myevents" -> bind "myevents"/);
  assertFinding(report, 'channel "events"', /^ok: /);
  assertFinding(report, "max_slot_wal_keep_size", /^warning: -1.* -> .*ALTER SYSTEM SET max_slot_wal_keep_size/);
  const inserts = await runCheck(stdoutEnv(database.uri, { params: `"format-version" '2', "actions" 'insert'` }));
  assertFinding(inserts, "tables", /^ok: /);
});

scenario("the schema events: without rights, and the older helper's", async (scope) => {
  const [database, old] = [await scope.database(), await scope.database()];
  const role = await scope.role(database);
  await installEvents(database.uri);
  await runScript(old.uri, OLD_HELPER_SQL);
  const [forbidden, outdated] = await Promise.all([runCheck(stdoutEnv(role.uri)), runCheck(stdoutEnv(old.uri))]);
  assertFinding(
    forbidden,
    "schema events",
    /^failure: .*belongs to "postgres" -> run as "postgres": GRANT USAGE ON SCHEMA/,
  );
  assertFinding(outdated, "schema events", /^warning: the older helper's.* -> .*pg-event-proxy sql --install/);
});

scenario("the encoding: a WAL that is no UTF-8 is refused, by the run as well", async (scope) => {
  const { sql, uri } = await scope.database();
  const made = async (encoding: string) => {
    const name = uniqueName("test");
    await sql.unsafe(`create database ${name} encoding '${encoding}' template template0 lc_collate 'C' lc_ctype 'C'`);
    scope.defer(() => sql.unsafe(`drop database ${name} with (force)`));
    const url = new URL(uri);
    url.pathname = `/${name}`;
    return url.href;
  };
  const [latin, ascii] = [await made("LATIN1"), await made("SQL_ASCII")];
  const [wal, notify, loose, run] = await Promise.all([
    runCheck(stdoutEnv(latin)),
    runCheck(stdoutEnv(latin, { bindings: "events->topic:events" })),
    runCheck(stdoutEnv(ascii)),
    runProxy({ env: stdoutEnv(latin, { bindings: "wal2json->topic:wal" }) }),
  ]);
  assertFinding(wal, "encoding", /^failure: .*is LATIN1, wanted UTF8.* -> move the data/);
  assertFinding(notify, "encoding", /^ok: LATIN1, converted to UTF8/);
  assertFinding(loose, "encoding", /^warning: SQL_ASCII.* -> see that every application writes UTF-8/);
  assert.equal(run.code, 1);
  assert.match(
    run.stderr,
    /reading the WAL at .* is not possible: the encoding of the database is LATIN1, wanted UTF8/,
  );
  const slot = uniqueName("slot");
  const proxy = await scope.readyProxy({ env: stdoutEnv(ascii, { slot, bindings: "wal2json->topic:wal" }) });
  await proxy.waitForLog(/encoding of the database is SQL_ASCII/);
  await proxy.stop();
  await sql`select pg_drop_replication_slot(${slot})`;
});

test(
  "a pooler that swallows LISTEN",
  { timeout: 120_000, skip: hasPgbouncer() ? false : "PgBouncer is not installed: apt-get install pgbouncer" },
  async () => {
    const { port } = await sharedServer("postgres");
    const poolers = await Promise.all((["transaction", "session"] as const).map((mode) => startPgbouncer(port, mode)));
    try {
      const env = (pooler: Server) => stdoutEnv(pooler.uri, { bindings: "events->topic:events" });
      const [transaction, session, run] = await Promise.all([
        runCheck(env(poolers[0]!)),
        runCheck(env(poolers[1]!)),
        runProxy({ env: { ...env(poolers[0]!), "PGPROXY_LOCAL-OUTBOX": "false" } }),
      ]);
      assert.equal(run.code, 1);
      assert.match(run.stderr, /a pooler in transaction mode swallows LISTEN; connect to PostgreSQL directly/);
      assertFinding(
        transaction,
        "NOTIFY",
        /^failure: .*pooler in transaction mode.* -> connect to PostgreSQL directly/,
      );
      assertFinding(session, "NOTIFY", /^ok: arrives/);
      const wal = await runCheck(stdoutEnv(poolers[1]!.uri, { bindings: "wal2json->topic:wal" }));
      assertFinding(wal, "right to replicate", /^failure: .* -> /);
    } finally {
      await Promise.all(poolers.map((pooler) => pooler.stop()));
    }
  },
);

scenario("RabbitMQ: login, virtual host, missing and forbidden targets, a key that reaches no queue", async (scope) => {
  const database = await scope.database();
  const broker = await strictRabbitmq();
  const [forbidden, unbound] = [uniqueName("forbidden"), uniqueName("unbound")];
  await withAmqpChannel(broker.uri, async (channel) => {
    for (const name of [forbidden, unbound]) await channel.assertExchange(name, "topic");
  });
  scope.defer(() =>
    withAmqpChannel(broker.uri, async (channel) => {
      for (const name of [forbidden, unbound]) await channel.deleteExchange(name);
    })
  );
  const env = (upstreamUri: string, bindings: string, more = {}) =>
    bridgeEnv({ uri: database.uri, kind: "amqp", upstreamUri, bindings, more });
  const stranger = broker.uri.replace("guest:guest", "guest:wrong");
  const [login, vhost, targets, declared] = await Promise.all([
    runCheck(env(stranger, "events->exchange:amq.topic")),
    runCheck(env(`${broker.uri}/nowhere`, "events->exchange:amq.topic")),
    runCheck(
      env(
        broker.uri,
        `events->exchange:nix, events->queue:nix, events->exchange:${forbidden}, events->exchange:${unbound}`,
      ),
      ["--send", "--key", "signup"],
    ),
    runCheck(env(broker.uri, "events->exchange:nix", { declare: "true" })),
  ]);
  assertFinding(login, "login", /^failure: .*refused the login of user "guest" -> correct the user name and password/);
  assertFinding(vhost, "login", /^failure: .*the virtual host "nowhere" -> create it/);
  assertFinding(targets, 'exchange "nix"', /^failure: .*NOT_FOUND.* -> create it, or set declare=true/);
  assertFinding(targets, 'queue "nix"', /^failure: .*NOT_FOUND.* -> create it, or set declare=true/);
  assertFinding(targets, `exchange "${forbidden}"`, /^failure: ACCESS_REFUSED.* -> rabbitmqctl set_permissions/);
  assertFinding(
    targets,
    `exchange "${unbound}"`,
    /^warning: .*routing key "signup" reached no queue.* -> bind a queue/,
  );
  assertFinding(declared, 'exchange "nix"', /^ok: is not there yet/);
  await assert.rejects(withAmqpChannel(broker.uri, (channel) => channel.checkExchange("nix")), /NOT_FOUND/);
});

scenario("MQTT and Redis: unreachable, and topics that may not be published to", async (scope) => {
  const database = await scope.database();
  const dir = mkdtempSync(join(tmpdir(), "pg-event-proxy-test-acl-"));
  scope.defer(() => rmSync(dir, { recursive: true, force: true }));
  writeFileSync(join(dir, "acl"), "topic write allowed/#\n");
  const mosquitto = scope.keep(await startMosquitto({ config: [`acl_file ${join(dir, "acl")}`] }));
  const redis = await sharedServer("redis");
  const user = await redisUser(scope, redis.uri);
  const bindings = "events->topic:allowed/a, events->topic:forbidden/b";
  const streams = `${bindings}, events->stream:forbidden`;
  const env = (kind: string, upstreamUri: string) => bridgeEnv({ uri: database.uri, kind, upstreamUri, bindings });
  const closed = await freePort();
  const url = (port: number) => `http://127.0.0.1:${port}/hook?token=t0ken`;
  const webhook = { kind: "webhook", more: { allow_private_addresses: "true" } };
  const [unreachable, topics, channels, wrong, hook, filled] = await Promise.all([
    runCheck(env("mqtt", `mqtt://127.0.0.1:${closed}`)),
    runCheck(env("mqtt", mosquitto.uri), ["--send"]),
    runCheck(bridgeEnv({ uri: database.uri, kind: "redis", upstreamUri: user, bindings: streams })),
    runCheck(env("redis", user.replace(":secret@", ":wrong@"))),
    runCheck(bridgeEnv({ ...webhook, uri: database.uri, bindings: `events->url:${url(closed)}` })),
    runCheck(
      bridgeEnv({
        uri: database.uri,
        kind: "mqtt",
        upstreamUri: mosquitto.uri,
        bindings: "wal2json->topic:allowed/{table}",
      }),
      ["--send"],
    ),
  ]);
  const target = hook.findings.find(({ subject }) => subject.startsWith("url "));
  assert.match(target?.subject ?? "", /^url "http:.*127\.0\.0\.1:\d+\/hook/);
  assert.match(target?.seen ?? "", /ECONNREFUSED/);
  assert.ok(!/t0ken/.test(JSON.stringify(hook.findings)), JSON.stringify(hook.findings));
  assertFinding(filled, 'topic "allowed/{table}"', /^ok: took a message/);
  assertFinding(unreachable, "login", /^failure: .*ECONNREFUSED.* -> check host and port/);
  assertFinding(topics, 'topic "allowed/a"', /^ok: took a message/);
  assertFinding(topics, 'topic "forbidden/b"', /^failure: .*0x87 \(Not authorized\) -> grant/);
  assertFinding(channels, 'topic "allowed/a"', /^ok: may be published to/);
  assertFinding(channels, 'topic "forbidden/b"', /^failure: NOPERM.* -> ACL SETUSER/);
  assertFinding(channels, 'stream "forbidden"', /^failure: NOPERM.* -> ACL SETUSER … \+xadd ~forbidden/);
  assertFinding(wrong, "login", /^failure: .*WRONGPASS.* -> correct the user name and password/);
});

/** A user who may publish to `allowed/*` only; the URI by which it logs in. */
async function redisUser(scope: Scope, uri: string): Promise<string> {
  const { Redis } = await import("ioredis");
  const redis = new Redis(uri, { lazyConnect: true });
  await redis.connect();
  const name = uniqueName("user");
  await redis.call(
    "ACL",
    "SETUSER",
    name,
    "on",
    ">secret",
    "resetchannels",
    "&allowed/*",
    "+publish",
    "+ping",
    "+@transaction",
  );
  scope.defer(async () => {
    await redis.call("ACL", "DELUSER", name);
    redis.disconnect();
  });
  return uri.replace("redis://", `redis://${name}:secret@`);
}

scenario("faulty configuration ends with 2, and people get lines", async (scope) => {
  const faulty = await runProxy({ args: ["check", "--json"], env: stdoutEnv("mysql://localhost") });
  assert.equal(faulty.code, 2);
  assert.match(faulty.stderr, /POSTGRESQL_URI/);
  assert.equal(faulty.stdout, "");
  const database = await scope.database();
  await database.sql.unsafe("create table t(x int)");
  const { code, stdout } = await runProxy({ args: ["check"], env: stdoutEnv(database.uri, { slot: database.name }) });
  assert.equal(code, 0);
  assert.match(stdout, /^LOCAL: PostgreSQL at .*, role "postgres"\n {2}✓ connection/i);
  assert.match(stdout, /\n {2}! tables +UPDATE and DELETE .*public\.t\n +→ give them a primary key/);
  assert.match(stdout, /\n0 failures, 2 warnings\n$/);
});
