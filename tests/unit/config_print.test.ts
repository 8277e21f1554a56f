import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { configCommand } from "../../src/cli/config.ts";
import { exampleIni, keyHelp, keyReferenceMarkdown } from "../../src/config/example.ts";
import { KEYS, KIND_NAMES } from "../../src/config/keys.ts";
import { loadConfig } from "../../src/config/load.ts";

type Env = Record<string, string>;

const PEM = "-----BEGIN CERTIFICATE-----";

function readFile(files: Record<string, string>): (path: string) => string {
  return (path) => {
    const text = Object.hasOwn(files, path) ? files[path] : undefined;
    if (text === undefined) throw new Error("no such file or directory");
    return text;
  };
}

function print(env: Env, files: Record<string, string> = {}): string {
  let printed = "";
  const file = "config.ini" in files ? "config.ini" : undefined;
  configCommand({ file, env, readFile: readFile(files), write: (text) => printed += text });
  return printed;
}

test("config prints every value with its origin, passwords masked", () => {
  const printed = print({
    "PGPROXY_LOCAL-UPSTREAM": "mqtt",
    PGPROXY_LOCAL__UPSTREAM_CONFIG__PASSWORD_FILE: "/run/secrets/p",
    "PGPROXY_LOCAL-UPSTREAM_CONFIG-MAX_IN_FLIGHT_BYTES": "65536 # small",
    "PGPROXY_LOG-LEVEL": "debug",
  }, {
    "config.ini": `[local]
postgresql_uri=postgresql://u:hunter2@h/db?sslpassword=hunter2
wal2json_params=\\"format-version\\" '2'
[local.upstream_config]
uri=tcp://mosquitto:1883
username=" u"
bridge_channels=a->topic:b,c->topic:d
`,
    "/run/secrets/p": "hunter2\n",
  });
  assert.equal(
    printed,
    `[local]
# from config.ini line 2
postgresql_uri=postgresql://u:***@h/db?sslpassword=***
# default
replication_slot=pg_event_proxy
# from config.ini line 3
wal2json_params="format-version" '2'
# default
slot_failover=false
# default
notify_buffer_bytes=64MiB
# default
outbox=true
# default
shutdown_timeout=10
# from PGPROXY_LOCAL-UPSTREAM
upstream=mqtt

[local.upstream_config]
# from config.ini line 5
uri=tcp://mosquitto:1883
# from config.ini line 7
bridge_channels=a->topic:b, c->topic:d
# default
on_reject=stop
# default
format=raw
# from PGPROXY_LOCAL-UPSTREAM_CONFIG-MAX_IN_FLIGHT_BYTES
max_in_flight_bytes=64KiB
# from config.ini line 6
username=" u"
# from PGPROXY_LOCAL__UPSTREAM_CONFIG__PASSWORD_FILE, read from "/run/secrets/p"
password=***
# default
qos=1
# default
retain=false
# default
topic_separator=.
# default
protocol_version=4
# default
insecure_skip_verify=false

[http]
# default
show_payloads=false

[log]
# from PGPROXY_LOG-LEVEL
level=debug
# default
format=auto
`,
  );
});

test("config prints no values that are neither set nor have a default, and slots only where they are set", () => {
  const printed = print({
    "PGPROXY_DATABASE-URI": "postgres://h/db",
    "PGPROXY_UPSTREAM-X-KIND": "stdout",
    "PGPROXY_UPSTREAM-X-BRIDGE_CHANNELS": "a->topic:b",
  });
  assert.match(printed, /\[database\]\n.*\n.*\n# default\nreplication_slot=pg_event_proxy\n/);
  assert.match(printed, /\[upstream.x\]\n# from PGPROXY_UPSTREAM-X-KIND\nkind=stdout\n/);
  assert.ok(!printed.includes("max_in_flight="));
});

test("config refuses what the program would refuse", () => {
  assert.throws(() => print({ "PGPROXY_LOCAL-UPSTREAM": "x" }), { name: "ConfigError" });
});

/** Values of every type in every form, none of them secret. */
const text = fc.string({ unit: "binary", minLength: 1, maxLength: 12 }).filter((value) => !/[\r\n\0]/.test(value));
const quirky = fc.array(fc.constantFrom(`"`, "'", "\\", " ", "#", ";", "=", "%", "a"), { minLength: 1, maxLength: 8 })
  .map((parts) => parts.join(""));
const name = fc.stringMatching(/^[a-z0-9_]{1,12}$/);
const bindings = fc.uniqueArray(fc.tuple(fc.oneof(name, fc.constant("wal2json")), name), {
  minLength: 1,
  maxLength: 4,
  selector: (pair) => pair.join(">"),
}).map((pairs) => pairs.map(([channel, target]) => `${channel} -> topic:${target}`).join(","));
const params = quirky.map((value) => {
  return `"format-version" '2', "add-tables" '${value.replaceAll("'", "''").replaceAll('"', '\\"')}'`;
});
const optional = {
  CLIENT_ID: fc.oneof(text, quirky),
  USERNAME: fc.oneof(text, quirky),
  TOPIC_SEPARATOR: quirky.filter((value) => !value.includes("#")),
  QOS: fc.constantFrom("0", "1", "2 # twice"),
  RETAIN: fc.constantFrom("on", "off", "true"),
  PROTOCOL_VERSION: fc.constantFrom("4", "5"),
  MAX_IN_FLIGHT: fc.integer({ min: 1, max: 65_535 }).map(String),
  MAX_IN_FLIGHT_BYTES: fc.integer({ min: 1, max: 2 ** 40 }).map(String),
  ON_REJECT: fc.constantFrom("stop", "Drop"),
  CA_FILE: fc.constant("/ca.pem"),
  INSECURE_SKIP_VERIFY: fc.boolean().map(String),
};
const environment = fc.record({
  values: fc.record(optional, { requiredKeys: [] }),
  bindings,
  params,
  slot: fc.option(name, { nil: undefined }),
  form: fc.constantFrom(1, 2),
}).map((one) => {
  const database = one.form === 1 ? "PGPROXY_LOCAL-" : "PGPROXY_DATABASE-";
  const upstream = one.form === 1 ? "PGPROXY_LOCAL-UPSTREAM_CONFIG-" : "PGPROXY_UPSTREAM-X-";
  const env: Env = {
    [one.form === 1 ? `${database}POSTGRESQL_URI` : `${database}URI`]: "postgres://u@h1:1,h2:2/db?options=-c%20x%3D1",
    [one.form === 1 ? `${database}UPSTREAM` : `${upstream}KIND`]: "mqtt",
    [`${database}WAL2JSON_PARAMS`]: one.params,
    [`${upstream}URI`]: "wss://broker:8443/mqtt",
    [`${upstream}BRIDGE_CHANNELS`]: one.bindings,
  };
  if (one.slot !== undefined) env[`${one.form === 1 ? database : upstream}REPLICATION_SLOT`] = one.slot;
  for (const [key, value] of Object.entries(one.values)) env[upstream + key] = value;
  return env;
});

test("what config prints loads as the same configuration", () => {
  fc.assert(
    fc.property(environment, (env) => {
      const files = { "/ca.pem": PEM };
      const printed = print(env, files);
      const load = (file: string | undefined, variables: Env) =>
        loadConfig({ file, env: variables, readFile: readFile({ ...files, "config.ini": printed }) }).config;
      assert.deepEqual(load("config.ini", {}), load(undefined, env));
      // Printed once more from the file it differs in the origins only.
      const again = print({}, { ...files, "config.ini": printed });
      const values = (ini: string) => ini.split("\n").filter((line) => !line.startsWith("#"));
      assert.deepEqual(values(again), values(printed));
    }),
    { numRuns: 500 },
  );
});

test("config --example prints a file that loads as it stands", () => {
  let printed = "";
  configCommand({ example: true, env: {}, readFile: readFile({}), write: (part) => printed += part });
  assert.equal(printed, exampleIni());
  const { bridges } = loadConfig({ file: "x", env: {}, readFile: () => printed }).config;
  assert.deepEqual(bridges.map((bridge) => bridge.upstreams.map(({ kind }) => kind)), [["stdout"]]);
});

test("the example with every choice taken loads, and shows every key and kind", () => {
  const complete = exampleIni().replace(/^;/gm, "").replace(
    "amqp://user:pass@rabbitmq//",
    "amqps://user:pass@rabbitmq//",
  );
  const { config } = loadConfig({
    file: "example.ini",
    env: {},
    readFile: (path) => path === "example.ini" ? complete : PEM,
  });
  assert.deepEqual(config.bridges.map((bridge) => bridge.name), ["local", "database"]);
  const kinds = config.bridges[1]?.upstreams.map(({ kind }) => kind);
  assert.deepEqual(kinds?.toSorted(), KIND_NAMES.toSorted());
  for (const key of KEYS) assert.match(complete, new RegExp(`^${key.name}=`, "m"));
});

test("help and reference name every key", () => {
  for (const key of KEYS) {
    assert.match(keyHelp(), new RegExp(`^ +${key.name}\\b`, "m"));
    assert.ok(keyReferenceMarkdown().includes(`| \`${key.name}\``), key.name);
  }
  for (const line of keyHelp().split("\n")) assert.ok(line.length <= 120, line);
});
