/** The source of durable messages against a real PostgreSQL, with a sink that acknowledges when it is told to. */

import assert from "node:assert/strict";
import postgres from "postgres";
import { PermanentError, StandingByError } from "../../src/core/errors.ts";
import type { Event } from "../../src/core/event.ts";
import type { Completion, Sink } from "../../src/core/source.ts";
import { parseConnectionUri } from "../../src/postgres/connection_uri.ts";
import { uriEnvironment } from "../../src/runtime.ts";
import { OutboxSource } from "../../src/sources/outbox.ts";
import { installEvents, OLD_HELPER_SQL, runScript } from "../support/events_schema.ts";
import { scenario, type Scope, type TestDatabase } from "../support/scenario.ts";
import { sharedServer } from "../support/servers.ts";
import { TcpRelay } from "../support/tcp_relay.ts";
import { until } from "../support/wait.ts";
import { LogRecorder } from "../unit/log_recorder.ts";

/** A lane's place: takes events, and lets go of them when it is told to. */
class HoldingSink implements Sink {
  readonly events: Event[] = [];
  readonly #held = new Map<Event, Completion>();
  readonly #channels: readonly string[];
  #resume: (() => void)[] = [];
  congested = false;
  /** Takes no more than so many before it is congested. */
  room = Infinity;
  acknowledgesAtOnce = true;

  constructor(channels: readonly string[]) {
    this.#channels = channels;
  }

  accepts(channel: string): boolean {
    return this.#channels.includes(channel);
  }

  emit(event: Event, completion: Completion): number {
    this.events.push(event);
    completion.retain();
    if (this.acknowledgesAtOnce) {
      completion.release();
      return 1;
    }
    this.#held.set(event, completion);
    if (this.#held.size >= this.room) this.congested = true;
    return 1;
  }

  onRelief(resume: () => void): void {
    this.#resume.push(resume);
  }

  get texts(): string[] {
    return this.events.map(({ payload }) => Buffer.from(payload).toString());
  }

  acknowledgeAll(): void {
    const held = [...this.#held.values()];
    this.#held.clear();
    for (const completion of held) completion.release();
    this.congested = false;
    for (const resume of this.#resume.splice(0)) resume();
  }
}

interface Running {
  readonly source: OutboxSource;
  readonly sink: HoldingSink;
  readonly log: LogRecorder;
  readonly stop: AbortController;
  readonly deadline: AbortController;
  /** What `run` ended with. */
  readonly ended: Promise<unknown>;
}

function makeSource(
  uri: string,
  sink: HoldingSink,
  log: LogRecorder,
  channels: readonly string[],
): OutboxSource {
  return new OutboxSource({
    params: parseConnectionUri(uri, uriEnvironment()),
    channels: () => channels,
    sink,
    log: log.logger,
    absentRetryMs: 100,
  });
}

/** Runs the source once, as the supervisor does, and waits until it is open. */
async function start(
  scope: Scope,
  { source, sink, log }: Pick<Running, "source" | "sink" | "log">,
): Promise<Running> {
  const stop = new AbortController();
  const deadline = new AbortController();
  let isOpen = false;
  let outcome: { value: unknown } | undefined;
  const ended = source.run({ onOpen: () => isOpen = true, stopping: stop.signal, deadline: deadline.signal })
    .then(() => undefined, (error: unknown) => error)
    .then((value) => (outcome = { value }).value);
  scope.defer(async () => {
    stop.abort();
    deadline.abort();
    await ended;
  });
  await until(() => isOpen || outcome !== undefined, { what: "the source to open" });
  if (!isOpen) throw outcome?.value;
  return { source, sink, log, stop, deadline, ended };
}

function begin(scope: Scope, uri: string, sink = new HoldingSink(["c"]), channels = ["c"]): Promise<Running> {
  const log = new LogRecorder();
  return start(scope, { source: makeSource(uri, sink, log, channels), sink, log });
}

async function database(scope: Scope): Promise<TestDatabase> {
  const made = await scope.database(await sharedServer("postgres"));
  await installEvents(made.uri);
  return made;
}

async function send({ sql }: TestDatabase, text: string, channel = "c"): Promise<void> {
  await sql`select events.send_message(${channel}, ${text}, 'key', true)`;
}

async function storedCount({ sql }: TestDatabase): Promise<number> {
  const [row] = await sql<{ count: number }[]>`select count(*)::int as count from events.events`;
  return row?.count ?? -1;
}

const emptied = (from: TestDatabase) =>
  until(async () => await storedCount(from) === 0, { what: "the table to be empty" });

async function cutConnections({ sql, name }: TestDatabase): Promise<void> {
  await sql`select pg_terminate_backend(pid) from pg_stat_activity
             where datname = ${name} and application_name = 'pg-event-proxy'`;
}

scenario("rows are deleted only when acknowledged, and not handed out twice after a lost connection", async (scope) => {
  const db = await database(scope);
  const first = await begin(scope, db.uri);
  const { source, sink, log } = first;
  sink.acknowledgesAtOnce = false;
  for (const text of ["one", "two", "three"]) await send(db, text);
  await until(() => sink.events.length === 3, { what: "three events" });
  assert.equal(await storedCount(db), 3);
  await cutConnections(db);
  assert.match(String(await first.ended), /was lost/);
  await send(db, "four");
  sink.acknowledgeAll();
  await start(scope, { source, sink, log });
  await until(() => sink.events.length === 4, { what: "the fourth event" });
  await until(async () => await storedCount(db) === 1, { what: "the first three to be deleted" });
  sink.acknowledgeAll();
  await emptied(db);
  assert.deepEqual(sink.texts, ["one", "two", "three", "four"]);
  assert.deepEqual(source.counts, { received: 4, deleted: 4 });
  assert.deepEqual(sink.events.map(({ id, type, routingKey, json }) => [id, type, routingKey, json]), [
    ["1", "notify", "key", false],
    ["2", "notify", "key", false],
    ["3", "notify", "key", false],
    ["4", "notify", "key", false],
  ]);
});

scenario("another process gets what this one had not acknowledged, with the same ids", async (scope) => {
  const db = await database(scope);
  const one = await begin(scope, db.uri);
  one.sink.acknowledgesAtOnce = false;
  await send(db, "a");
  await send(db, "b");
  await until(() => one.sink.events.length === 2, { what: "two events" });
  await assert.rejects(begin(scope, db.uri), (error) => error instanceof StandingByError);
  await cutConnections(db);
  await one.ended;
  const other = await begin(scope, db.uri);
  await emptied(db);
  assert.deepEqual(other.sink.events.map(({ id }) => id), one.sink.events.map(({ id }) => id));
});

scenario("a stop waits for acknowledgements, deletes, and leaves nothing to repeat", async (scope) => {
  const db = await database(scope);
  const { sink, stop, ended, log } = await begin(scope, db.uri);
  sink.acknowledgesAtOnce = false;
  await send(db, "held");
  await until(() => sink.events.length === 1, { what: "the event" });
  stop.abort();
  await send(db, "after the stop");
  assert.equal(await Promise.race([ended.then(() => "ended"), storedCount(db).then(() => "waits")]), "waits");
  sink.acknowledgeAll();
  assert.equal(await ended, undefined);
  assert.deepEqual([await storedCount(db), sink.texts], [1, ["held"]]);
  assert.deepEqual(log.texts, []);

  const holding = new HoldingSink(["c"]);
  holding.acknowledgesAtOnce = false;
  const again = await begin(scope, db.uri, holding);
  await until(() => again.sink.events.length === 1, { what: "the event" });
  again.stop.abort();
  again.deadline.abort();
  assert.equal(await again.ended, undefined);
  assert.match(again.log.texts.join(), /stopping with 1 durable messages not acknowledged/);
  assert.equal(await storedCount(db), 1);
});

scenario("a transaction that commits late is found at once, also one of many rows", async (scope) => {
  const db = await database(scope);
  const { sink } = await begin(scope, db.uri);
  const late = await db.sql.reserve();
  const manyLate = await db.sql.reserve();
  scope.defer(() => {
    late.release();
    manyLate.release();
  });
  await late`begin`;
  await late`select events.send_message('c', 'late', '', true)`;
  await manyLate`begin`;
  await manyLate`select events.send_message('c', 'late ' || i, '', true) from generate_series(1, 3500) i`;
  await send(db, "early");
  await until(() => sink.events.length === 1, { what: "the early message" });
  await manyLate`commit`;
  await until(() => sink.events.length === 3501, { what: "the 3,500 late messages", timeoutMs: 10_000 });
  assert.deepEqual(sink.texts.slice(1), Array.from({ length: 3500 }, (_, i) => `late ${i + 1}`));
  await send(db, "between");
  await late`commit`;
  await until(() => sink.events.length === 3503, { what: "the message of the first transaction", timeoutMs: 10_000 });
  assert.deepEqual([...sink.texts.slice(3501)].sort(), ["between", "late"]);
  await emptied(db);
  assert.equal(sink.events.length, 3503, "none twice");
});

scenario("rows written by hand are delivered, by the rules of NOTIFY where they have no key", async (scope) => {
  const db = await database(scope);
  await db
    .sql`insert into events.events (channel, message) values ('c', 'a|b|c'), ('c', '{"a": "b|c"}'), ('c', 'plain')`;
  await db
    .sql`insert into events.events (channel, message, routing_key) values ('c', '{"a": 1}', ''), ('c', '{a|b', 'k|l')`;
  const { sink } = await begin(scope, db.uri);
  await until(() => sink.events.length === 5, { what: "five events" });
  assert.deepEqual(sink.events.map(({ routingKey, json }, i) => [routingKey, sink.texts[i], json]), [
    ["a", "b|c", false],
    ["", '{"a": "b|c"}', true],
    ["", "plain", false],
    ["", '{"a": 1}', true],
    ["k|l", "{a|b", false],
  ]);
});

scenario("a congested sink is given no more, and the rest when it is relieved", async (scope) => {
  const db = await database(scope);
  await db.sql`
    select events.send_message('c', repeat('x', 100000), '', true) from generate_series(1, 300)`;
  const sink = new HoldingSink(["c"]);
  sink.acknowledgesAtOnce = false;
  sink.room = 10;
  await begin(scope, db.uri, sink);
  for (let wanted = 10; wanted <= 300; wanted += 10) {
    await until(() => sink.events.length === wanted, { what: () => `${wanted} events, not ${sink.events.length}` });
    sink.acknowledgeAll();
  }
  await emptied(db);
  assert.equal(new Set(sink.events.map(({ id }) => id)).size, 300);
});

scenario("rows of other channels are passed over, told once with their number, and kept", async (scope) => {
  const db = await database(scope);
  await db.sql`select events.send_message('unbound', 'x', '', true) from generate_series(1, 2500)`;
  await send(db, "bound");
  const { sink, log } = await begin(scope, db.uri, new HoldingSink(["c", "d"]), ["c", "d"]);
  await until(() => sink.events.length === 1, { what: "the bound message" });
  await send(db, "y", "unbound");
  await send(db, "more", "d");
  await until(() => sink.events.length === 2, { what: "the second" });
  await until(async () => await storedCount(db) === 2501, { what: "only the unbound ones to be left" });
  const told = log.texts.filter((text) => text.includes("has no binding"));
  assert.deepEqual(told.length, 1, log.texts.join("\n"));
  assert.match(told[0] ?? "", /channel "unbound" has no binding: its durable messages, 2500 now, stay/);
});

scenario(
  "two that drain different channels of one database do so side by side, and take over from each other",
  async (scope) => {
    const db = await database(scope);
    const ab = await begin(scope, db.uri, new HoldingSink(["a", "b"]), ["a", "b"]);
    const bc = await begin(scope, db.uri, new HoldingSink(["b", "c"]), ["b", "c"]);
    assert.match(
      bc.log.texts.join(),
      /another session drains the durable messages of "b", and this one those of "c" only/,
    );
    for (const channel of ["a", "b", "c"]) await send(db, `to ${channel}`, channel);
    await emptied(db);
    assert.deepEqual([ab.sink.texts, bc.sink.texts], [["to a", "to b"], ["to c"]]);
    ab.stop.abort();
    await ab.ended;
    await send(db, "to b again", "b");
    await until(() => bc.sink.texts.includes("to b again"), { what: "the other to take over b" });
    await emptied(db);
  },
);

scenario("a database without the schema is looked at now and then over no lasting connection", async (scope) => {
  const db = await scope.database(await sharedServer("postgres"));
  const { sink, log } = await begin(scope, db.uri);
  await until(async () => {
    const [row] = await db.sql<{ count: number }[]>`
      select count(*)::int as count from pg_stat_activity
       where datname = ${db.name} and application_name = 'pg-event-proxy'`;
    return row?.count === 0;
  }, { what: "no session to be left" });
  await db.sql`create schema events`;
  await db.sql`create table events.events (id uuid, type text)`;
  await until(() => log.texts.some((text) => text.includes("is another's")), { what: "the foreign table to be seen" });
  await db.sql`drop table events.events`;
  await installEvents(db.uri);
  await send(db, "found");
  await until(() => sink.events.length === 1, { what: "the message" });
  assert.ok(log.lines.every(({ level }) => level === "debug"), log.texts.join("\n"));
});

scenario("the older helper's table is drained, and its successor at once when installed", async (scope) => {
  const db = await scope.database(await sharedServer("postgres"));
  await runScript(db.uri, OLD_HELPER_SQL);
  await db.sql`select events.send_message('c', 'message ' || i, 'key ' || i, true) from generate_series(1, 2300) i`;
  const { sink, log } = await begin(scope, db.uri);
  await until(() => sink.events.length === 2300, { what: "the stored messages" });
  await emptied(db);
  assert.deepEqual(sink.texts, Array.from({ length: 2300 }, (_, i) => `message ${i + 1}`));
  assert.deepEqual(sink.events[41]?.routingKey, "key 42");
  assert.match(log.texts.join(), /events\.events is the older helper's/);
  await db.sql`select events.send_message('c', 'not lost', 'key', true)`;
  await installEvents(db.uri);
  await db.sql`select events.send_message('c', 'new|one', 'new key', true)`;
  await until(() => sink.texts.includes("new|one"), { what: "the message after the take-over" });
  // What was being deleted when the table was altered may come a second time.
  const last = new Map(sink.events.slice(2300).map(({ routingKey }, i) => [sink.texts[2300 + i], routingKey]));
  assert.deepEqual([...last], [["not lost", "key"], ["new|one", "new key"]]);
});

scenario("ids that come again in a new table are not taken for delivered ones", async (scope) => {
  const db = await database(scope);
  const { sink, log } = await begin(scope, db.uri);
  sink.acknowledgesAtOnce = false;
  await send(db, "old");
  await until(() => sink.events.length === 1, { what: "the first message" });
  await db.sql`drop schema events cascade`;
  await installEvents(db.uri);
  await send(db, "new, of the same id");
  await until(() => sink.events.length === 2, { what: "the message of the new table" });
  assert.deepEqual(sink.events.map(({ id }) => id), ["1", "1"]);
  assert.match(log.texts.join(), /was altered or is another server's: 1 messages may be delivered twice/);
  sink.acknowledgeAll();
  await emptied(db);
});

scenario("a role without rights on the table is told which to grant", async (scope) => {
  const db = await database(scope);
  const { uri, name } = await scope.role(db, "");
  await assert.rejects(begin(scope, uri), (error) => {
    assert.ok(error instanceof PermanentError, String(error));
    assert.ok(error.message.includes(`GRANT SELECT, DELETE ON events.events TO ${name}`), error.message);
    return true;
  });
  await db.sql.unsafe(`grant usage on schema events to ${name}; grant select, delete on events.events to ${name}`);
  const { sink } = await begin(scope, uri);
  await send(db, "granted");
  await until(() => sink.events.length === 1, { what: "the message" });
  await emptied(db);
});

scenario("senders that come fast stop calling, and those that come slowly are heard at once", async (scope) => {
  const db = await database(scope);
  const { sink } = await begin(scope, db.uri);
  let calls = 0;
  const listener = postgres(db.uri, { max: 1 });
  scope.defer(() => listener.end({ timeout: 1 }));
  await listener.listen("pg_event_proxy_outbox", () => calls++);
  for (let i = 0; i < 1_000; i++) await send(db, String(i));
  await until(() => sink.events.length === 1_000, { what: "a thousand messages" });
  assert.ok(calls < 300, `${calls} of 1,000 senders called`);
  assert.deepEqual(sink.texts, Array.from({ length: 1_000 }, (_, i) => String(i)));
  await emptied(db);
  const asleep = () =>
    until(async () => {
      const [row] = await db.sql<{ held: boolean }[]>`
        select exists (select from pg_locks where locktype = 'advisory' and classid = 1885824362 and granted
                        and database = (select oid from pg_database where datname = ${db.name})) as held`;
      return row?.held;
    }, { what: "the source to sleep" });
  for (let i = 0; i < 5; i++) {
    await asleep();
    const before = calls;
    await send(db, `slow ${i}`);
    await until(() => sink.texts.at(-1) === `slow ${i}`, { what: "the slow message", timeoutMs: 5_000 });
    // The call reaches this listener by a connection of its own, which may be the later one.
    await until(() => calls > before, { what: "the call", timeoutMs: 5_000 });
  }
});

scenario(
  "a connection that goes silent is given up, and what the server keeps of it does not keep us out",
  async (scope) => {
    const db = await database(scope);
    const relay = scope.keep(await TcpRelay.start({ targetPort: Number(new URL(db.uri).port) }));
    const { source, sink, log, ended } = await begin(scope, relay.uriOf(db.uri));
    sink.acknowledgesAtOnce = false;
    await send(db, "before");
    await until(() => sink.events.length === 1, { what: "the first message" });
    relay.swallow();
    sink.acknowledgeAll();
    await send(db, "meanwhile");
    assert.match(String(await ended), /did not answer in 20 s: the connection is given up/);
    sink.acknowledgesAtOnce = true;
    await start(scope, { source, sink, log });
    await emptied(db);
    assert.deepEqual(sink.texts, ["before", "meanwhile"], "none twice");
    const [sessions] = await db.sql<{ count: number }[]>`
    select count(*)::int as count from pg_stat_activity
     where datname = ${db.name} and application_name = 'pg-event-proxy'`;
    assert.equal(sessions?.count, 1);
  },
);
