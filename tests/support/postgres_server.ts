/** A throw-away PostgreSQL with logical decoding and wal2json. */

import { spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import {
  appendFileSync,
  chmodSync,
  chownSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import process from "node:process";
import postgres from "postgres";
import {
  type Command,
  findProgram,
  freePort,
  programPaths,
  type RunningServer,
  runProgram,
  type Server,
  ServerProcess,
  type TlsFiles,
  Workspace,
} from "./server_process.ts";
import { until } from "./wait.ts";

export interface Database {
  readonly name: string;
  /** As superuser, over TCP. */
  readonly uri: string;
  /** Ends its sessions, drops its replication slots, and drops it. Idempotent. */
  drop(): Promise<void>;
}

export interface RunningPostgres extends RunningServer {
  /** The same as `uri`: user `postgres`, database `postgres`, over TCP, without a password. */
  readonly superuserUri: string;
  /** An empty database with a name of its own, beginning with `prefix`. */
  createDatabase(prefix?: string): Promise<Database>;
}

export interface PostgresServer extends Server, RunningPostgres {
  /** Folder of its Unix socket. */
  readonly socketDir: string;
  /** Folder of `pg_recvlogical`, `psql` and the others of its version. */
  readonly binDir: string;
  readonly dataDir: string;
}

export interface PostgresOptions {
  /** Over the defaults below; values as in postgresql.conf, without quotes. */
  readonly settings?: Readonly<Record<string, string>>;
  /** Switches `ssl` on; the CA checks client certificates. */
  readonly tls?: TlsFiles;
  /** Lines of pg_hba.conf in place of "everybody is trusted". The superuser stays trusted on the socket and 127.0.0.1. */
  readonly clientAuth?: readonly string[];
}

const DEFAULT_SETTINGS: Readonly<Record<string, string>> = {
  listen_addresses: "127.0.0.1",
  wal_level: "logical",
  max_wal_senders: "40",
  max_replication_slots: "60",
  max_connections: "120",
  // Nothing here outlives the machine; a killed server loses nothing, since the kernel has the pages.
  fsync: "off",
  full_page_writes: "off",
  shared_buffers: "64MB",
  max_wal_size: "2GB",
  log_min_messages: "warning",
  logging_collector: "off",
  // Its transactions would come and go as empty ones among those that a test counts.
  autovacuum: "off",
};

export async function startPostgres(options: PostgresOptions = {}): Promise<PostgresServer> {
  const binDir = findBinDir();
  const port = await freePort();
  const workspace = new Workspace("postgres");
  try {
    const dataDir = join(workspace.dir, "data");
    await makeDataDir(binDir, dataDir);
    writeConfig(binDir, { ...options, dataDir, socketDir: workspace.dir, port });
    const server = new PostgresProcess(workspace, binDir, port);
    await server.start();
    return server;
  } catch (error) {
    await workspace.remove();
    throw error;
  }
}

/** A PostgreSQL that is running already; `uri` must be a superuser's. */
export function runningPostgres(uri: string): RunningPostgres {
  const url = new URL(uri);
  return {
    name: "postgres",
    port: Number(url.port || "5432"),
    uri,
    superuserUri: uri,
    createDatabase: (prefix) => createDatabase(uri, prefix),
  };
}

/** Makes a data folder that later servers of this run copy, which is four times as fast as `initdb`. */
export async function makePostgresTemplate(dir: string): Promise<void> {
  await initdb(findBinDir(), dir);
}

class PostgresProcess extends ServerProcess implements PostgresServer {
  readonly socketDir: string;
  readonly binDir: string;
  readonly dataDir: string;

  constructor(workspace: Workspace, binDir: string, port: number) {
    const uri = `postgres://postgres@127.0.0.1:${port}/postgres`;
    const dataDir = join(workspace.dir, "data");
    super({
      name: "postgres",
      port,
      uri,
      workspace,
      commands: [asPostgresUser(join(binDir, "postgres"), ["-D", dataDir])],
      // SIGINT is the fast shutdown: sessions are ended, a checkpoint is written.
      shutdownSignal: "SIGINT",
      answers: () => withSql(uri, async (sql) => void (await sql`select 1`)),
    });
    this.socketDir = workspace.dir;
    this.binDir = binDir;
    this.dataDir = dataDir;
  }

  get superuserUri(): string {
    return this.uri;
  }

  createDatabase(prefix?: string): Promise<Database> {
    return createDatabase(this.uri, prefix);
  }
}

async function createDatabase(superuserUri: string, prefix = "test"): Promise<Database> {
  const name = `${prefix}_${randomBytes(5).toString("hex")}`;
  await withSql(superuserUri, (sql) => sql`create database ${sql(name)}`);
  const url = new URL(superuserUri);
  url.pathname = `/${name}`;
  return { name, uri: url.href, drop: () => withSql(superuserUri, (sql) => dropDatabase(sql, name)) };
}

async function dropDatabase(sql: postgres.Sql, name: string): Promise<void> {
  // The owner of a slot may come back between the two steps: again until the slots are gone.
  await until(async () => {
    await sql`select pg_terminate_backend(pid) from pg_stat_activity where datname = ${name}`;
    await sql`select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = ${name} and not active`;
    const [{ left }] = await sql<{ left: number }[]>`
      select count(*)::int as left from pg_replication_slots where database = ${name}`;
    return left === 0;
  }, { what: `the replication slots of ${name} to be dropped`, intervalMs: 50 });
  await sql`drop database if exists ${sql(name)} with (force)`;
}

async function withSql<T>(uri: string, work: (sql: postgres.Sql) => PromiseLike<T>): Promise<T> {
  const sql = postgres(uri, { max: 1, connect_timeout: 5, onnotice: () => {} });
  try {
    return await work(sql);
  } finally {
    await sql.end({ timeout: 2 });
  }
}

/** The newest installed version that has wal2json, or the one that `PGPROXY_TEST_POSTGRES_BIN` names. */
function findBinDir(): string {
  const named = process.env.PGPROXY_TEST_POSTGRES_BIN;
  if (named !== undefined && named !== "") return named;
  const versions = listDir("/usr/lib/postgresql").filter((name) => /^\d+$/.test(name)).sort((a, b) => +b - +a)
    .map((version) => `/usr/lib/postgresql/${version}`);
  const paths = [
    ...versions.filter((dir) => existsSync(`${dir}/lib/wal2json.so`)).map((dir) => `${dir}/bin/postgres`),
    ...versions.map((dir) => `${dir}/bin/postgres`),
    ...programPaths("postgres"),
    "/usr/local/pgsql/bin/postgres",
    "/opt/homebrew/bin/postgres",
  ];
  return dirname(findProgram("PostgreSQL", paths, "postgresql"));
}

function listDir(dir: string): string[] {
  try {
    return readdirSync(dir);
  } catch {
    return [];
  }
}

async function makeDataDir(binDir: string, dataDir: string): Promise<void> {
  const template = process.env.PGPROXY_TEST_POSTGRES_TEMPLATE;
  if (template === undefined || template === "") {
    await initdb(binDir, dataDir);
  } else if (process.getuid?.() === 0) {
    await runProgram("cp", ["-a", template, dataDir]);
  } else {
    cpSync(template, dataDir, { recursive: true });
    chmodSync(dataDir, 0o700);
  }
}

async function initdb(binDir: string, dataDir: string): Promise<void> {
  mkdirSync(dataDir, { mode: 0o700 });
  const owner = postgresOwner();
  if (owner !== undefined) chownSync(dataDir, owner.uid, owner.gid);
  const args = ["-D", dataDir, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"];
  const { file, args: allArgs } = asPostgresUser(join(binDir, "initdb"), args);
  await runProgram(file, allArgs);
}

interface ConfigOptions extends PostgresOptions {
  readonly dataDir: string;
  readonly socketDir: string;
  readonly port: number;
}

function writeConfig(binDir: string, { dataDir, socketDir, port, settings, tls, clientAuth }: ConfigOptions): void {
  const owner = postgresOwner();
  if (owner !== undefined) chownSync(socketDir, owner.uid, owner.gid);
  const all: Record<string, string> = {
    ...DEFAULT_SETTINGS,
    port: String(port),
    unix_socket_directories: socketDir,
    ...allowWal2json(binDir, dataDir),
    ...tls === undefined ? {} : {
      ssl: "on",
      ssl_ca_file: copyForServer(tls.caFile, dataDir, "ca.crt"),
      ssl_cert_file: copyForServer(tls.certFile, dataDir, "server.crt"),
      ssl_key_file: copyForServer(tls.keyFile, dataDir, "server.key"),
    },
    ...settings,
  };
  const lines = Object.entries(all).map(([name, value]) => `${name} = '${value.replaceAll("'", "''")}'`);
  appendFileSync(join(dataDir, "postgresql.conf"), `\n${lines.join("\n")}\n`);
  const everybody = ["local all all trust", "host all all 127.0.0.1/32 trust", "local replication all trust"];
  writeFileSync(
    join(dataDir, "pg_hba.conf"),
    ["local all postgres trust", "host all postgres 127.0.0.1/32 trust", ...clientAuth ?? everybody, ""].join("\n"),
  );
}

/**
 * The minor releases of 2026 load only the output plugins that a setting lists; a server without that setting does not
 * start with it. `postgres -C` knows.
 */
function allowWal2json(binDir: string, dataDir: string): Record<string, string> {
  const setting = "output_plugin_libraries";
  const { file, args } = asPostgresUser(join(binDir, "postgres"), ["-D", dataDir, "-C", setting]);
  const probe = spawnSync(file, [...args], { cwd: "/", encoding: "utf8" });
  if (probe.status !== 0) return {};
  const listed = probe.stdout.trim().split(",").map((name) => name.trim()).filter((name) => name !== "");
  return { [setting]: [...new Set([...listed, "pgoutput", "test_decoding", "wal2json"])].join(", ") };
}

/** The server wants its key private and its own. */
function copyForServer(source: string, dataDir: string, name: string): string {
  const target = join(dataDir, name);
  writeFileSync(target, readFileSync(source), { mode: 0o600 });
  const owner = postgresOwner();
  if (owner !== undefined) chownSync(target, owner.uid, owner.gid);
  return target;
}

/** Whom the files must belong to; undefined when this process may run the server itself. PostgreSQL refuses root. */
export function postgresOwner(): { readonly uid: number; readonly gid: number } | undefined {
  if (process.getuid?.() !== 0) return undefined;
  const line = readFileSync("/etc/passwd", "utf8").split("\n").find((entry) => entry.startsWith("postgres:"));
  if (line === undefined) {
    throw new Error("PostgreSQL does not run as root and there is no user postgres: useradd postgres");
  }
  const [, , uid, gid] = line.split(":");
  return { uid: Number(uid), gid: Number(gid) };
}

export function asPostgresUser(file: string, args: readonly string[]): Command {
  const owner = postgresOwner();
  if (owner === undefined) return { file, args };
  const setpriv = ["--reuid", String(owner.uid), "--regid", String(owner.gid), "--clear-groups", "--", file];
  return { file: "setpriv", args: [...setpriv, ...args] };
}
