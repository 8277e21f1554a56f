import assert from "node:assert/strict";
import { test } from "node:test";
import type { BridgeConfig } from "../../src/config/config.ts";
import { loadConfig } from "../../src/config/load.ts";

type Env = Record<string, string>;
type Files = Record<string, string>;

function reader(files: Files): (path: string) => string {
  return (path) => {
    const text = Object.hasOwn(files, path) ? files[path] : undefined;
    if (text === undefined) throw new Error("no such file or directory");
    return text;
  };
}

function load(env: Env, ini?: string, files: Files = {}) {
  const file = ini === undefined ? undefined : "config.ini";
  return loadConfig({ file, env, readFile: reader(ini === undefined ? files : { ...files, "config.ini": ini }) })
    .config;
}

const DEFAULT_SLOT = { name: "pg_event_proxy", wal2jsonParams: [["format-version", "2"], ["include-types", "0"]] };
const NO_TLS = { caFile: undefined, certFile: undefined, keyFile: undefined, insecureSkipVerify: false };
const COMMON = {
  maxInFlight: undefined,
  maxInFlightBytes: 32 * 1024 * 1024,
  onReject: "stop",
  cloudEventsSource: undefined,
};
const TOPICS = [
  { channel: "events", target: { type: "topic", name: "events" } },
  { channel: "wal2json", target: { type: "topic", name: "wal" } },
];
const EXCHANGES = [
  { channel: "events", target: { type: "exchange", name: "amq.topic" } },
  { channel: "wal2json", target: { type: "exchange", name: "amq.topic" } },
];
const POSTGRESQL_URI = "postgresql://username:password@domain.tld:5432/database";

/** The lines of the manual, and what they mean. `PORT` stands for its `port`. */
const MANUAL: Array<[name: string, lines: string[], expected: object]> = [
  ["RabbitMQ", [
    "PGPROXY_LOCAL-POSTGRESQL_URI=postgresql://username:password@domain.tld:5432/database",
    "PGPROXY_LOCAL-UPSTREAM=amqp",
    "PGPROXY_LOCAL-UPSTREAM_CONFIG-URI=amqp://user:pass@rabbitmq//",
    "PGPROXY_LOCAL-UPSTREAM_CONFIG-BRIDGE_CHANNELS=events->exchange:amq.topic, wal2json->exchange:amq.topic",
    "PGPROXY_LOCAL-UPSTREAM_CONFIG-DELIVERY_MODE=1 # message delivery mode, 1 = non-persistent, 2 = persistent",
  ], {
    kind: "amqp",
    uri: "amqp://user:pass@rabbitmq//",
    bindings: EXCHANGES,
    deliveryMode: 1,
    declare: false,
    headers: false,
    tls: NO_TLS,
    slot: DEFAULT_SLOT,
  }],
  ["RabbitMQ with a slot of its own", [
    "PGPROXY_LOCAL-POSTGRESQL_URI=postgresql://username:password@domain.tld:5432/database",
    "PGPROXY_LOCAL-REPLICATION_SLOT=my_replication_slot",
    String.raw`PGPROXY_LOCAL-WAL2JSON_PARAMS=\"format-version\" '2' , \"include-types\" '1'`,
    "PGPROXY_LOCAL-UPSTREAM=amqp",
    "PGPROXY_LOCAL-UPSTREAM_CONFIG-URI=amqp://user:pass@rabbitmq//",
    "PGPROXY_LOCAL-UPSTREAM_CONFIG-BRIDGE_CHANNELS=pgchannel1->exchange:topic_exchange_name, pgchannel2->queue:queue_name",
  ], {
    kind: "amqp",
    uri: "amqp://user:pass@rabbitmq//",
    bindings: [
      { channel: "pgchannel1", target: { type: "exchange", name: "topic_exchange_name" } },
      { channel: "pgchannel2", target: { type: "queue", name: "queue_name" } },
    ],
    deliveryMode: 2,
    declare: false,
    headers: false,
    tls: NO_TLS,
    slot: { name: "my_replication_slot", wal2jsonParams: [["format-version", "2"], ["include-types", "1"]] },
  }],
  ["Redis", [
    "PGPROXY_LOCAL-POSTGRESQL_URI=postgresql://username:password@domain.tld:5432/database",
    "PGPROXY_LOCAL-UPSTREAM=redis",
    "PGPROXY_LOCAL-UPSTREAM_CONFIG-URI=redis://redis:6379",
    "PGPROXY_LOCAL-UPSTREAM_CONFIG-BRIDGE_CHANNELS=events->topic:events, wal2json->topic:wal",
  ], {
    kind: "redis",
    uri: "redis://redis:6379",
    maxlen: undefined,
    bindings: TOPICS,
    tls: NO_TLS,
    slot: DEFAULT_SLOT,
  }],
  ["MQTT", [
    "PGPROXY_LOCAL-POSTGRESQL_URI=postgresql://username:password@domain.tld:5432/database",
    String.raw`PGPROXY_LOCAL-WAL2JSON_PARAMS="format-version" '2' , "include-types" '0'`,
    "PGPROXY_LOCAL-UPSTREAM=mqtt",
    "PGPROXY_LOCAL-UPSTREAM_CONFIG-URI=tcp://mosquitto:1883",
    "PGPROXY_LOCAL-UPSTREAM_CONFIG-BRIDGE_CHANNELS=events->topic:events, wal2json->topic:wal",
    "PGPROXY_LOCAL-UPSTREAM_CONFIG-USERNAME=username",
    "PGPROXY_LOCAL-UPSTREAM_CONFIG-PASSWORD=password",
  ], {
    kind: "mqtt",
    uri: "tcp://mosquitto:1883",
    bindings: TOPICS,
    username: "username",
    password: "password",
    clientId: undefined,
    qos: 1,
    retain: false,
    topicSeparator: ".",
    protocolVersion: 4,
    tls: NO_TLS,
    slot: DEFAULT_SLOT,
  }],
];

/** `[NAME, key, value]` of a line of the manual. */
function split(line: string): { variable: string; section: string; key: string; value: string } {
  const [, variable = "", section = "", key = "", value = ""] = /^(PGPROXY_(.+)-([A-Z0-9_]+))=(.*)$/.exec(line) ?? [];
  return { variable, section, key, value };
}

function toEnv(lines: string[], rename = (variable: string) => variable): Env {
  return Object.fromEntries(lines.map(split).map(({ variable, value }) => [rename(variable), value]));
}

function toIni(lines: string[], place: (section: string, key: string) => [string, string]): string {
  let text = "";
  for (const { section, key, value } of lines.map(split)) {
    const [header, name] = place(section, key);
    text += `[${header}]\n${name}=${value}\n`;
  }
  return text;
}

const placeInForm1 = (section: string, key: string): [string, string] => [
  section.toLowerCase().replace("-", "."),
  key.toLowerCase(),
];
const placeInForm2 = (section: string, key: string): [string, string] => {
  if (section === "LOCAL-UPSTREAM_CONFIG") return ["upstream.local", key.toLowerCase()];
  if (key === "UPSTREAM") return ["upstream.local", "kind"];
  return ["database", key === "POSTGRESQL_URI" ? "uri" : key.toLowerCase()];
};
/** Form 2 in the environment, from its ini text. */
function envOfIni(ini: string): Env {
  const env: Env = {};
  let section = "";
  for (const line of ini.split("\n")) {
    const header = /^\[(.*)\]$/.exec(line)?.[1];
    if (header !== undefined) section = header.toUpperCase().replace(".", "-");
    else if (line !== "") {
      env[`PGPROXY_${section}-${line.slice(0, line.indexOf("=")).toUpperCase()}`] = line.slice(line.indexOf("=") + 1);
    }
  }
  return env;
}

for (const [name, lines, upstream] of MANUAL) {
  const bridge = (bridgeName: string) => [{
    name: bridgeName,
    postgresqlUri: POSTGRESQL_URI,
    slotFailover: false,
    notifyBufferBytes: 64 * 2 ** 20,
    outbox: true,
    shutdownTimeoutMs: 10_000,
    upstreams: [{ name: "local", ...COMMON, ...upstream }],
  }];
  const expectBridge = (actual: readonly BridgeConfig[], bridgeName: string) =>
    assert.deepEqual(actual, bridge(bridgeName));

  test(`manual, ${name}: by environment`, () => expectBridge(load(toEnv(lines)).bridges, "local"));
  test(`manual, ${name}: by environment with __ for -`, () => {
    expectBridge(load(toEnv(lines, (variable) => variable.replaceAll("-", "__"))).bridges, "local");
  });
  test(`manual, ${name}: by environment in lower case`, () => {
    expectBridge(load(toEnv(lines, (variable) => variable.toLowerCase())).bridges, "local");
  });
  test(`manual, ${name}: by ini, a section per bridge`, () => {
    expectBridge(load({}, toIni(lines, placeInForm1)).bridges, "local");
    expectBridge(load({}, toIni(lines, placeInForm1).replace(/^\[local/gm, "[LOCAL")).bridges, "local");
  });
  test(`manual, ${name}: by ini, a database with upstreams`, () => {
    expectBridge(load({}, toIni(lines, placeInForm2)).bridges, "database");
  });
  test(`manual, ${name}: by environment, a database with upstreams`, () => {
    expectBridge(load(envOfIni(toIni(lines, placeInForm2))).bridges, "database");
  });
  test(`manual, ${name}: half by environment, half by ini`, () => {
    const half = Math.floor(lines.length / 2);
    expectBridge(load(toEnv(lines.slice(half)), toIni(lines.slice(0, half), placeInForm1)).bridges, "local");
    expectBridge(load(toEnv(lines.slice(0, half)), toIni(lines.slice(half), placeInForm1)).bridges, "local");
  });
}

const AMQP: Env = {
  "PGPROXY_LOCAL-POSTGRESQL_URI": "postgres://localhost/db",
  "PGPROXY_LOCAL-UPSTREAM": "amqp",
  "PGPROXY_LOCAL-UPSTREAM_CONFIG-URI": "amqp://localhost",
  "PGPROXY_LOCAL-UPSTREAM_CONFIG-BRIDGE_CHANNELS": "events->exchange:amq.topic",
};
const MQTT: Env = {
  "PGPROXY_UPSTREAM-M-KIND": "mqtt",
  "PGPROXY_UPSTREAM-M-URI": "mqtt://localhost",
  "PGPROXY_UPSTREAM-M-BRIDGE_CHANNELS": "events->topic:events",
  "PGPROXY_DATABASE-URI": "postgres://localhost/db",
};

function only(env: Env, ini?: string, files: Files = {}) {
  const upstream = load(env, ini, files).bridges[0]?.upstreams[0];
  assert.ok(upstream !== undefined);
  return upstream;
}

test("several bridges and both forms load together", () => {
  const ini = `
[database]
uri=postgres://localhost/one
[upstream.a]
kind=stdout
bridge_channels=x->topic:x
[upstream.b-c]
kind=redis
uri=rediss://cache:6380/3
bridge_channels=wal2json->topic:w
replication_slot=own
[blog]
postgresql_uri=postgres://localhost/two
upstream=stdout
[blog.upstream_config]
bridge_channels=wal2json->topic:w
[log]
level=debug`;
  const { bridges, log } = load(
    { "PGPROXY_UPSTREAM-B-C-MAX_IN_FLIGHT": "7", PGPROXY_LOG__FORMAT: "json", ...AMQP },
    ini,
  );
  assert.deepEqual(log, { level: "debug", format: "json" });
  assert.deepEqual(
    bridges.map(({ name, postgresqlUri, upstreams }) => [
      name,
      postgresqlUri,
      ...upstreams.map((one) => `${one.name} ${one.kind} ${one.slot.name} ${one.maxInFlight}`),
    ]),
    [
      ["blog", "postgres://localhost/two", "blog stdout pg_event_proxy undefined"],
      ["local", "postgres://localhost/db", "local amqp pg_event_proxy undefined"],
      ["database", "postgres://localhost/one", "a stdout pg_event_proxy undefined", "b-c redis own 7"],
    ],
  );
});

test("the environment wins over the file, also over its KEY_FILE", () => {
  const ini = "[local.upstream_config]\nuri_file=/nowhere\ndelivery_mode=1\n";
  const upstream = only({ ...AMQP, "PGPROXY_LOCAL-UPSTREAM_CONFIG-DELIVERY_MODE": "2" }, ini);
  assert.ok(upstream.kind === "amqp");
  assert.equal(upstream.uri, "amqp://localhost");
  assert.equal(upstream.deliveryMode, 2);
});

test("an empty value counts as not set", () => {
  const upstream = only(
    { ...MQTT, "PGPROXY_UPSTREAM-M-QOS": "", "PGPROXY_UPSTREAM-M-PASSWORD": "" },
    "[upstream.m]\nqos=2",
  );
  assert.ok(upstream.kind === "mqtt");
  assert.equal(upstream.qos, 2);
  assert.equal(upstream.password, undefined);
});

const FROM_FILE: Array<[content: string, password: string]> = [
  ["secret", "secret"],
  ["secret\n", "secret"],
  ["secret\r\n", "secret"],
  [" s#e;c=r%e't\" ", " s#e;c=r%e't\" "],
];
for (const [content, password] of FROM_FILE) {
  test(`KEY_FILE gives the content of the file: ${JSON.stringify(content)}`, () => {
    const files = { "/run/secrets/p": content };
    const env = { ...MQTT, "PGPROXY_UPSTREAM-M-USERNAME": "u" };
    for (
      const [variables, ini] of [
        [{ "PGPROXY_UPSTREAM-M-PASSWORD_FILE": "/run/secrets/p" }, undefined],
        [{ "pgproxy_upstream__m__password_file": "/run/secrets/p" }, undefined],
        [{}, "[upstream.m]\nPassword_File=/run/secrets/p"],
      ] as const
    ) {
      const upstream = only({ ...env, ...variables }, ini, files);
      assert.equal(upstream.kind === "mqtt" && upstream.password, password);
    }
  });
}

test("a file name that is a value may be read from a file as well", () => {
  const env = {
    ...AMQP,
    "PGPROXY_LOCAL-UPSTREAM_CONFIG-URI": "amqps://localhost",
    "PGPROXY_LOCAL-UPSTREAM_CONFIG-CA_FILE_FILE": "/name",
  };
  const upstream = only(env, undefined, { "/name": "/ca.pem\n", "/ca.pem": "-----BEGIN CERTIFICATE-----" });
  assert.equal(upstream.kind === "amqp" && upstream.tls.caFile, "/ca.pem");
});

const PASSWORDS = [`p#a`, `p;a`, `p a # b`, `a=b`, `100%`, `"a`, `it's`, `a\\b\\n`, `päss💥`];
for (const password of PASSWORDS) {
  test(`a password survives the file and the environment: ${password}`, () => {
    const env = { ...MQTT, "PGPROXY_UPSTREAM-M-USERNAME": "u" };
    for (
      const upstream of [
        only({ ...env, "PGPROXY_UPSTREAM-M-PASSWORD": password }),
        only(env, `[upstream.m]\npassword=${password}`),
      ]
    ) assert.equal(upstream.kind === "mqtt" && upstream.password, password);
  });
}

const VALUES: Array<[variable: string, text: string, field: string, value: unknown]> = [
  ["QOS", "2 ; exactly once", "qos", 2],
  ["RETAIN", "Yes # please", "retain", true],
  ["RETAIN", "0", "retain", false],
  ["PROTOCOL_VERSION", "5", "protocolVersion", 5],
  ["ON_REJECT", "DROP", "onReject", "drop"],
  ["TOPIC_SEPARATOR", "/", "topicSeparator", "/"],
  ["MAX_IN_FLIGHT", "65535", "maxInFlight", 65535],
  ["MAX_IN_FLIGHT_BYTES", "65536", "maxInFlightBytes", 65536],
  ["MAX_IN_FLIGHT_BYTES", "64kB", "maxInFlightBytes", 64_000],
  ["MAX_IN_FLIGHT_BYTES", "64KiB", "maxInFlightBytes", 65_536],
  ["MAX_IN_FLIGHT_BYTES", "64MB", "maxInFlightBytes", 64_000_000],
  ["MAX_IN_FLIGHT_BYTES", "1.5 MiB # bound", "maxInFlightBytes", 1_572_864],
  ["MAX_IN_FLIGHT_BYTES", "1gib", "maxInFlightBytes", 2 ** 30],
];
for (const [variable, text, field, value] of VALUES) {
  test(`${variable}=${text} is read as ${value}`, () => {
    const upstream: object = only({ ...MQTT, [`PGPROXY_UPSTREAM-M-${variable}`]: text });
    assert.equal(Object.entries(upstream).find(([name]) => name === field)?.[1], value);
  });
}

const URIS: Array<[kind: string, uri: string, type: string]> = [
  ["amqp", "amqps://u:p%40%2F@[::1]:5671/vhost", "queue"],
  ["mqtt", "mqtts://h", "topic"],
  ["mqtt", "tcp://u:p@h:1883", "topic"],
  ["mqtt", "ssl://h", "topic"],
  ["mqtt", "ws://h:9001/mqtt", "topic"],
  ["mqtt", "wss://h/mqtt?x=y", "topic"],
  ["redis", "redis://:p@h:6379/15", "topic"],
  ["redis", "rediss://u:p@h/", "topic"],
];
for (const [kind, uri, type] of URIS) {
  test(`${kind} takes ${uri}`, () => {
    const upstream = only({
      "PGPROXY_DATABASE-URI": "postgres://u:p@h1:1,h2:2/db?target_session_attrs=read-write",
      "PGPROXY_UPSTREAM-X-KIND": kind,
      "PGPROXY_UPSTREAM-X-URI": uri,
      "PGPROXY_UPSTREAM-X-BRIDGE_CHANNELS": `c->${type}:t`,
    });
    assert.equal("uri" in upstream && upstream.uri, uri);
  });
}

test("variables of other programs are none of ours", () => {
  const env = {
    ...AMQP,
    PGPROXY_TEST_POSTGRES: "x",
    pgproxy_build_version: "x",
    PGPROXY_SERVICE_HOST: "10.0.0.1",
    PGPROXY_SERVICE_PORT: "8080",
    PGPROXY_SERVICE_PORT_HTTP: "8080",
    PGPROXY_PORT: "tcp://10.0.0.1:8080",
    PGPROXY_PORT_8080_TCP: "tcp://10.0.0.1:8080",
    PGPROXY_PORT_8080_TCP_ADDR: "10.0.0.1",
    PGPROXY: "x",
    PATH: "/bin",
  };
  assert.equal(load(env).bridges.length, 1);
});

test("a bridge may be called test", () => {
  const env = Object.fromEntries(
    Object.entries(AMQP).map(([name, value]) => [name.replace("LOCAL", "TEST").replaceAll("-", "__"), value]),
  );
  assert.equal(load(env).bridges[0]?.name, "test");
});

test("several upstreams of a bridge share a slot, and may have their own", () => {
  const ini = `
[database]
uri=postgres://localhost/db
[upstream.a]
kind=stdout
bridge_channels=wal2json->topic:w
[upstream.b]
kind=stdout
bridge_channels=wal2json->topic:w
[upstream.c]
kind=stdout
bridge_channels=wal2json->topic:w
replication_slot=c
wal2json_params="format-version" '2'`;
  assert.deepEqual(load({}, ini).bridges[0]?.upstreams.map(({ slot }) => slot), [DEFAULT_SLOT, DEFAULT_SLOT, {
    name: "c",
    wal2jsonParams: [["format-version", "2"]],
  }]);
});

test("the source of CloudEvents is the database's URI without user, password and parameters, or what is set", () => {
  const source = (uri: string, more: Record<string, string> = {}) => {
    const env = {
      "PGPROXY_B-POSTGRESQL_URI": uri,
      "PGPROXY_B-UPSTREAM": "stdout",
      "PGPROXY_B-UPSTREAM_CONFIG-BRIDGE_CHANNELS": "a->topic:b",
      "PGPROXY_B-UPSTREAM_CONFIG-FORMAT": "cloudevents",
      ...more,
    };
    return only(env).cloudEventsSource;
  };
  assert.equal(
    source("postgresql://u:s3cret@Db.example:5433/shop?sslmode=require"),
    "postgresql://db.example:5433/shop",
  );
  assert.equal(source("postgres://a,b:6432/ü db"), "postgresql://a:5432/%C3%BC%20db");
  assert.equal(source("postgresql:///app?host=/var/run/postgresql"), "postgresql://%2Fvar%2Frun%2Fpostgresql:5432/app");
  assert.equal(source("postgresql://h/d", { "PGPROXY_B-UPSTREAM_CONFIG-CLOUDEVENTS_SOURCE": "/shops/1" }), "/shops/1");
  assert.equal(source("postgresql://h/d", { "PGPROXY_B-UPSTREAM_CONFIG-FORMAT": "raw" }), undefined);
});
