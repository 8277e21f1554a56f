/** How the program gets to PostgreSQL: every sslmode, login method, socket, variable and password file of libpq. */

import assert from "node:assert/strict";
import { chmodSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after } from "node:test";
import { assertFinding, runCheck } from "../support/check_report.ts";
import { runProxy } from "../support/proxy.ts";
import { bridgeEnv, scenario, type Scope, type TestDatabase, uniqueName, waitForPrinted } from "../support/scenario.ts";
import { makeTlsFiles, type PostgresServer, startPostgres } from "../support/servers.ts";
import { Workspace } from "../support/server_process.ts";
import type { RemovableTlsFiles } from "../support/tls_files.ts";
import { until } from "../support/wait.ts";

interface Fixture {
  readonly server: PostgresServer;
  readonly tls: RemovableTlsFiles;
  /** An authority that has nothing to do with the server. */
  readonly stranger: RemovableTlsFiles;
}

/** One server for all; whoever logs in is told apart by the role's name. */
const CLIENT_AUTH = [
  "hostssl all tls_only 127.0.0.1/32 trust",
  "hostnossl all plain_only 127.0.0.1/32 trust",
  "host all scram_user 127.0.0.1/32 scram-sha-256",
  "host all md5_user 127.0.0.1/32 md5",
  "host all clear_user 127.0.0.1/32 password",
  "hostssl all proxy_user 127.0.0.1/32 cert",
  "local all socket_user scram-sha-256",
];
const ROLES = ["tls_only", "plain_only", "scram_user", "md5_user", "clear_user", "proxy_user", "socket_user"];
const PASSWORD = "pa:ss w%rd|\\é";

let fixture: Promise<Fixture> | undefined;

function servers(): Promise<Fixture> {
  return fixture ??= (async () => {
    const [tls, stranger] = await Promise.all([makeTlsFiles(), makeTlsFiles()]);
    return { server: await startPostgres({ tls, clientAuth: CLIENT_AUTH }), tls, stranger };
  })();
}
after(async () => {
  const made = await fixture;
  await made?.server.stop();
  await made?.tls.remove();
  await made?.stranger.remove();
});

async function prepared(scope: Scope): Promise<Fixture & { database: TestDatabase }> {
  const made = await servers();
  const database = await scope.database(made.server);
  for (const role of ROLES) {
    const encryption = role === "md5_user" ? "md5" : "scram-sha-256";
    await database.sql.unsafe(`set password_encryption = '${encryption}';
      do $$ begin create role ${role} login replication; exception when duplicate_object then null; end $$;
      alter role ${role} password '${PASSWORD.replaceAll("'", "''")}'`);
  }
  await database.sql.unsafe("create table t(id int primary key); grant all on t to public");
  return { ...made, database };
}

/** `user` at the test's database, with a password if `password` is given. */
function uriFor({ server }: Fixture, database: TestDatabase, user: string, parameters = "", password?: string): string {
  const secret = password === undefined ? "" : `:${encodeURIComponent(password)}`;
  return `postgresql://${user}${secret}@127.0.0.1:${server.port}/${database.name}${parameters}`;
}

/** Both a notification and a row arrive by this connection; returns whether the WAL's is encrypted. */
async function arrives(
  scope: Scope,
  database: TestDatabase,
  uri: string,
  env: Readonly<Record<string, string>> = {},
): Promise<boolean> {
  const bridge = bridgeEnv({
    uri,
    slot: uniqueName("slot"),
    kind: "stdout",
    bindings: "events->topic:events, wal2json->topic:wal",
  });
  const proxy = await scope.readyProxy({ env: { ...bridge, ...env } });
  const [{ ssl } = { ssl: false }] = await database.sql<{ ssl: boolean }[]>`
    select s.ssl from pg_stat_ssl s join pg_stat_replication r using (pid) join pg_replication_slots o
        on o.active_pid = r.pid where o.database = ${database.name}`;
  await database.sql`insert into t select coalesce(max(id), 0) + 1 from t`;
  await database.sql`select pg_notify('events', 'key|hello')`;
  const events = await waitForPrinted(proxy, 4);
  assert.equal(events.find(({ channel }) => channel === "events")?.text, "hello");
  assert.equal(events.filter(({ routing_key }) => routing_key === "public.t.insert").length, 1);
  await proxy.stop();
  return ssl;
}

async function refused(uri: string, line: RegExp): Promise<void> {
  for (const bindings of ["wal2json->topic:wal", "events->topic:events"]) {
    const { code, stderr } = await runProxy({ env: bridgeEnv({ uri, kind: "stdout", bindings }) });
    assert.equal(code, 1, stderr);
    const told = stderr.split("\n").filter((text) => text.startsWith("pg-event-proxy: "));
    assert.equal(told.length, 1, stderr);
    assert.match(told[0]!, line);
    assert.ok(!stderr.includes(PASSWORD));
  }
}

scenario("sslmode decides whether the connection is encrypted", async (scope) => {
  const made = await prepared(scope);
  const { database, tls } = made;
  const uri = (user: string, mode: string) => uriFor(made, database, user, `?sslmode=${mode}`);
  const root = `&sslrootcert=${tls.caFile}`;
  assert.equal(await arrives(scope, database, uri("postgres", "disable")), false);
  assert.equal(await arrives(scope, database, uri("postgres", "allow")), false);
  assert.equal(await arrives(scope, database, uri("tls_only", "allow")), true);
  assert.equal(await arrives(scope, database, uri("postgres", "prefer")), true);
  assert.equal(await arrives(scope, database, uri("plain_only", "prefer")), false);
  assert.equal(await arrives(scope, database, uri("postgres", "require")), true);
  assert.equal(await arrives(scope, database, uri("postgres", "verify-ca") + root), true);
  assert.equal(await arrives(scope, database, uri("postgres", "verify-full") + root), true);
}, { timeoutMs: 120_000 });

scenario("check tells what was negotiated, and what a login lacks", async (scope) => {
  const made = await prepared(scope);
  const { database, tls } = made;
  const check = (user: string, parameters: string, password?: string) =>
    runCheck(bridgeEnv({
      uri: uriFor(made, database, user, parameters, password),
      kind: "stdout",
      bindings: "wal2json->topic:wal",
    }));
  const verified = `?sslmode=verify-full&sslrootcert=${tls.caFile}&channel_binding=require`;
  const [secure, plain, wrong, missing, none] = await Promise.all([
    check("scram_user", verified, PASSWORD),
    check("postgres", "?sslmode=disable"),
    check("scram_user", "", "wrong"),
    check("scram_user", ""),
    check("md5_user", verified, PASSWORD),
  ]);
  assertFinding(
    secure,
    "connection",
    /^ok: TLSv1\.[23].*, certificate verified \(sslmode=verify-full\), channel binding/,
  );
  assertFinding(plain, "connection", /^ok: in plain text \(sslmode=disable\)/);
  assertFinding(wrong, "connection", /^failure: .*password authentication failed.* -> check user and password/);
  assertFinding(missing, "connection", /^failure: .*none is configured -> put it into the connection URI/);
  assertFinding(none, "connection", /^failure: .*does not offer channel binding.* -> it needs TLS and scram-sha-256/);
});

scenario("sslmode refuses what does not satisfy it", async (scope) => {
  const made = await prepared(scope);
  const { database, stranger } = made;
  const uri = (user: string, parameters: string) => uriFor(made, database, user, parameters);
  await refused(uri("tls_only", "?sslmode=disable"), /no pg_hba\.conf entry .*; check that the role exists/);
  await refused(uri("plain_only", "?sslmode=require"), /no pg_hba\.conf entry/);
  for (const mode of ["require", "verify-ca", "verify-full"]) {
    await refused(
      uri("postgres", `?sslmode=${mode}&sslrootcert=${stranger.caFile}`),
      new RegExp(`TLS with PostgreSQL .* failed: .*; sslmode=${mode} checks the server's certificate against`),
    );
  }
  await refused(uri("postgres", "?sslmode=verify-full"), /needs the certificate authority .* sslrootcert/);
}, { timeoutMs: 120_000 });

scenario("verify-full wants the host's name in the certificate, verify-ca does not", async (scope) => {
  const tls = await makeTlsFiles("DNS:db.example");
  scope.defer(() => tls.remove());
  const server = scope.keep(await startPostgres({ tls }));
  const database = await scope.database(server);
  await database.sql.unsafe("create table t(id int primary key)");
  const uri = (mode: string) => `${database.uri}?sslmode=${mode}&sslrootcert=${tls.caFile}`;
  await refused(
    uri("verify-full"),
    /TLS with PostgreSQL .* failed: .*; sslmode=verify-full checks the server's certificate/,
  );
  assert.equal(await arrives(scope, database, uri("verify-ca")), true);
});

scenario("a server without TLS: prefer goes on in plain text, require does not", async (scope) => {
  const { postgres } = await scope.servers;
  const database = await scope.database();
  await database.sql.unsafe("create table t(id int primary key)");
  const uri = (mode: string) => `${database.uri}?sslmode=${mode}`;
  assert.equal(await arrives(scope, database, uri("prefer")), false);
  assert.equal(await arrives(scope, database, uri("allow")), false);
  await refused(uri("require"), /the server does not offer TLS, which sslmode asks for; set ssl = on/);
  assert.ok(postgres.port > 0);
});

scenario("a client certificate logs in", async (scope) => {
  const made = await prepared(scope);
  const { database, tls } = made;
  const certificate = `&sslcert=${tls.clientCertFile}&sslkey=${tls.clientKeyFile}`;
  assert.equal(
    await arrives(scope, database, uriFor(made, database, "proxy_user", `?sslmode=require${certificate}`)),
    true,
  );
  await refused(uriFor(made, database, "proxy_user", "?sslmode=require"), /certificate/);
});

scenario("passwords: scram-sha-256, md5 and in clear text", async (scope) => {
  const made = await prepared(scope);
  const { database } = made;
  for (const user of ["scram_user", "md5_user", "clear_user"]) {
    for (const mode of ["disable", "require"]) {
      const uri = uriFor(made, database, user, `?sslmode=${mode}`, PASSWORD);
      assert.equal(await arrives(scope, database, uri), mode === "require");
    }
    await refused(
      uriFor(made, database, user, "", "wrong"),
      /password authentication failed .*; check user and password/,
    );
  }
}, { timeoutMs: 120_000 });

scenario("channel binding: used where the server offers it, and refused where it cannot be had", async (scope) => {
  const made = await prepared(scope);
  const { database } = made;
  const uri = (user: string, parameters: string) => uriFor(made, database, user, parameters, PASSWORD);
  const wal = (parameters: string, user = "scram_user") => ({
    env: bridgeEnv({
      uri: uri(user, parameters),
      slot: uniqueName("slot"),
      kind: "stdout",
      bindings: "wal2json->topic:w",
    }),
  });
  for (const [parameters, user] of [["?sslmode=disable", "scram_user"], ["?sslmode=require", "md5_user"]] as const) {
    const { code, stderr } = await runProxy(wal(`${parameters}&channel_binding=require`, user));
    assert.equal(code, 1, stderr);
    assert.match(stderr, /does not offer channel binding, which channel_binding=require .* asks for/);
  }
  const listening = await runProxy({
    env: bridgeEnv({
      uri: uri("scram_user", "?sslmode=require&channel_binding=require"),
      kind: "stdout",
      bindings: "events->topic:e",
    }),
  });
  assert.equal(listening.code, 1, listening.stderr);
  assert.match(
    listening.stderr,
    /(listening for notifications|draining durable messages) is not possible with channel_binding=require/,
  );
  for (const binding of ["require", "prefer", "disable"]) {
    const proxy = await scope.readyProxy(wal(`?sslmode=require&channel_binding=${binding}`));
    // The stream, and the session that watches its slot.
    await until(async () => {
      const rows = await database.sql`select from pg_stat_activity
        where datname = ${database.name} and application_name = 'pg-event-proxy' and query ~ 'START_REPL|safe_wal_size'`;
      return rows.length === 2;
    }, { what: `two sessions with channel_binding=${binding}` });
    await proxy.stop();
  }
});

scenario("a Unix socket, PG* variables and the password file", async (scope) => {
  const made = await prepared(scope);
  const { database, server } = made;
  const folder = encodeURIComponent(server.socketDir);
  const password = encodeURIComponent(PASSWORD);
  const { name } = database;
  await arrives(scope, database, `postgresql://socket_user:${password}@${folder}:${server.port}/${name}`);
  await arrives(scope, database, `postgresql:///${name}?host=${folder}&port=${server.port}&user=socket_user`, {
    PGPASSWORD: PASSWORD,
  });
  await arrives(scope, database, "postgresql://", {
    PGHOST: "127.0.0.1",
    PGPORT: String(server.port),
    PGUSER: "scram_user",
    PGDATABASE: name,
    PGPASSWORD: PASSWORD,
    PGSSLMODE: "require",
  });
  const workspace = new Workspace("pgpass");
  scope.defer(() => workspace.remove());
  const file = join(workspace.dir, "pgpass");
  const escaped = PASSWORD.replaceAll("\\", "\\\\").replaceAll(":", "\\:");
  writeFileSync(file, `other:*:*:*:wrong\n127.0.0.1:${server.port}:*:scram_user:${escaped}\n`);
  chmodSync(file, 0o600);
  await arrives(scope, database, uriFor(made, database, "scram_user"), { PGPASSFILE: file });
}, { timeoutMs: 120_000 });

scenario("of several hosts, the first that answers and is writable", async (scope) => {
  const made = await prepared(scope);
  const { database, server } = made;
  await arrives(
    scope,
    database,
    `postgresql://postgres@127.0.0.1:1,127.0.0.1:${server.port}/${database.name}?connect_timeout=2`,
  );
});
