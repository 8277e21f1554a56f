/** What cannot work is told at once: one line a fault, with the remedy, without a secret or a stack trace. */

import assert from "node:assert/strict";
import { after } from "node:test";
import { mosquittoWithPassword } from "../support/mosquitto_password.ts";
import { runProxy } from "../support/proxy.ts";
import { bridgeEnv, type BridgeSettings, scenario, uniqueName } from "../support/scenario.ts";
import { type PostgresServer, startPostgres, startRedis } from "../support/servers.ts";
import { until } from "../support/wait.ts";

const SECRET = "s3cret-of-the-test";

/** Runs the program to its end and checks what every refusal has in common. Returns the lines that tell the faults. */
async function refused(env: Readonly<Record<string, string>>, code: 1 | 2): Promise<string[]> {
  const startedAt = performance.now();
  const { code: seen, stdout, stderr } = await runProxy({ env, timeoutMs: 45_000 });
  assert.equal(seen, code, stderr);
  assert.equal(stdout, "");
  assert.ok(!stderr.includes(SECRET), `a secret in: ${stderr}`);
  assert.doesNotMatch(stderr, /^\s+at /m);
  const lines = stderr.trimEnd().split("\n").filter((line) => !line.startsWith("{"));
  for (const line of lines) assert.match(line, /^pg-event-proxy: /);
  assert.ok(performance.now() - startedAt < 40_000);
  return lines;
}

/** Exit code 1 and one line that matches. */
async function refusedStart(settings: BridgeSettings, line: RegExp): Promise<void> {
  const lines = await refused(bridgeEnv(settings), 1);
  assert.equal(lines.length, 1, lines.join("\n"));
  assert.match(lines[0]!, line);
}

const WAL = { kind: "stdout", bindings: "wal2json->topic:wal" };
const NOTIFY = { kind: "stdout", bindings: "events->topic:events" };

scenario("every configuration error at once: key, value seen, what is allowed, the nearest key", async () => {
  const lines = await refused({
    "PGPROXY_LOCAL-POSTGRESQL_URI": `mysql://u:${SECRET}@host/db`,
    "PGPROXY_LOCAL-UPSTREAM": "amqp",
    "PGPROXY_LOCAL-UPSTREAM_CONFIG-URI": `http://u:${SECRET}@host`,
    "PGPROXY_LOCAL-UPSTREAM_CONFIG-BRIDGE_CHANNELS": "events=>exchange:amq.topic",
    "PGPROXY_LOCAL-UPSTREAM_CONFIG-DELIVERY_MOD": "2",
    "PGPROXY_LOCAL-UPSTREAM_CONFIG-DELIVERY_MODE": "3",
  }, 2);
  const text = lines.join("\n");
  for (
    const part of [
      /POSTGRESQL_URI: .*postgres/,
      /UPSTREAM_CONFIG-URI: .*amqp/,
      /BRIDGE_CHANNELS: .*events=>exchange:amq\.topic/,
      /DELIVERY_MOD\b.*delivery_mode/i,
      /DELIVERY_MODE: .*3.*1.*2/,
    ]
  ) assert.match(text, part);
  assert.equal(lines.length, 5, text);
});

scenario("a connection URI that cannot be read, or asks for the impossible", async () => {
  for (
    const [uri, line] of [
      [`postgresql://u:${SECRET}@host:99999/db`, /\[local\] postgresql_uri: the port "99999" .* 1 to 65535/],
      [`postgresql://u:${SECRET}@host/db?sslmod=require`, /the parameter "sslmod" .* known are host, port/],
      [`postgresql://u:${SECRET}@host/db?sslmode=maybe`, /sslmode "maybe" .* allowed are disable, allow, prefer/],
    ] as const
  ) {
    const lines = await refused(bridgeEnv({ ...NOTIFY, uri }), 2);
    assert.equal(lines.length, 1);
    assert.match(lines[0]!, line);
  }
});

let passwordServer: Promise<PostgresServer> | undefined;

/** A server that asks everybody but its superuser for a password. */
function withPasswords(): Promise<PostgresServer> {
  return passwordServer ??= startPostgres({ clientAuth: ["host all all 127.0.0.1/32 scram-sha-256"] });
}
after(async () => await (await passwordServer)?.stop());

scenario("PostgreSQL: password, database and rights", async (scope) => {
  const server = await withPasswords();
  const database = await scope.database(server);
  const role = await scope.role(database);
  const reader = await scope.role(database, "");
  const wrong = new URL(role.uri);
  wrong.password = SECRET;
  for (const upstream of [WAL, NOTIFY]) {
    await refusedStart({ ...upstream, uri: wrong.href }, /password authentication failed .*; check user and password/);
    const none = new URL(role.uri);
    none.password = "";
    await refusedStart({ ...upstream, uri: none.href }, /password/);
    const nowhere = new URL(role.uri);
    nowhere.pathname = "/no_such_database";
    await refusedStart(
      { ...upstream, uri: nowhere.href },
      /database "no_such_database" does not exist; check the database name .* or create the database/,
    );
  }
  await refusedStart(
    { ...WAL, uri: reader.uri },
    new RegExp(`run as a superuser: ALTER ROLE "${reader.name}" REPLICATION$`),
  );
});

scenario("PostgreSQL: the plugin is not among those allowed", async (scope) => {
  const server = await withPasswords();
  const database = await scope.database(server);
  const role = await scope.role(database);
  const [setting] = await database.sql`select 1 from pg_settings where name = 'output_plugin_libraries'`;
  if (setting === undefined) return;
  await database.sql.unsafe(`alter role ${role.name} set output_plugin_libraries = pgoutput`);
  await refusedStart(
    { ...WAL, uri: role.uri, slot: uniqueName("slot") },
    new RegExp(`ALTER ROLE "${role.name}" SET output_plugin_libraries = pgoutput, wal2json$`),
  );
});

scenario("PostgreSQL: wal_level is not logical", async (scope) => {
  const server = scope.keep(await startPostgres({ settings: { wal_level: "replica" } }));
  await refusedStart(
    { ...WAL, uri: server.uri },
    /wal_level is replica, wanted logical; run as a superuser: ALTER SYSTEM SET wal_level = logical, and restart/,
  );
});

scenario("PostgreSQL: a slot of another plugin, of another database, and a physical one", async (scope) => {
  const database = await scope.database();
  const other = await scope.database();
  const [decoding, foreign, physical] = [uniqueName("slot"), uniqueName("slot"), uniqueName("slot")];
  await database.sql`select pg_create_logical_replication_slot(${decoding}, 'test_decoding')`;
  await other.sql`select pg_create_logical_replication_slot(${foreign}, 'wal2json')`;
  await database.sql`select pg_create_physical_replication_slot(${physical})`;
  scope.defer(() => database.sql`select pg_drop_replication_slot(${physical})`);
  const uri = database.uri;
  await refusedStart(
    { ...WAL, uri, slot: decoding },
    /is a logical slot of plugin test_decoding, wanted .* wal2json; set/,
  );
  await refusedStart({ ...WAL, uri, slot: foreign }, new RegExp(`belongs to database "${other.name}", wanted`));
  await refusedStart(
    { ...WAL, uri, slot: physical },
    /is a physical slot, wanted a logical slot of plugin wal2json; set/,
  );
});

scenario("PostgreSQL: wal2json refuses its parameters", async (scope) => {
  const { uri } = await scope.database();
  await refusedStart(
    { ...WAL, uri, slot: uniqueName("slot"), params: `"format-version" '2', "include-types" 'perhaps'` },
    /wal2json refuses its parameters: .*; correct wal2json_params$/,
  );
});

scenario("RabbitMQ: exchange, queue, login and virtual host", async (scope) => {
  const { uri } = await scope.database();
  const { rabbitmq } = await scope.servers;
  const amqp = { uri, kind: "amqp", upstreamUri: rabbitmq.uri };
  await refusedStart(
    { ...amqp, bindings: "events->exchange:no.such.exchange" },
    /exchange "no\.such\.exchange" in virtual host "\/".*; create it, or set declare=true$/,
  );
  await refusedStart(
    { ...amqp, bindings: "events->queue:no such queue" },
    /queue "no such queue" in virtual host "\/".*; create it, or set declare=true$/,
  );
  const stranger = new URL(rabbitmq.uri);
  stranger.password = SECRET;
  await refusedStart(
    { ...amqp, upstreamUri: stranger.href, bindings: "events->exchange:amq.topic" },
    /refused the login of user "guest"; correct the user name and password in uri$/,
  );
  await refusedStart(
    { ...amqp, upstreamUri: `${rabbitmq.uri.replace(/\/+$/, "")}/nowhere`, bindings: "events->exchange:amq.topic" },
    /the virtual host "nowhere"; create it/,
  );
});

scenario("a misconfigured upstream leaves no slot behind", async (scope) => {
  const database = await scope.database();
  const { rabbitmq } = await scope.servers;
  const bindings = "wal2json->exchange:no.such.exchange";
  const slot = uniqueName("slot");
  await refusedStart(
    { uri: database.uri, slot, kind: "amqp", upstreamUri: rabbitmq.uri, bindings },
    /no\.such\.exchange/,
  );
  assert.deepEqual([...await database.sql`select slot_name from pg_replication_slots where slot_name = ${slot}`], []);
});

scenario("Redis and MQTT: a refused password", async (scope) => {
  const { uri } = await scope.database();
  const redis = scope.keep(await startRedis({ config: ["requirepass the-right-one"] }));
  const redisUri = new URL(redis.uri);
  redisUri.username = "";
  redisUri.password = SECRET;
  await refusedStart(
    { uri, kind: "redis", upstreamUri: redisUri.href, bindings: "events->topic:events" },
    /refused the login of user "default": WRONGPASS.*; correct the user name and password in uri/,
  );
  const mosquitto = await mosquittoWithPassword(scope, "ann", "the-right-one");
  await refusedStart(
    {
      uri,
      kind: "mqtt",
      upstreamUri: `mqtt://127.0.0.1:${mosquitto.port}`,
      bindings: "events->topic:events",
      more: { username: "ann", password: SECRET },
    },
    /refused the login of user "ann": .*; (set username and password of a user who may connect|correct username and password)$/,
  );
});

scenario("servers that cannot be reached are called again, with a line each and no more", async (scope) => {
  const proxy = scope.proxy({
    env: bridgeEnv({
      uri: `postgresql://u:${SECRET}@127.0.0.1:1/db`,
      kind: "redis",
      upstreamUri: `redis://:${SECRET}@127.0.0.1:2`,
      bindings: "events->topic:events, wal2json->topic:wal",
    }),
  });
  const warnings = () => proxy.log.filter(({ json }) => json?.level === "warning").map(({ text }) => text);
  await until(() => warnings().length >= 3, { what: "a warning for each connection" });
  // Long enough for many further attempts: they come within 100 ms, 200 ms, 400 ms, …
  const attemptsEndAt = performance.now() + 3_000;
  await until(() => performance.now() > attemptsEndAt, { what: "further attempts" });
  assert.ok(warnings().length <= 4, warnings().join("\n"));
  assert.ok(!proxy.stderr.includes(SECRET));
  const { code } = await proxy.stop();
  assert.equal(code, 0);
});
