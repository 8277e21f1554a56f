/**
 * The program behind `scripts/demo`: one instance of the executable per upstream, configured with the manual's variables,
 * statements, and consumers of each broker that know nothing of the program.
 */

import process from "node:process";
import { setTimeout as delay } from "node:timers/promises";
import postgres from "postgres";
import { consumeAmqp, consumeMqtt, consumeRedis } from "../tests/support/consumers.ts";
import { type Proxy, startProxy } from "../tests/support/proxy.ts";
import { type Database, sharedServer, stopEverything } from "../tests/support/servers.ts";
import { until } from "../tests/support/wait.ts";
import { type Arrival, printHeading, printReceived, printRow, printText, shorten } from "./demo_table.ts";

const KINDS = ["amqp", "mqtt", "redis", "stdout"] as const;
type Kind = typeof KINDS[number];

/** What has arrived and was not yet shown, in order: the two kinds come on ways of their own. */
interface Arrivals {
  readonly notifications: Arrival[];
  readonly wal: Arrival[];
}

/** One instance of the program with the consumer of its broker. */
interface Line {
  readonly title: string;
  readonly arrivals: Arrivals;
  readonly proxy: Proxy;
  /** Where a notification with this key has to arrive. */
  notificationPlace(routingKey: string): string;
  /** Where the WAL record has to arrive. */
  walPlace(record: string): string;
  close(): Promise<unknown>;
}

/** The shell's exit code for a program ended by SIGINT. */
const INTERRUPTED = 130;
const ARRIVAL_LIMIT_MS = 10_000;
const REFERENCE_SLOT = "demo_reference";
/** The default of `wal2json_params`. */
const WAL2JSON_PARAMS = ["format-version", "2", "include-types", "0"] as const;

const ACTIONS: Readonly<Record<string, string>> = { I: "insert", U: "update", D: "delete", T: "truncate" };

const STATEMENTS = [
  "NOTIFY events, 'Hello'",
  "NOTIFY events, 'signup|A new user signup'",
  `NOTIFY events, '{"json": "is never split | at a bar"}'`,
  "INSERT INTO users (name) VALUES ('Ada'), ('Grace')",
  "UPDATE users SET score = 9007199254740993.10 WHERE name = 'Ada'",
  "DELETE FROM users WHERE name = 'Grace'",
  "TRUNCATE users",
];

const FOREVER = [
  (n: number) => `INSERT INTO users (name, score) VALUES ('user ${n}', ${n})`,
  (n: number) => `NOTIFY events, 'tick|The time is ${new Date().toISOString()} (${n})'`,
  (n: number) => `UPDATE users SET score = score + 1 WHERE name = 'user ${n - 2}'`,
  (n: number) => `NOTIFY events, 'Statement number ${n}'`,
];

const args = process.argv.slice(2);
const forever = args.includes("--forever");
const chosen = KINDS.filter((kind) => args.includes(kind));
const kinds = chosen.length === 0 ? KINDS : chosen;

let sendingForever = false;
const interruption = new AbortController();
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => interruption.abort(signal));

process.exit(await main());

async function main(): Promise<number> {
  const cleanUps: Array<() => Promise<unknown>> = [];
  const beginning = performance.now();
  let exitCode = 1;
  try {
    const demo = runDemo(cleanUps);
    // What it still waits for after Ctrl-C fails when the servers go.
    demo.catch(() => {});
    exitCode = await Promise.race([demo, interrupted()]);
  } catch (error) {
    process.stderr.write(`demo: ${error instanceof Error ? error.message : String(error)}\n`);
  }
  for (let cleanUp = cleanUps.pop(); cleanUp !== undefined; cleanUp = cleanUps.pop()) await cleanUp().catch(() => {});
  await stopEverything();
  const seconds = ((performance.now() - beginning) / 1000).toFixed(1);
  printText(`Everything was stopped and removed; ${seconds} s in all.`);
  return exitCode;
}

/** Once --forever has begun to send, Ctrl-C is the normal end, and the demo itself sees to it. */
function interrupted(): Promise<number> {
  return new Promise((resolve) => {
    interruption.signal.addEventListener("abort", () => {
      if (!sendingForever) resolve(INTERRUPTED);
    }, { once: true });
  });
}

async function runDemo(cleanUps: Array<() => Promise<unknown>>): Promise<number> {
  const names = ["PostgreSQL", ...kinds.filter((kind) => kind !== "stdout").map(brokerName)];
  printText(`Starting throw-away servers on free ports: ${names.join(", ")}`);
  const [server] = await Promise.all([sharedServer("postgres"), ...kinds.map(brokerUri)]);
  const database = await server.createDatabase("demo");
  cleanUps.push(() => database.drop());
  const sql = postgres(database.uri, { max: 1, onnotice: () => {} });
  cleanUps.push(() => sql.end({ timeout: 1 }));
  await sql`create table users (id int generated always as identity primary key, name text, score numeric)`;
  await sql`select pg_create_logical_replication_slot(${REFERENCE_SLOT}, 'wal2json')`;

  const lines: Line[] = [];
  for (const kind of kinds) {
    const line = await startLine(kind, database);
    lines.push(line);
    cleanUps.push(() => line.close());
  }
  await Promise.all(lines.map(({ proxy }) => proxy.waitForReady()));
  printHeading();
  const tally = new Tally();
  for (const statement of STATEMENTS) await sendAndShow(sql, statement, lines, tally);
  sendingForever = forever;
  for (let n = 1; forever && !interruption.signal.aborted; n++) {
    const make = FOREVER[n % FOREVER.length];
    if (make !== undefined) await sendAndShow(sql, make(n), lines, tally);
    await delay(1_000, undefined, { signal: interruption.signal }).catch(() => {});
  }
  return await summarize(lines, tally);
}

class Tally {
  statements = 0;
  messages = 0;
  missing = 0;
  readonly latenciesMs: number[] = [];
}

/** Runs the statement, learns from the reference slot what the WAL says of it, and shows what arrives. */
async function sendAndShow(sql: postgres.Sql, statement: string, lines: readonly Line[], tally: Tally): Promise<void> {
  const sentAtMs = performance.timeOrigin + performance.now();
  await sql.unsafe(statement);
  const expected = [...expectedNotification(statement), ...await expectedRecords(sql)];
  tally.statements++;
  await Promise.all(lines.map(({ arrivals }) => untilArrived(arrivals, expected)));
  printRow(statement);
  for (const line of lines) {
    const shown: Arrival[] = [];
    const missing: Expected[] = [];
    for (const wanted of expected) {
      const arrival = line.arrivals[wanted.source].shift();
      if (arrival !== undefined && !isTransactionRecord(arrival.payload)) shown.push(arrival);
      if (arrival !== undefined && isSame(wanted, arrival, line)) tally.latenciesMs.push(arrival.atMs - sentAtMs);
      else missing.push(wanted);
    }
    tally.messages += expected.length - missing.length;
    tally.missing += missing.length;
    printReceived(line.title, shown, sentAtMs);
    for (const { payload } of missing) {
      printText(`  ${line.title} did not get this within ${ARRIVAL_LIMIT_MS / 1000} s, or in another form: ${payload}`);
    }
  }
}

interface Expected {
  readonly source: keyof Arrivals;
  /** Of a notification. */
  readonly routingKey: string;
  readonly payload: string;
}

function expectedNotification(statement: string): Expected[] {
  const text = /^NOTIFY \w+, '(.*)'$/.exec(statement)?.[1];
  if (text === undefined) return [];
  const bar = text.startsWith("{") ? -1 : text.indexOf("|");
  return [{ source: "notifications", routingKey: text.slice(0, Math.max(bar, 0)), payload: text.slice(bar + 1) }];
}

/** What PostgreSQL itself says of the transactions since the last call; those of autovacuum may be among them. */
async function expectedRecords(sql: postgres.Sql): Promise<Expected[]> {
  const records = await sql<{ data: string }[]>`
    select data from pg_logical_slot_get_changes(${REFERENCE_SLOT}, null, null, ${WAL2JSON_PARAMS[0]},
      ${WAL2JSON_PARAMS[1]}, ${WAL2JSON_PARAMS[2]}, ${WAL2JSON_PARAMS[3]})`;
  return records.map(({ data }) => ({ source: "wal", routingKey: "", payload: data }));
}

/** Gives up in silence: what is missing is told by the table. */
async function untilArrived(arrivals: Arrivals, expected: readonly Expected[]): Promise<void> {
  const count = (wanted: keyof Arrivals) => expected.filter(({ source }) => source === wanted).length;
  const haveArrived = () =>
    arrivals.wal.length >= count("wal") && arrivals.notifications.length >= count("notifications");
  await until(haveArrived, { what: "arrivals", timeoutMs: ARRIVAL_LIMIT_MS, intervalMs: 5 }).catch(() => {});
}

function isSame({ source, routingKey, payload }: Expected, arrival: Arrival, line: Line): boolean {
  const place = source === "wal" ? line.walPlace(payload) : line.notificationPlace(routingKey);
  return arrival.payload === payload && arrival.place === place;
}

/** Begin and commit are delivered too; they are counted, but would only lengthen the table. */
function isTransactionRecord(payload: string): boolean {
  return /^\{"action":"[BC]"/.test(payload);
}

async function summarize(lines: readonly Line[], tally: Tally): Promise<number> {
  const codes = await Promise.all(lines.map(async ({ proxy }) => (await proxy.stop()).code));
  const sorted = tally.latenciesMs.sort((a, b) => a - b);
  const median = sorted[Math.floor(sorted.length / 2)] ?? 0;
  const everything = tally.missing === 0 && tally.messages > 0 && codes.every((code) => code === 0);
  printText("");
  printText(
    `${tally.statements} statements, ${tally.messages} messages at ${lines.length} upstream${
      lines.length === 1 ? "" : "s"
    }, ` +
      (tally.missing === 0 ? "none missing, byte for byte what PostgreSQL says" : `${tally.missing} MISSING`) +
      `; median ${median.toFixed(1)} ms from the statement to the consumer.`,
  );
  lines.forEach(({ title, proxy }, index) => {
    if (codes[index] !== 0) {
      printText(`The instance for ${title} ended with ${codes[index]}:\n${proxy.stderr.slice(-2_000)}`);
    } else if (tally.missing > 0) {
      printText(`The log of the instance for ${title}:\n${proxy.stderr.slice(-2_000)}`);
    }
  });
  return everything ? 0 : 1;
}

async function startLine(kind: Kind, database: Database): Promise<Line> {
  const arrivals: Arrivals = { notifications: [], wal: [] };
  const record = (arrival: Arrival) =>
    void arrivals[arrival.payload.startsWith('{"action":') ? "wal" : "notifications"].push(arrival);
  const uri = await brokerUri(kind);
  const consumer = await consume(kind, uri, record);
  const env = environmentOf(kind, uri, database);
  printText(`\n${brokerName(kind)}`);
  for (const [name, value] of Object.entries(env)) printText(`  ${name}=${shorten(value, 90)}`);
  const proxy = startProxy({
    runtime: "executable",
    env,
    onStdoutLine: (line) => {
      if (kind === "stdout") record(stdoutArrival(line));
    },
  });
  const close = () => Promise.all([proxy.stop(), consumer?.close()]);
  const title = brokerName(kind);
  switch (kind) {
    case "amqp":
      return { title, arrivals, proxy, close, notificationPlace: (key) => key, walPlace: walRoutingKey };
    case "mqtt": {
      const notificationPlace = (key: string) => key === "" ? "events" : `events.${key}`;
      return { title, arrivals, proxy, close, notificationPlace, walPlace: () => "wal" };
    }
    case "redis":
    case "stdout":
      return { title, arrivals, proxy, close, notificationPlace: () => "events", walPlace: () => "wal" };
  }
}

/** The variables of the manual, word for word but for the addresses. */
function environmentOf(kind: Kind, uri: string, database: Database): Record<string, string> {
  const common = {
    "PGPROXY_LOCAL-POSTGRESQL_URI": database.uri.replace(/^postgres:/, "postgresql:"),
    "PGPROXY_LOCAL-REPLICATION_SLOT": `demo_${kind}`,
    "PGPROXY_LOCAL-UPSTREAM": kind,
  };
  const topics = { "PGPROXY_LOCAL-UPSTREAM_CONFIG-BRIDGE_CHANNELS": "events->topic:events, wal2json->topic:wal" };
  switch (kind) {
    case "amqp":
      return {
        ...common,
        "PGPROXY_LOCAL-UPSTREAM_CONFIG-URI": `${uri}//`,
        "PGPROXY_LOCAL-UPSTREAM_CONFIG-BRIDGE_CHANNELS": "events->exchange:amq.topic, wal2json->exchange:amq.topic",
        "PGPROXY_LOCAL-UPSTREAM_CONFIG-DELIVERY_MODE": "1",
      };
    case "mqtt":
      return {
        ...common,
        "PGPROXY_LOCAL-UPSTREAM_CONFIG-URI": uri.replace(/^mqtt:/, "tcp:"),
        ...topics,
        "PGPROXY_LOCAL-UPSTREAM_CONFIG-USERNAME": "username",
        "PGPROXY_LOCAL-UPSTREAM_CONFIG-PASSWORD": "password",
      };
    case "redis":
      return { ...common, "PGPROXY_LOCAL-UPSTREAM_CONFIG-URI": uri, ...topics };
    case "stdout":
      return { ...common, ...topics };
  }
}

interface DemoConsumer {
  close(): Promise<void>;
}

async function consume(kind: Kind, uri: string, record: (arrival: Arrival) => void): Promise<DemoConsumer | undefined> {
  const onMessage = ({ key, text, receivedAtMs }: { key: string; text: string; receivedAtMs: number }) =>
    record({ place: key, payload: text, atMs: receivedAtMs });
  switch (kind) {
    case "amqp":
      return await consumeAmqp(uri, { exchange: "amq.topic", pattern: "#", onMessage });
    case "mqtt":
      return await consumeMqtt(uri, "#", { onMessage });
    case "redis":
      return await consumeRedis(uri, ["events", "wal"], { onMessage });
    case "stdout":
      return undefined;
  }
}

/** The payload of a row change stands in the line as it is, a notification's as a JSON string. */
function stdoutArrival(line: string): Arrival {
  const { target, payload } = JSON.parse(line);
  const raw = line.slice(line.indexOf(',"payload":') + ',"payload":'.length, -1);
  return {
    place: String(target),
    payload: typeof payload === "string" ? payload : raw,
    atMs: performance.timeOrigin + performance.now(),
  };
}

function walRoutingKey(record: string): string {
  const { action, schema, table } = JSON.parse(record);
  if (action === "B") return "begin";
  if (action === "C") return "commit";
  return `${schema}.${table}.${ACTIONS[action]}`;
}

function brokerName(kind: Kind): string {
  return { amqp: "RabbitMQ", mqtt: "Mosquitto", redis: "Redis", stdout: "stdout" }[kind];
}

async function brokerUri(kind: Kind): Promise<string> {
  switch (kind) {
    case "amqp":
      return (await sharedServer("rabbitmq")).uri;
    case "mqtt":
      return (await sharedServer("mosquitto")).uri;
    case "redis":
      return (await sharedServer("redis")).uri;
    case "stdout":
      return "";
  }
}
