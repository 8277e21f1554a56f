/** The `events` schema: installing, taking over, sending, rights, and what hostile names and roles can do with it. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import postgres from "postgres";
import { installEvents, OLD_HELPER_SQL, runScript } from "../support/events_schema.ts";
import { ROOT_DIR, runProxy } from "../support/proxy.ts";
import { bridgeEnv, scenario, type Scope, type TestDatabase, uniqueName } from "../support/scenario.ts";
import { sharedServer } from "../support/servers.ts";
import { until } from "../support/wait.ts";

async function emptyDatabase(scope: Scope): Promise<TestDatabase> {
  return scope.database(await sharedServer("postgres"));
}

async function databaseWithEvents(scope: Scope): Promise<TestDatabase> {
  const database = await emptyDatabase(scope);
  await installEvents(database.uri);
  return database;
}

/** A role that may log in and nothing else, and one session of it. */
async function sender(scope: Scope, database: TestDatabase): Promise<{ name: string; sql: postgres.Sql; uri: string }> {
  const { name, uri } = await scope.role(database, "");
  const sql = postgres(uri, { max: 1, onnotice: () => {} });
  scope.defer(() => sql.end({ timeout: 1 }));
  return { name, sql, uri };
}

interface Stored {
  readonly channel: string;
  readonly routing_key: string | null;
  readonly message: string;
}

async function stored({ sql }: TestDatabase): Promise<Stored[]> {
  return [...await sql<Stored[]>`select channel, routing_key, message from events.events order by id`].map((row) => ({
    ...row,
  }));
}

function runSql(database: TestDatabase, ...args: string[]) {
  const env = bridgeEnv({ uri: database.uri, kind: "stdout", bindings: "pgchannel1->topic:t" });
  return runProxy({ args: ["sql", ...args], env });
}

/** What the server says of a statement that must fail. */
async function refusal(query: PromiseLike<unknown>): Promise<{ code: string; message: string }> {
  try {
    await query;
  } catch (error) {
    if (error instanceof postgres.PostgresError) return error;
    throw error;
  }
  assert.fail("the statement was not refused");
}

const INSUFFICIENT_PRIVILEGE = "42501";

scenario("sql prints the script, sql --install runs it and says what changed", async (scope) => {
  const database = await emptyDatabase(scope);
  const printed = await runProxy({ args: ["sql"] });
  assert.deepEqual([printed.code, printed.stderr], [0, ""]);
  assert.equal(printed.stdout, readFileSync(join(ROOT_DIR, "src/sql/events.sql"), "utf8"));

  const first = await runSql(database, "--install");
  assert.equal(first.code, 0, first.stderr);
  assert.match(first.stdout, new RegExp(`^database "${database.name}" at .*: installed version \\d+\n`));
  assert.match(first.stdout, /^ {2}added function events\.send_message\(text,text,text,boolean,boolean\)$/m);
  assert.match(first.stdout, /^ {2}added index events\.events_xid_id_idx$/m);

  const second = await runSql(database, "--install");
  assert.match(second.stdout, /^database .*: version \d+, unchanged\n$/);

  await database.sql`select events.send_message('pgchannel1', 'kept', 'key', true)`;
  await database.sql`drop function events.flush()`;
  const third = await runSql(database, "--install", "--role", "pg_monitor");
  assert.match(third.stdout, /: version \d+ was there and is restored; 1 stored message\n/);
  assert.match(third.stdout, /^ {2}added function events\.flush\(\)$/m);
  assert.match(third.stdout, /^ {2}changed rights on table events\.events$/m);
  const [rights] = await database.sql`
    select has_table_privilege('pg_monitor', 'events.events', 'select') as reads,
           has_table_privilege('pg_monitor', 'events.events', 'insert') as writes`;
  assert.deepEqual({ ...rights }, { reads: true, writes: false });
});

scenario("a role that may not install is told who can", async (scope) => {
  const database = await emptyDatabase(scope);
  await database.sql.unsafe(`revoke create on database ${database.name} from public`);
  const { uri, name } = await sender(scope, database);
  const { code, stderr } = await runSql({ ...database, uri }, "--install");
  assert.equal(code, 1);
  assert.match(stderr, /^pg-event-proxy: installing the schema events at .*permission denied.*\n$/);
  assert.ok(stderr.includes(`pg-event-proxy sql --role '${name}' | psql`), stderr);
});

scenario(
  "the older helper's schema is taken over with its 1,000 messages, its triggers and its callers",
  async (scope) => {
    const database = await emptyDatabase(scope);
    const { sql } = database;
    await runScript(database.uri, OLD_HELPER_SQL);
    const { name: role, sql: senderSql } = await sender(scope, database);
    await sql.unsafe(`
    create table foo (id serial primary key, name text);
    create trigger send_foo after insert or update or delete on foo for each row
      execute procedure events.on_row_change('myevents', '{"include":["id","name"]}');
    create view callers as select events.send_message('old', 'from a view', 'key', true, true)::text as sent;
    grant select, insert, delete on events.events to ${role};
    grant usage on sequence events.events_id_seq to ${role}`);
    await sql`select events.send_message('old', 'message ' || i, 'key', true) from generate_series(1, 1000) i`;
    const before = await sql`select id, channel, message, created_on from events.events order by id`;

    const { code, stdout, stderr } = await runSql(database, "--install");
    assert.equal(code, 0, stderr);
    assert.match(stdout, /: took over the older helper's schema with 1000 stored messages; it has version \d+ now\n/);
    const after = await sql`select id, channel, message, created_on from events.events order by id`;
    assert.equal(after.length, 1000);
    assert.deepEqual(after.map((row) => ({ ...row, id: Number(row.id) })), before.map((row) => ({ ...row })));

    await sql`insert into foo (name) values ('new')`;
    await sql`select * from callers`;
    await senderSql`select events.send_message('c', 'by the role', '', true)`;
    const [last] = await sql<{ id: string }[]>`select max(id)::text as id from events.events`;
    assert.equal(last?.id, "1003", "the sequence goes on");
    assert.deepEqual((await stored(database)).slice(1000), [
      { channel: "myevents", routing_key: "row_change.table-foo.event-INSERT", message: '{"id": 1, "name": "new"}' },
      { channel: "old", routing_key: "key", message: "from a view" },
      { channel: "c", routing_key: "", message: "by the role" },
    ]);
    for (const statement of ["select * from events.events", "delete from events.events"]) {
      assert.equal((await refusal(senderSql.unsafe(statement))).code, INSUFFICIENT_PRIVILEGE, statement);
    }
    await sql`select setval('events.events_id_seq', 3000000000)`;
    await sql`select events.send_message('c', 'beyond 32 bits', '', true)`;
    assert.match((await runSql(database, "--install")).stdout, /unchanged/);
  },
);

scenario("functions that stand in the way are replaced, others are left alone", async (scope) => {
  const database = await emptyDatabase(scope);
  const { sql } = database;
  await sql.unsafe(`
    create schema events;
    create function events.send_message(a text, b text, c text default '', d boolean default false) returns text
      language sql as $$ select 'four' $$;
    create function events.send_message(channel text, payload text) returns int language sql as $$ select 2 $$;
    create function events.send_message(channel text, payload jsonb) returns int language sql as $$ select 3 $$;
    create function events.flush() returns int language sql as $$ select 1 $$;
    create procedure events.version() language sql as $$ select 1 $$;
    create function events.mine() returns int language sql as $$ select 4 $$`);
  await installEvents(database.uri);
  await sql`select events.send_message('c', 'm'), events.flush(), events.mine()`;
  await sql`select events.send_message('c', 'm', 'k', true)`;
  const functions = await sql<{ signature: string }[]>`
    select oid::regprocedure::text as signature from pg_proc where pronamespace = 'events'::regnamespace order by 1`;
  assert.deepEqual(functions.map(({ signature }) => signature), [
    "events.flush()",
    "events.mine()",
    "events.on_row_change()",
    "events.send_message(text,jsonb)",
    "events.send_message(text,text,text,boolean,boolean)",
    "events.version()",
  ]);
});

scenario("another's table events.events, and a newer schema, are left as they are", async (scope) => {
  const foreign = await emptyDatabase(scope);
  await foreign.sql`create schema events`;
  await foreign.sql`create table events.events (id uuid primary key, type text, payload jsonb)`;
  const refused = await runSql(foreign, "--install");
  assert.equal(refused.code, 1);
  assert.match(refused.stderr, /table events\.events is not of pg-event-proxy: it has the columns id, type, payload/);
  const [columns] = await foreign.sql<{ count: number }[]>`
    select count(*)::int from information_schema.columns where table_schema = 'events'`;
  assert.equal(columns?.count, 3);
  const [functions] = await foreign.sql`
    select count(*)::int as count from pg_proc where pronamespace = 'events'::regnamespace`;
  assert.equal(functions?.count, 0);

  const newer = await databaseWithEvents(scope);
  await newer.sql`create or replace function events.version() returns integer language sql as $$ select 99 $$`;
  const tooOld = await runSql(newer, "--install");
  assert.equal(tooOld.code, 1);
  assert.match(tooOld.stderr, /version 99 is there, newer than this program's \d+; nothing was changed/);
  assert.match((await refusal(installEvents(newer.uri))).message, /version 99, newer than this script/);
});

scenario("an unprivileged role can send, and nothing else", async (scope) => {
  const database = await databaseWithEvents(scope);
  const { name, sql } = await sender(scope, database);
  await database.sql`select events.send_message('secret', 'of another', '', true)`;
  await sql`select events.send_message('c', 'plain')`;
  await sql`select events.send_message('c', 'durable', 'key', true)`;
  await sql`select events.flush(), events.version()`;
  const forbidden = [
    "select * from events.events",
    "select id from events.events",
    "select count(*) from events.events",
    "insert into events.events (channel, message) values ('c', 'm')",
    "update events.events set message = ''",
    "delete from events.events",
    "truncate events.events",
    "select * from events.events for update",
    "copy events.events to stdout",
    "begin; lock events.events in access share mode",
    "select nextval('events.events_id_seq')",
    "select setval('events.events_id_seq', 1)",
    "alter table events.events add column x int",
    "drop table events.events",
    "create trigger t after insert on events.events for each row execute function events.on_row_change()",
    "create rule r as on insert to events.events do also nothing",
    "create table events.mine (id int)",
    "create function events.send_message(text) returns void language sql as 'select null::void'",
    "create or replace function events.version() returns integer language sql as 'select 2'",
    "alter function events.version() rename to v",
    "alter schema events rename to other",
    `grant select on events.events to ${name}`,
  ];
  for (const statement of forbidden) {
    const { code, message } = await refusal(sql.unsafe(statement).simple());
    assert.equal(code, INSUFFICIENT_PRIVILEGE, `${statement}: ${message}`);
    await sql`rollback`;
  }
  assert.deepEqual(await stored(database), [
    { channel: "secret", routing_key: "", message: "of another" },
    { channel: "c", routing_key: "key", message: "durable" },
  ]);

  await database.sql`revoke usage on schema events from public`;
  await installEvents(database.uri);
  const { code } = await refusal(sql`select events.send_message('c', 'm')`);
  assert.equal(code, INSUFFICIENT_PRIVILEGE, "installing again does not undo what the operator has revoked");
});

/** Functions and an operator of the names that the script uses, which tell whose rights they run with. */
const IMPOSTORS = `
create schema evil;
create table evil.caught (what text, by name default current_user);
create function evil.pg_notify(text, text) returns void language sql as
  $$ insert into evil.caught values ('pg_notify') $$;
create function evil.hashtext(text) returns integer language plpgsql as
  $$ begin insert into evil.caught values ('hashtext'); return 1; end $$;
create function evil.txid_current() returns bigint language plpgsql as
  $$ begin insert into evil.caught values ('txid_current'); return 1; end $$;
create function evil.join_texts(text, text) returns text language plpgsql as
  $$ begin insert into evil.caught values ('||'); return ''; end $$;
create operator evil.|| (leftarg = text, rightarg = text, function = evil.join_texts);
create view evil.pg_replication_slots as select 'pg_event_proxy'::name as slot_name, 'wal2json'::name as plugin,
  current_database() as database;
create temporary view pg_replication_slots as select * from evil.pg_replication_slots;
create temporary table events (id bigint, channel text, message text, routing_key text);
set search_path = evil, pg_temp, pg_catalog, public`;

scenario(
  "a role's own functions, operators and temporary tables are never called with the owner's rights",
  async (scope) => {
    const database = await databaseWithEvents(scope);
    const { sql, name } = await sender(scope, database);
    await database.sql.unsafe(`grant create, temporary on database ${database.name} to ${name}`);
    await sql.unsafe(IMPOSTORS);
    await sql`set events.durable_by = 'wal'`;
    await sql`select events.send_message('c', 'm', 'key', true)`;
    await sql`select events.send_message('c', 'm', 'key')`;
    await sql`select events.flush()`;
    assert.deepEqual([...await sql`select * from evil.caught`], []);
    assert.deepEqual(await stored(database), [{ channel: "c", routing_key: "key", message: "m" }]);
  },
);

scenario("a cast to json of the table's owner runs with the rights of whoever writes the row", async (scope) => {
  const database = await databaseWithEvents(scope);
  const { sql, name } = await sender(scope, database);
  await database.sql.unsafe(`grant create on database ${database.name} to ${name}`);
  // A cast and its function hold each other against "drop owned".
  scope.defer(() => database.sql`drop schema mine cascade`);
  await sql.unsafe(`
    create schema mine;
    set search_path = mine;
    create type mood as enum ('good', 'bad');
    create function mood_to_json(mood) returns json language sql as $$ select to_json(current_user) $$;
    create cast (mood as json) with function mood_to_json(mood);
    create table moods (mood mood);
    create trigger t after insert on moods for each row execute function events.on_row_change('c');
    insert into moods values ('good')`);
  assert.deepEqual((await stored(database)).map(({ message }) => message), [`{"mood": "${name}"}`]);
});

const HOSTILE = [
  "simple",
  "with blank",
  'Quote"d',
  "Robert'); drop table events.events;--",
  "back\\slash",
  "new\nline\ttab",
  "a|b|c",
  '{"json": true}',
  "$1 $$ $function$",
  "100% %s %I",
  "ünïcødé 🙂 漢字",
  "x".repeat(63),
  "\u0001\u007f",
];

scenario("hostile channels, keys and contents are stored as they are", async (scope) => {
  const database = await databaseWithEvents(scope);
  const { sql } = await sender(scope, database);
  const expected: Stored[] = [];
  for (const text of HOSTILE) {
    const channel = Buffer.from(text).subarray(0, 40).toString().replace(/\ufffd$/, "");
    await sql`select events.send_message(${channel}, ${text}, ${text}, true)`;
    expected.push({ channel, routing_key: text, message: text });
  }
  const long = `${"long | \"' \\ \n".repeat(100_000)}end`;
  await sql`select events.send_message('c', ${long}, ${long.slice(0, 1000)}, true)`;
  expected.push({ channel: "c", routing_key: long.slice(0, 1000), message: long });
  assert.deepEqual(await stored(database), expected);
});

scenario("hostile names of schemas, tables and columns come through the trigger as they are", async (scope) => {
  const database = await databaseWithEvents(scope);
  const { sql, name } = await sender(scope, database);
  await database.sql.unsafe(`grant create on database ${database.name} to ${name}`);
  const quoted = (text: string) => `"${text.replaceAll('"', '""')}"`;
  const literal = (text: string) => `'${text.replaceAll("'", "''")}'`;
  const names = HOSTILE.filter((text) => Buffer.byteLength(text) <= 63);
  await sql.unsafe("set standard_conforming_strings = on");
  for (const text of names) {
    await sql.unsafe(`create schema ${quoted(text)}`);
    const table = `${quoted(text)}.${quoted(text)}`;
    const options = JSON.stringify({ include: [text, "id"], exclude: [`${text}-`], envelope: true });
    await sql.unsafe(`
      create table ${table} (id int, ${quoted(text)} text, other int);
      create trigger ${quoted(text)} after insert on ${table} for each row
        execute function events.on_row_change(${literal(text)}, ${literal(options)})`);
    await sql.unsafe(`insert into ${table} values (1, $1, 2)`, [text]);
  }
  const rows = await stored(database);
  assert.equal(rows.length, names.length);
  names.forEach((text, i) => {
    assert.equal(rows[i]?.channel, text);
    assert.equal(rows[i]?.routing_key, `row_change.table-${text}.event-INSERT`);
    assert.deepEqual(JSON.parse(rows[i]?.message ?? ""), {
      event: "INSERT",
      schema: text,
      table: text,
      row: { id: 1, [text]: text },
    });
  });
});

scenario("row changes are sent as the trigger's arguments say", async (scope) => {
  const database = await databaseWithEvents(scope);
  const { sql } = database;
  const changes = async (options: string | undefined, channel = "changes") => {
    const table = uniqueName("items");
    const args = [channel === "" ? undefined : channel, options].filter((arg) => arg !== undefined)
      .map((arg) => `'${arg}'`).join();
    await sql.unsafe(`
      truncate events.events;
      create table ${table} (id int primary key, name text, amount numeric, secret text);
      create trigger send after insert or update or delete on ${table} for each row
        execute function events.on_row_change(${args});
      insert into ${table} values (1, 'a', 9007199254740993.10, 's');
      update ${table} set name = null where id = 1;
      delete from ${table}`);
    return (await stored(database)).map(({ channel, routing_key, message }) => {
      return [channel, routing_key?.replace(table, "T"), message.replace(table, "T")] as const;
    });
  };
  const key = (event: string) => `row_change.table-T.event-${event}`;
  const full = (name: string) => `{"id": 1, "name": ${name}, "amount": 9007199254740993.10, "secret": "s"}`;
  assert.deepEqual(await changes(undefined), [
    ["changes", key("INSERT"), full('"a"')],
    ["changes", key("UPDATE"), full("null")],
    ["changes", key("DELETE"), full("null")],
  ]);
  assert.deepEqual((await changes(undefined, "")).map(([channel]) => channel), ["events", "events", "events"]);
  const messages = async (options: string) => (await changes(options)).map(([, , message]) => message);
  assert.deepEqual(await messages('{"include":["id","nothing"]}'), ['{"id": 1}', '{"id": 1}', '{"id": 1}']);
  assert.deepEqual((await messages('{"exclude":["secret","amount","nothing"]}'))[0], '{"id": 1, "name": "a"}');
  assert.deepEqual((await messages('{"include":["id","secret"],"exclude":["secret"]}'))[0], '{"id": 1}');
  assert.deepEqual((await messages('{"include":[]}'))[0], "{}");
  assert.deepEqual((await messages('{"include":["name"],"envelope":true}')).map((text) => JSON.parse(text)), [
    { event: "INSERT", schema: "public", table: "T", row: { name: "a" } },
    { event: "UPDATE", schema: "public", table: "T", row: { name: null }, old: { name: "a" } },
    { event: "DELETE", schema: "public", table: "T", row: { name: null } },
  ]);
});

scenario("a row larger than a NOTIFY is stored, and wrong triggers are refused", async (scope) => {
  const database = await databaseWithEvents(scope);
  const { sql } = database;
  await sql.unsafe("create table big (id int, text text)");
  await sql.unsafe(
    "create trigger t after insert on big for each row execute function events.on_row_change('big')",
  );
  await sql`insert into big select i, repeat('x', 1000000 + i) from generate_series(1, 3) i`;
  assert.deepEqual(
    (await stored(database)).map(({ message }) => JSON.parse(message).text.length),
    [1_000_001, 1_000_002, 1_000_003],
  );
  const attempt = (when: string, level: string, args: string) =>
    sql.begin(async (transaction) => {
      await transaction.unsafe(
        `create trigger wrong ${when} insert on big for each ${level} execute function events.on_row_change(${args})`,
      );
      await transaction`insert into big values (4, '')`;
    });
  assert.match((await refusal(attempt("before", "row", "'c'"))).message, /is for triggers AFTER … FOR EACH ROW/);
  assert.match((await refusal(attempt("after", "statement", "'c'"))).message, /is for triggers AFTER … FOR EACH ROW/);
  assert.match(
    (await refusal(attempt("after", "row", "'c', '{\"includes\": []}'"))).message,
    /does not know the options/,
  );
  assert.match((await refusal(attempt("after", "row", "'c', '[\"id\"]'"))).message, /does not know the options/);
});

scenario("arguments that cannot be carried are refused, with a reason", async (scope) => {
  const { sql } = await databaseWithEvents(scope);
  const send = (channel: string | null, message: string | null, key: string | null, durable: boolean | null) =>
    sql`select events.send_message(${channel}, ${message}, ${key}, ${durable})`;
  for (const durable of [true, false]) {
    assert.match((await refusal(send(null, "m", "", durable))).message, /the channel is missing/);
    assert.match((await refusal(send("", "m", "", durable))).message, /the channel is missing/);
    assert.match((await refusal(send("ü".repeat(32), "m", "", durable))).message, /has 64 bytes, at most 63/);
    assert.match((await refusal(send("c", null, "", durable))).message, /the message for channel "c" is null/);
  }
  for (const key of ["a|b", "{a", "[a", '"a']) {
    assert.match((await refusal(send("c", "m", key, false))).message, /NOTIFY cannot carry the routing key/, key);
    await send("c", "m", key, true);
  }
  assert.match((await refusal(send("c", "x".repeat(8_000), "", false))).message, /payload string too long/);
  await send("c", "", null, null);
  await send("c", "", null, true);
  const [row] = await sql`select routing_key, message from events.events order by id desc limit 1`;
  assert.deepEqual({ ...row }, { routing_key: "", message: "" });
});

scenario("not durable is NOTIFY; durable is stored with the transaction or not at all", async (scope) => {
  const database = await databaseWithEvents(scope);
  const { sql } = database;
  const heard: string[] = [];
  const listener = postgres(database.uri, { max: 1 });
  scope.defer(() => listener.end({ timeout: 1 }));
  await listener.listen("c", (payload) => heard.push(payload));
  await sql.begin(async (transaction) => {
    await transaction`select events.send_message('c', 'rolled back', 'key', true)`;
    await transaction`select events.send_message('c', 'rolled back', 'key')`;
    throw new Error("roll back");
  }).catch(() => {});
  await sql.begin(async (transaction) => {
    await transaction`select events.send_message('c', 'kept', 'key', true)`;
    await transaction.savepoint(async (savepoint) => {
      await savepoint`select events.send_message('c', 'savepoint', 'key', true)`;
      throw new Error("roll back to the savepoint");
    }).catch(() => {});
    await transaction`select events.send_message('c', 'hello|there', 'key')`;
    await transaction`select events.send_message('c', '{"a": 1}')`;
  });
  await until(() => heard.length >= 2, { what: "two notifications" });
  assert.deepEqual(heard, ["key|hello|there", '|{"a": 1}']);
  assert.deepEqual((await stored(database)).map(({ message }) => message), ["kept"]);
});

scenario("only a proxy that sleeps is called", async (scope) => {
  const database = await databaseWithEvents(scope);
  const { sql } = database;
  let calls = 0;
  const listener = postgres(database.uri, { max: 1 });
  scope.defer(() => listener.end({ timeout: 1 }));
  await listener.listen("pg_event_proxy_outbox", () => calls++);
  let proofs = 0;
  await listener.listen("proof", () => proofs++);
  /** Notifications come in the order of commits. */
  const callsSoFar = async () => {
    const wanted = proofs + 1;
    await sql`select pg_notify('proof', '')`;
    await until(() => proofs >= wanted, { what: "the notification after it" });
    return calls;
  };
  await sql`select events.send_message('c', 'nobody there', '', true)`;
  assert.equal(await callsSoFar(), 0);
  const sleeper = await sql.reserve();
  await sleeper`select pg_advisory_lock(1885824362, hashtext('c'))`;
  await sql`select events.send_message('c', 'asleep', '', true) from generate_series(1, 10)`;
  assert.equal(await callsSoFar(), 1, "one for each transaction");
  await sql`select events.send_message('other', 'another channel', '', true)`;
  assert.equal(await callsSoFar(), 1);
  await sleeper`select pg_advisory_unlock(1885824362, hashtext('c'))`;
  sleeper.release();
  await sql`select events.send_message('c', 'awake', '', true)`;
  assert.equal(await callsSoFar(), 1);
  const [locks] = await sql`
    select count(*)::int as count from pg_locks
     where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())`;
  assert.equal(locks?.count, 0, "senders keep no lock");
});
