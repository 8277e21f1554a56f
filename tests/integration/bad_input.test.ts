/** What cannot work ends the program within seconds, with one line that tells what to do; what may pass is retried. */

import assert from "node:assert/strict";
import { dirname } from "node:path";
import postgres from "postgres";
import { withAmqpChannel } from "../support/consumers.ts";
import { mosquittoWithPassword } from "../support/mosquitto_password.ts";
import { type ProxyOptions, runProxy } from "../support/proxy.ts";
import { bridgeEnv, type BridgeSettings, iniText, scenario, type Scope, uniqueName } from "../support/scenario.ts";
import { freePort, type RunningPostgres, sharedServer, startPostgres, startRedis } from "../support/servers.ts";
import { until } from "../support/wait.ts";

const SECRET = "t0p-s3cret";

interface Fault {
  readonly exitCode: 1 | 2;
  /** One for each line of the fault, in any order. */
  readonly lines: readonly RegExp[];
}

/** Runs the program, which must end by itself with exactly these lines. */
async function expectFault(options: ProxyOptions, { exitCode, lines }: Fault): Promise<void> {
  const { code, stdout, stderr } = await runProxy({ ...options, timeoutMs: 30_000 });
  const all = stderr.split("\n").filter((line) => line !== "");
  const faults = all.filter((line) => line.startsWith("pg-event-proxy: "));
  assert.equal(code, exitCode, stderr);
  for (const line of lines) {
    assert.equal(faults.filter((fault) => line.test(fault)).length, 1, `exactly one line ${line} in\n${stderr}`);
  }
  assert.equal(faults.length, lines.length, stderr);
  for (const line of all) {
    if (faults.includes(line)) continue;
    // Anything else is the log, which begins before the fault is met and has nothing to add to it.
    const { level } = JSON.parse(line) as { level?: unknown };
    assert.ok(level === "info" || level === "debug", `a line besides the fault: ${line}`);
  }
  assert.ok(!stderr.includes(SECRET), `the password is in\n${stderr}`);
  assert.ok(!/^\s+at |\.ts:\d+|node_modules/m.test(stderr), `a stack trace in\n${stderr}`);
  assert.equal(stdout, "");
}

const SOUND = {
  local: { postgresql_uri: `postgresql://ann:${SECRET}@127.0.0.1:1/shop`, upstream: "amqp" },
  "local.upstream_config": { uri: `amqp://ann:${SECRET}@127.0.0.1:1`, bridge_channels: "events->exchange:amq.topic" },
} as const;

type Sections = Readonly<Record<string, Readonly<Record<string, string>>>>;

function ini(sections: Sections): ProxyOptions {
  return { args: ["config.ini"], files: { "config.ini": iniText(sections) } };
}

/** The sound configuration with other keys in the section of the upstream; undefined leaves one out. */
function withUpstream(keys: Readonly<Record<string, string | undefined>>): Sections {
  const merged: Array<[string, string | undefined]> = Object.entries({ ...SOUND["local.upstream_config"], ...keys });
  const given = merged.filter((entry) => entry[1] !== undefined);
  return { ...SOUND, "local.upstream_config": Object.fromEntries(given) as Record<string, string> };
}

const CONFIGURATIONS: ReadonlyArray<{
  readonly title: string;
  readonly options: ProxyOptions;
  readonly lines: readonly RegExp[];
}> = [
  {
    title: "an unknown key in the file, with the nearest",
    options: ini(withUpstream({ delivery_mod: "1" })),
    lines: [/config\.ini \[local\.upstream_config\] delivery_mod: unknown key; did you mean .*delivery_mode\?$/],
  },
  {
    title: "an unknown variable, with the nearest",
    options: { ...ini(SOUND), env: { "PGPROXY_LOCAL-REPLICATION_SLOTS": "x" } },
    lines: [/PGPROXY_LOCAL-REPLICATION_SLOTS: unknown key; did you mean PGPROXY_LOCAL-REPLICATION_SLOT\?$/],
  },
  {
    title: "bindings that cannot be read",
    options: ini(withUpstream({ bridge_channels: "events=>exchange:amq.topic, a->queue, ->queue:b, c->topic:d" })),
    lines: [
      /item 1 "events=>exchange:amq\.topic": has no ->/,
      /item 2 "a->queue": has no :/,
      /item 3 "->queue:b": has no/,
    ],
  },
  {
    title: "a type of target that the kind does not have",
    options: ini(withUpstream({ bridge_channels: "c->topic:d" })),
    lines: [/item 1 "c->topic:d": the type "topic" is not allowed for amqp; allowed: exchange, queue/],
  },
  {
    title: "an MQTT topic that no message may have",
    options: ini({
      ...withUpstream({ uri: "mqtt://127.0.0.1", bridge_channels: "events->topic:a/#" }),
      local: { ...SOUND.local, upstream: "mqtt" },
    }),
    lines: [/item 1 "events->topic:a\/#": the topic holds \+ or #/],
  },
  {
    title: "several faults at once, in the file and in the environment",
    options: {
      ...ini({ ...withUpstream({ uri: undefined, delivery_mode: "3" }), log: { levle: "info" } }),
      env: { "PGPROXY_LOCAL-REPLICATION_SLOT": "Not-A-Slot", "PGPROXY_LOCAL-UPSTREAM_CONFIG-DECLARE": "maybe" },
    },
    lines: [
      /\[local\.upstream_config\] uri: /,
      /\[local\.upstream_config\] delivery_mode: "3" is not allowed; allowed: 1, 2/,
      /\[log\] levle: unknown key; did you mean .*level\?/,
      /PGPROXY_LOCAL-REPLICATION_SLOT: "Not-A-Slot" is no slot name/,
      /PGPROXY_LOCAL-UPSTREAM_CONFIG-DECLARE: "maybe" is not allowed; allowed: true, false/,
    ],
  },
  {
    title: "a broker URI of another kind, its password masked",
    options: ini(withUpstream({ uri: `redis://ann:${SECRET}@127.0.0.1` })),
    lines: [/uri: "redis:\/\/ann:\*+@127\.0\.0\.1" .*amqp/],
  },
  {
    title: "a PostgreSQL URI that cannot be read, its password masked",
    options: ini({ ...SOUND, local: { ...SOUND.local, postgresql_uri: `mysql://ann:${SECRET}@127.0.0.1/shop` } }),
    lines: [/postgresql_uri: "mysql:\/\/ann:\*+@127\.0\.0\.1\/shop" /],
  },
  {
    title: "a parameter of the PostgreSQL URI that libpq does not know",
    options: ini({
      ...SOUND,
      local: { ...SOUND.local, postgresql_uri: `${SOUND.local.postgresql_uri}?sslmodus=require` },
    }),
    lines: [/"sslmodus" of the connection URI is not known/],
  },
  {
    title: "a port and an sslmode that cannot be",
    options: ini({
      ...SOUND,
      local: { ...SOUND.local, postgresql_uri: `postgresql://ann:${SECRET}@host:99999/shop` },
      other: { ...SOUND.local, postgresql_uri: `postgresql://ann:${SECRET}@host/shop?sslmode=maybe` },
      "other.upstream_config": SOUND["local.upstream_config"],
    }),
    lines: [
      /\[local\] postgresql_uri: the port "99999" .* 1 to 65535/,
      /\[other\] postgresql_uri: sslmode "maybe" .* allowed are disable, allow, prefer/,
    ],
  },
  {
    title: "a file of a secret that is not there",
    options: { ...ini(SOUND), env: { "PGPROXY_LOCAL-POSTGRESQL_URI_FILE": "/nonexistent/uri" } },
    lines: [/PGPROXY_LOCAL-POSTGRESQL_URI_FILE: .*\/nonexistent\/uri/],
  },
  {
    title: "parameters of wal2json that cannot be read",
    options: ini({ ...SOUND, local: { ...SOUND.local, wal2json_params: `"format-version" '2` } }),
    lines: [/\[local\] wal2json_params: "\\"format-version\\" '2": /],
  },
  {
    title: "format version 1, which cannot be confirmed",
    options: ini({ ...SOUND, local: { ...SOUND.local, wal2json_params: `"format-version" '1'` } }),
    lines: [/wal2json_params: .*format-version/],
  },
  {
    title: "a parameter of wal2json that is no boolean",
    options: ini({
      ...SOUND,
      local: { ...SOUND.local, wal2json_params: `"format-version" '2' , "include-types" 'perhaps'` },
    }),
    lines: [/"include-types" 'perhaps' is no boolean; allowed: /],
  },
  {
    title: "an unknown kind of upstream, with the nearest",
    options: ini({ ...SOUND, local: { ...SOUND.local, upstream: "reddis" } }),
    lines: [/\[local\] upstream: "reddis" is not allowed; allowed: amqp, mqtt, redis, awssns, .*did you mean redis\?/],
  },
];

for (const { title, options, lines } of CONFIGURATIONS) {
  scenario(`configuration: ${title}`, () => expectFault(options, { exitCode: 2, lines }));
}

/** The program on this database, reading the WAL and listening, unless `settings` say otherwise. */
function toStdout(uri: string, settings: Partial<BridgeSettings> = {}): ProxyOptions {
  return { env: bridgeEnv({ uri, kind: "stdout", bindings: "events->topic:e, wal2json->topic:w", ...settings }) };
}

function withLogin(uri: string, user: string, password?: string): string {
  const url = new URL(uri);
  url.username = user;
  url.password = password ?? "";
  return url.href;
}

const WAL_ONLY = { bindings: "wal2json->topic:w" };

scenario("PostgreSQL: refused logins and missing rights", async (scope) => {
  const server = scope.keep(await startPostgres({ clientAuth: ["host all all 127.0.0.1/32 scram-sha-256"] }));
  const admin = postgres(server.superuserUri, { max: 1, onnotice: () => {} });
  scope.defer(() => admin.end());
  await admin.unsafe(`create role full_role login replication password '${SECRET}'`);
  await admin.unsafe(`create role "Plain ""Role" login password '${SECRET}'`);
  await admin.unsafe(`create role sleeping nologin password '${SECRET}'`);
  const one = (options: ProxyOptions, line: RegExp) => expectFault(options, { exitCode: 1, lines: [line] });
  const uri = server.superuserUri;
  for (
    const [action, settings] of [
      ["reading the WAL", WAL_ONLY],
      // Two sources read from such a database, and either may be the first to be turned away.
      ["(listening for notifications|draining durable messages)", { bindings: "events->topic:e" }],
    ] as const
  ) {
    await one(
      toStdout(withLogin(uri, "full_role", `${SECRET}-not`), settings),
      new RegExp(
        `^pg-event-proxy: ${action} of database "postgres" at 127\\.0\\.0\\.1:\\d+ as user "full_role" failed: password ` +
          'authentication failed for user "full_role"; check user and password in the connection URI',
      ),
    );
    await one(
      toStdout(withLogin(uri, "full_role"), settings),
      /asks for a password for user "full_role" and none is configured: put it into the connection URI, PGPASSWORD/,
    );
    await one(
      toStdout(withLogin(uri, "full_role", SECRET).replace("/postgres", "/no_such_shop"), settings),
      /database "no_such_shop" does not exist; check the database name in the connection URI, or create the database/,
    );
  }
  await one(
    toStdout(withLogin(uri, "nobody", SECRET), WAL_ONLY),
    /as user "nobody" failed: .*; check user and password/,
  );
  await one(toStdout(withLogin(uri, "sleeping", SECRET), WAL_ONLY), /not permitted to log in; .*ALTER ROLE . LOGIN/);
  await one(
    toStdout(withLogin(uri, `Plain%20%22Role`, SECRET), WAL_ONLY),
    /run as a superuser: ALTER ROLE "Plain ""Role" REPLICATION$/,
  );
  await admin.unsafe(`revoke connect on database postgres from public`);
  await one(
    toStdout(withLogin(uri, "full_role", SECRET), WAL_ONLY),
    /permission denied for database "postgres".*; .*GRANT CONNECT ON DATABASE "postgres" TO "full_role"/,
  );
});

scenario("PostgreSQL: a role without REPLICATION may still listen", async (scope) => {
  const database = await scope.database();
  const role = await scope.role(database, "");
  await scope.readyProxy(toStdout(role.uri, { bindings: "events->topic:e" }));
});

scenario("PostgreSQL: wal_level and free slots", async (scope) => {
  const server = scope.keep(await startPostgres({ settings: { wal_level: "replica", max_replication_slots: "1" } }));
  await expectFault(toStdout(server.superuserUri), {
    exitCode: 1,
    lines: [
      /wal_level is replica, wanted logical; run as a superuser: ALTER SYSTEM SET wal_level = logical, and restart/,
    ],
  });
  const admin = postgres(server.superuserUri, { max: 1, onnotice: () => {} });
  await admin`alter system set wal_level = logical`;
  await admin.end();
  await server.shutdown();
  await server.start();
  const again = postgres(server.superuserUri, { max: 1, onnotice: () => {} });
  scope.defer(() => again.end());
  await again`select pg_create_physical_replication_slot('taken')`;
  await expectFault(toStdout(server.superuserUri), {
    exitCode: 1,
    lines: [
      /all replication slots are in use.*; raise max_replication_slots in postgresql\.conf and restart the server/,
    ],
  });
});

scenario("PostgreSQL: wal2json is not allowed", async (scope) => {
  const server = scope.keep(await startPostgres());
  const admin = postgres(server.superuserUri, { max: 1, onnotice: () => {} });
  scope.defer(() => admin.end());
  const [setting] = await admin`select 1 from pg_settings where name = 'output_plugin_libraries'`;
  // Minor releases before 2026 allow every plugin: there is nothing to refuse.
  if (setting === undefined) return;
  await admin`alter system set output_plugin_libraries = pgoutput`;
  await admin`select pg_reload_conf()`;
  await until(async () => {
    const fresh = postgres(server.superuserUri, { max: 1 });
    const [row] = await fresh<{ list: string }[]>`select current_setting('output_plugin_libraries') as list`;
    await fresh.end();
    return row?.list === "pgoutput";
  }, { what: "the setting to hold" });
  await expectFault(toStdout(server.superuserUri), {
    exitCode: 1,
    lines: [/wal2json.*; run as a superuser: ALTER ROLE "postgres" SET output_plugin_libraries = pgoutput, wal2json$/],
  });
  await admin.unsafe("ALTER ROLE postgres SET output_plugin_libraries = pgoutput, wal2json");
  await scope.readyProxy(toStdout(server.superuserUri));
});

scenario("PostgreSQL: wal2json refuses its parameters", async (scope) => {
  const { uri, name } = await scope.database();
  const params = `"format-version" '2' , "add-tables" 'nodot'`;
  const line = /wal2json refuses its parameters: could not parse value "nodot" .*; correct wal2json_params$/;
  await expectFault(toStdout(uri, { slot: name, params }), { exitCode: 1, lines: [line] });
});

scenario("PostgreSQL: slots that cannot serve", async (scope) => {
  const [database, other] = [await scope.database(), await scope.database()];
  const [decoding, elsewhere, physical] = [uniqueName("decoding"), uniqueName("elsewhere"), uniqueName("physical")];
  await database.sql`select pg_create_logical_replication_slot(${decoding}, 'test_decoding')`;
  await other.sql`select pg_create_logical_replication_slot(${elsewhere}, 'wal2json')`;
  await database.sql`select pg_create_physical_replication_slot(${physical})`;
  scope.defer(() => database.sql`select pg_drop_replication_slot(${physical})`);
  const fault = (slot: string, line: RegExp) =>
    expectFault(toStdout(database.uri, { slot }), { exitCode: 1, lines: [line] });
  await fault(
    decoding,
    new RegExp(
      `a logical slot of plugin test_decoding, wanted .*wal2json; .*pg_drop_replication_slot\\('${decoding}'\\)$`,
    ),
  );
  await fault(
    elsewhere,
    new RegExp(`belongs to database "${other.name}", wanted "${database.name}"; set replication_slot to another name$`),
  );
  await fault(physical, /is a physical slot, wanted a logical slot of plugin wal2json; set replication_slot/);
});

scenario("PostgreSQL: a lost slot", async (scope) => {
  const server = scope.keep(await startPostgres({ settings: { max_slot_wal_keep_size: "1MB", min_wal_size: "32MB" } }));
  const database = await scope.database(server);
  const slot = "left_behind";
  await database.sql`select pg_create_logical_replication_slot(${slot}, 'wal2json')`;
  await until(async () => {
    await database.sql`select pg_logical_emit_message(false, 'filler', repeat('x', 1000000))`;
    await database.sql`select pg_switch_wal()`;
    await database.sql`checkpoint`;
    const [row] = await database.sql`select wal_status from pg_replication_slots where slot_name = ${slot}`;
    return row?.wal_status === "lost";
  }, { what: "the slot to be lost", timeoutMs: 30_000 });
  await expectFault(toStdout(database.uri, { slot }), {
    exitCode: 1,
    lines: [
      /"left_behind" .* is lost .*: the changes after [0-9A-F]+\/[0-9A-F]+ are gone .*pg_drop_replication_slot\('left_behind'\); raise max_slot_wal_keep_size/,
    ],
  });
  const [kept] = await database.sql`select wal_status from pg_replication_slots where slot_name = ${slot}`;
  assert.equal(kept?.wal_status, "lost", "it is not made anew behind the operator's back");
});

/** The program on a sound database, so that only the upstream can be at fault; nothing may be left in the database. */
async function upstreamFault(scope: Scope, settings: Partial<BridgeSettings>, line: RegExp): Promise<void> {
  const database = await scope.database();
  const options = toStdout(database.uri, { slot: database.name, ...settings });
  await expectFault(options, { exitCode: 1, lines: [line] });
  const slots = await database.sql`select 1 from pg_replication_slots where database = ${database.name}`;
  assert.equal(slots.length, 0, "no slot is made for a bridge that cannot run: it would hold back WAL");
}

scenario("RabbitMQ: refused logins, a missing exchange, a missing queue", async (scope) => {
  const { uri } = await sharedServer("rabbitmq");
  const missing = uniqueName("missing");
  const bindings = `events->exchange:amq.topic, wal2json->exchange:${missing}`;
  const kind = "amqp";
  await upstreamFault(
    scope,
    { kind, upstreamUri: uri, bindings },
    new RegExp(`no exchange '${missing}' in vhost '/'; create it, or set declare=true$`),
  );
  await upstreamFault(
    scope,
    { kind, upstreamUri: uri, bindings: bindings.replace(`exchange:${missing}`, `queue:${missing}`) },
    new RegExp(`no queue '${missing}' in vhost '/'; create it, or set declare=true$`),
  );
  await upstreamFault(
    scope,
    { kind, upstreamUri: withLogin(uri, "guest", SECRET), bindings: "events->exchange:amq.topic" },
    /refused the login of user "guest"; correct the user name and password in uri$/,
  );
  await upstreamFault(
    scope,
    { kind, upstreamUri: `${uri}/no-such-host`, bindings: "events->exchange:amq.topic" },
    /the virtual host "no-such-host"; create it \(rabbitmqctl add_vhost\),.* or correct the path of uri$/,
  );
  await upstreamFault(
    scope,
    { kind, upstreamUri: uri.replace("amqp:", "amqps:"), bindings: "events->exchange:amq.topic" },
    /that port does not speak TLS: use its TLS port, or a uri without TLS$/,
  );
});

scenario("RabbitMQ: declare=true makes what is missing, durable", async (scope) => {
  const { uri } = await sharedServer("rabbitmq");
  const database = await scope.database();
  const [exchange, queue] = [uniqueName("declared"), uniqueName("declared")];
  scope.defer(() =>
    withAmqpChannel(uri, async (channel) => {
      await channel.deleteExchange(exchange);
      await channel.deleteQueue(queue);
    })
  );
  await scope.readyProxy(toStdout(database.uri, {
    kind: "amqp",
    upstreamUri: uri,
    bindings: `events->exchange:${exchange}, events->queue:${queue}`,
    more: { declare: "true" },
  }));
  await withAmqpChannel(uri, async (channel) => {
    // Declaring with other properties than it has would close the channel.
    await channel.assertExchange(exchange, "topic", { durable: true });
    await channel.assertQueue(queue, { durable: true });
  });
});

scenario("Redis: refused passwords", async (scope) => {
  const server = scope.keep(await startRedis({ config: ["requirepass the-right-one"] }));
  const settings = { kind: "redis", bindings: "events->topic:e, wal2json->topic:w" };
  await upstreamFault(
    scope,
    { ...settings, upstreamUri: server.uri.replace("://", `://:${SECRET}@`) },
    /refused the login of user "default": WRONGPASS .*; correct the user name and password in uri/,
  );
  await upstreamFault(
    scope,
    { ...settings, upstreamUri: server.uri },
    /refused a login without a password: NOAUTH .*; correct the user name and password in uri/,
  );
});

scenario("MQTT: refused passwords", async (scope) => {
  const { uri } = await mosquittoWithPassword(scope, "ann", "the-right-one");
  const settings = { kind: "mqtt", upstreamUri: uri, bindings: "events->topic:e, wal2json->topic:w" };
  await upstreamFault(
    scope,
    { ...settings, more: { username: "ann", password: SECRET } },
    /refused the login of user "ann": .*; (correct|set) .*username and password/,
  );
  await upstreamFault(scope, settings, /refused a login without a user name: .*username and password/);
});

scenario("servers that do not answer are waited for, and told of once", async (scope) => {
  const [postgresPort, brokerPort] = [await freePort(), await freePort()];
  const proxy = scope.proxy({
    env: {
      ...bridgeEnv({
        uri: `postgres://ann:${SECRET}@127.0.0.1:${postgresPort}/shop`,
        kind: "amqp",
        upstreamUri: `amqp://ann:${SECRET}@127.0.0.1:${brokerPort}`,
        bindings: "events->exchange:amq.topic, wal2json->exchange:amq.topic",
      }),
      ...bridgeEnv({
        uri: `postgres://ann:${SECRET}@127.0.0.1:${postgresPort}/shop`,
        kind: "redis",
        upstreamUri: `redis://:${SECRET}@127.0.0.1:${brokerPort}`,
        bindings: "events->topic:e",
      }, "SECOND"),
    },
  });
  const faults = [
    /amqp upstream \\"local\\" is not available: .*ECONNREFUSED.*; retrying/,
    /redis upstream \\"second\\" is not available: .*; retrying/,
    /source wal.* is not available: .*; retrying/,
    /source notify is not available: .*; retrying/,
  ];
  for (const fault of faults) await proxy.waitForLog(fault);
  // Several attempts later there is still one line for each.
  const startedMs = performance.now();
  await until(() => performance.now() - startedMs > 3_000, { what: "further attempts" });
  const warnings = proxy.log.filter(({ json }) => json?.level !== "info" && json?.level !== "debug");
  const told = warnings.map(({ json }) => `${json?.part}: ${json?.what}`);
  assert.equal(new Set(told).size, told.length, proxy.stderr);
  assert.deepEqual(await proxy.kill("SIGTERM"), { code: 0, signal: null });
  assert.ok(!proxy.stderr.includes(SECRET));
});

scenario("a server that comes up later is found", async (scope) => {
  const server: RunningPostgres & { shutdown(): Promise<void>; start(): Promise<void>; stop(): Promise<void> } = scope
    .keep(await startPostgres());
  const database = await scope.database(server);
  await server.shutdown();
  const proxy = scope.proxy(toStdout(database.uri));
  await proxy.waitForLog(/source notify is not available/);
  await server.start();
  await proxy.waitForReady(30_000);
  await proxy.waitForLog(/source notify is back after/);
});

scenario("a Unix socket that is not there is retried like a server that is down", async (scope) => {
  const proxy = scope.proxy(toStdout(`postgres://postgres@/shop?host=${dirname("/nonexistent/folder/x")}&port=1`));
  await proxy.waitForLog(/source notify is not available: .*\/nonexistent\/folder\/\.s\.PGSQL\.1/);
  assert.deepEqual(await proxy.stop(), { code: 0, signal: null });
});
