import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { KEYS, keysOf, KIND_NAMES } from "../../src/config/keys.ts";
import { loadConfig } from "../../src/config/load.ts";
import { maskUri } from "../../src/config/uri.ts";
import { ConfigError } from "../../src/core/errors.ts";

type Env = Record<string, string>;

/** The problems of a configuration; empty where it loads. */
function problemsOf(env: Env, ini?: string, files: Record<string, string> = {}): readonly string[] {
  const readFile = (path: string) => {
    const text = path === "config.ini" ? ini : Object.hasOwn(files, path) ? files[path] : undefined;
    if (text === undefined) throw new Error("no such file or directory");
    return text;
  };
  try {
    loadConfig({ file: ini === undefined ? undefined : "config.ini", env, readFile });
  } catch (error) {
    assert.ok(error instanceof ConfigError, String(error));
    assert.ok(error.problems.length > 0);
    for (const problem of error.problems) assert.ok(!/[\r\n]/.test(problem), `more than one line: ${problem}`);
    return error.problems;
  }
  return [];
}

const AMQP: Env = {
  "PGPROXY_LOCAL-POSTGRESQL_URI": "postgres://localhost/db",
  "PGPROXY_LOCAL-UPSTREAM": "amqp",
  "PGPROXY_LOCAL-UPSTREAM_CONFIG-URI": "amqp://localhost",
  "PGPROXY_LOCAL-UPSTREAM_CONFIG-BRIDGE_CHANNELS": "events->exchange:amq.topic",
};
const MQTT: Env = {
  "PGPROXY_DATABASE-URI": "postgres://localhost/db",
  "PGPROXY_UPSTREAM-M-KIND": "mqtt",
  "PGPROXY_UPSTREAM-M-URI": "mqtt://localhost",
  "PGPROXY_UPSTREAM-M-BRIDGE_CHANNELS": "events->topic:events",
};
const CONFIG = "PGPROXY_LOCAL-UPSTREAM_CONFIG-";

/** One fault each, on top of a configuration that loads: exactly this one line. */
const IN_ENVIRONMENT: Array<[base: Env, faults: Env, problem: string]> = [
  [
    AMQP,
    { "PGPROXY_LOCAL-UPSTREAM": "ampq" },
    'PGPROXY_LOCAL-UPSTREAM: "ampq" is not allowed; allowed: amqp, mqtt, redis, awssns, awssqs, awslambda, stdout, webhook; did you mean amqp?',
  ],
  [
    AMQP,
    { "PGPROXY_LOCAL-UPSTREAM": "kafka" },
    'PGPROXY_LOCAL-UPSTREAM: "kafka" is not allowed; allowed: amqp, mqtt, redis, awssns, awssqs, awslambda, stdout, webhook',
  ],
  [
    AMQP,
    { [`${CONFIG}DELIVERYMODE`]: "1" },
    `${CONFIG}DELIVERYMODE: unknown key; did you mean ${CONFIG}DELIVERY_MODE?`,
  ],
  [
    AMQP,
    { PGPROXY_LOCAL__UPSTREAM_CONFIG__DELIVRY_MODE: "1" },
    "PGPROXY_LOCAL__UPSTREAM_CONFIG__DELIVRY_MODE: unknown key; did you mean PGPROXY_LOCAL__UPSTREAM_CONFIG__DELIVERY_MODE?",
  ],
  [AMQP, { "PGPROXY_LOCAL-QOS": "1" }, `PGPROXY_LOCAL-QOS: unknown key; did you mean ${CONFIG}QOS?`],
  [
    AMQP,
    { "PGPROXY_LOCAL-UPSTREAM-DECLARE": "1" },
    `PGPROXY_LOCAL-UPSTREAM-DECLARE: unknown key; did you mean ${CONFIG}DECLARE?`,
  ],
  [
    AMQP,
    { [`${CONFIG}REPLICATION_SLOT`]: "x" },
    `${CONFIG}REPLICATION_SLOT: unknown key; did you mean PGPROXY_LOCAL-REPLICATION_SLOT?`,
  ],
  [
    AMQP,
    { PGPROXY_LOCAL_UPSTREAM_CONFIG_DECLARE: "1" },
    "PGPROXY_LOCAL_UPSTREAM_CONFIG_DECLARE: names no key; wanted PGPROXY_SECTION-KEY or PGPROXY_SECTION__KEY; did you mean PGPROXY_LOCAL__UPSTREAM_CONFIG__DECLARE?",
  ],
  [
    MQTT,
    { PGPROXY_UPSTREAM_M_QOS: "1" },
    "PGPROXY_UPSTREAM_M_QOS: names no key; wanted PGPROXY_SECTION-KEY or PGPROXY_SECTION__KEY; did you mean PGPROXY_UPSTREAM__M__QOS?",
  ],
  [
    MQTT,
    { "PGPROXY_DATABASE-POSTGRESQL_URI": "postgres://h/x" },
    "PGPROXY_DATABASE-POSTGRESQL_URI: unknown key; did you mean PGPROXY_DATABASE-URI?",
  ],
  [
    MQTT,
    { "PGPROXY_LOG-COLOUR": "red" },
    "PGPROXY_LOG-COLOUR: unknown key; known here: level, format",
  ],
  ...["x:", "70000", ":8080", "::1:8080", "http://h:1", "h:1/"].map((
    text,
  ): [Env, Env, string] => [
    MQTT,
    { "PGPROXY_HTTP-LISTEN": text },
    `PGPROXY_HTTP-LISTEN: ${JSON.stringify(text)} is not allowed; allowed: a port (then of 127.0.0.1), host:port or ` +
    "[IPv6 address]:port; 0.0.0.0:port for every interface",
  ]),
  [
    MQTT,
    { "PGPROXY_HTTP-TOKEN": "a blank" },
    "PGPROXY_HTTP-TOKEN: the value (secret, not shown) holds a blank or a character beyond ASCII, which no " +
    "Authorization header can carry; write letters, digits and signs",
  ],
  [MQTT, { "PGPROXY_HTTP-PORT": "1" }, "PGPROXY_HTTP-PORT: unknown key; known here: listen, token, show_payloads"],
  [
    MQTT,
    { "PGPROXY_UPSTREAM-KIND": "mqtt" },
    "PGPROXY_UPSTREAM-KIND: names no upstream; wanted [upstream.NAME], as variable PGPROXY_UPSTREAM-NAME-KEY",
  ],
  [
    MQTT,
    { "PGPROXY_UPSTREAM_CONFIG-URI": "x" },
    "PGPROXY_UPSTREAM_CONFIG-URI: names no bridge; wanted [NAME.upstream_config], as variable PGPROXY_NAME-UPSTREAM_CONFIG-KEY",
  ],
  [
    MQTT,
    { "PGPROXY_UPSTREAM-M-DELIVERY_MODE": "1" },
    "PGPROXY_UPSTREAM-M-DELIVERY_MODE: is not a key of the kind mqtt, only of amqp; remove it",
  ],
  [MQTT, { "PGPROXY_UPSTREAM-M-QOS": "3" }, 'PGPROXY_UPSTREAM-M-QOS: "3" is not allowed; allowed: 0, 1, 2'],
  [
    MQTT,
    { "PGPROXY_UPSTREAM-M-RETAIN": "maybe" },
    'PGPROXY_UPSTREAM-M-RETAIN: "maybe" is not allowed; allowed: true, false',
  ],
  [
    MQTT,
    { "PGPROXY_UPSTREAM-M-MAX_IN_FLIGHT": "0" },
    'PGPROXY_UPSTREAM-M-MAX_IN_FLIGHT: "0" is not allowed; allowed: 1 to 1000000',
  ],
  [
    MQTT,
    { "PGPROXY_UPSTREAM-M-MAX_IN_FLIGHT": "65536" },
    'PGPROXY_UPSTREAM-M-MAX_IN_FLIGHT: "65536" is too much for mqtt; allowed: up to 65535',
  ],
  [
    MQTT,
    { "PGPROXY_UPSTREAM-M-MAX_IN_FLIGHT_BYTES": "64M" },
    'PGPROXY_UPSTREAM-M-MAX_IN_FLIGHT_BYTES: "64M" is not allowed; allowed: a number of bytes, or one with a unit (64MiB, 64MB, 64kB), from 1 to 1024GiB',
  ],
  [
    MQTT,
    { "PGPROXY_LOG-LEVEL": "warn" },
    'PGPROXY_LOG-LEVEL: "warn" is not allowed; allowed: debug, info, warning, error; did you mean warning?',
  ],
  [
    MQTT,
    { "PGPROXY_UPSTREAM-M-TOPIC_SEPARATOR": "#" },
    'PGPROXY_UPSTREAM-M-TOPIC_SEPARATOR: "#" holds + or #; use another one',
  ],
  [
    MQTT,
    { "PGPROXY_UPSTREAM-M-PASSWORD": "hunter2" },
    "PGPROXY_UPSTREAM-M-PASSWORD: is set without username; set both",
  ],
  [
    MQTT,
    { "PGPROXY_UPSTREAM-M-URI": "mqtt://u:p@h", "PGPROXY_UPSTREAM-M-USERNAME": "u" },
    "PGPROXY_UPSTREAM-M-USERNAME: is set, and uri holds a user as well; keep one of them",
  ],
  [
    MQTT,
    { "PGPROXY_UPSTREAM-M-USERNAME": "u", "PGPROXY_UPSTREAM-M-PASSWORD": "hunter\n2" },
    "PGPROXY_UPSTREAM-M-PASSWORD: the value (secret, not shown) holds a line break or a NUL; write the value on one line",
  ],
  [
    AMQP,
    { "PGPROXY_LOCAL-REPLICATION_SLOT": "My-Slot" },
    'PGPROXY_LOCAL-REPLICATION_SLOT: "My-Slot" is no slot name; allowed: up to 63 lower-case letters, digits and underscores',
  ],
  [
    AMQP,
    { "PGPROXY_LOCAL-WAL2JSON_PARAMS": `"format-version" '1'` },
    `PGPROXY_LOCAL-WAL2JSON_PARAMS: "\\"format-version\\" '1'": "format-version" '1' is not supported; wanted '2', since only it has one message per row`,
  ],
  [
    AMQP,
    { "PGPROXY_LOCAL-POSTGRESQL_URI": "mysql://u:hunter2@h/db" },
    'PGPROXY_LOCAL-POSTGRESQL_URI: "mysql://u:***@h/db" has the scheme mysql://; wanted postgresql://user:password@host:port/database',
  ],
  [
    AMQP,
    { "PGPROXY_LOCAL-POSTGRESQL_URI": "host=h password=hunter2" },
    'PGPROXY_LOCAL-POSTGRESQL_URI: "(not shown, it may hold a password)" is no URI; wanted postgresql://user:password@host:port/database',
  ],
  [
    AMQP,
    { [`${CONFIG}URI`]: "redis://h" },
    `${CONFIG}URI: "redis://h" has the scheme redis://; allowed: amqp://, amqps://`,
  ],
  [
    AMQP,
    { [`${CONFIG}URI`]: "rabbitmq" },
    `${CONFIG}URI: "rabbitmq" is no URI; wanted one that begins with amqp://, amqps://`,
  ],
  [AMQP, { [`${CONFIG}URI`]: "amqp:///vhost" }, `${CONFIG}URI: "amqp:///vhost" names no host; wanted amqp://host:port`],
  [
    AMQP,
    { [`${CONFIG}BRIDGE_CHANNELS`]: "a->topic:t" },
    `${CONFIG}BRIDGE_CHANNELS: item 1 "a->topic:t": the type "topic" is not allowed for amqp; allowed: exchange, queue`,
  ],
  [
    AMQP,
    { [`${CONFIG}BRIDGE_CHANNELS`]: "a->exchange:x, b->que:t" },
    `${CONFIG}BRIDGE_CHANNELS: item 2 "b->que:t": the type "que" is not allowed for amqp; allowed: exchange, queue; did you mean queue?`,
  ],
  [
    AMQP,
    { [`${CONFIG}BRIDGE_CHANNELS`]: "a->exchange:{schema}.x" },
    `${CONFIG}BRIDGE_CHANNELS: item 1 "a->exchange:{schema}.x": only events of the channel wal2json have a {schema}; allowed here: {key}, {channel}`,
  ],
  [
    AMQP,
    { [`${CONFIG}BRIDGE_CHANNELS`]: "wal2json->exchange:{tabel}.x" },
    `${CONFIG}BRIDGE_CHANNELS: item 1 "wal2json->exchange:{tabel}.x": the placeholder {tabel} is unknown; allowed: {schema}, {table}, {action}, {key}, {channel}; did you mean table?`,
  ],
  [
    AMQP,
    { [`${CONFIG}BRIDGE_CHANNELS`]: `wal2json->exchange:${"x".repeat(250)}{table}` },
    `${CONFIG}BRIDGE_CHANNELS: item 1 "wal2json->exchange:${
      "x".repeat(250)
    }{table}": the name has 256 bytes; AMQP allows 255`,
  ],
  [
    MQTT,
    { "PGPROXY_UPSTREAM-M-BRIDGE_CHANNELS": "a->topic:b/#" },
    'PGPROXY_UPSTREAM-M-BRIDGE_CHANNELS: item 1 "a->topic:b/#": the topic holds + or #, which MQTT allows in subscriptions only',
  ],
  [
    AMQP,
    { [`${CONFIG}INSECURE_SKIP_VERIFY`]: "true" },
    `${CONFIG}INSECURE_SKIP_VERIFY: needs TLS, and amqp:// has none; use amqps:// in uri, or remove the key`,
  ],
  [
    AMQP,
    { [`${CONFIG}URI`]: "amqps://h", [`${CONFIG}CERT_FILE`]: "/pem" },
    `${CONFIG}CERT_FILE: is set without key_file; set both or none`,
  ],
  [
    AMQP,
    { [`${CONFIG}URI`]: "amqps://h", [`${CONFIG}CA_FILE`]: "/missing" },
    `${CONFIG}CA_FILE: the file "/missing" cannot be read: no such file or directory; name an existing PEM file`,
  ],
  [
    AMQP,
    { [`${CONFIG}URI`]: "amqps://h", [`${CONFIG}CA_FILE`]: "/text" },
    `${CONFIG}CA_FILE: the file "/text" holds no PEM block; wanted one that begins with -----BEGIN …`,
  ],
  [
    MQTT,
    { "PGPROXY_UPSTREAM-M-CLIENT_ID": "x", "PGPROXY_UPSTREAM-M-CLIENT_ID_FILE": "/text" },
    "PGPROXY_UPSTREAM-M-CLIENT_ID_FILE: is set twice: already by PGPROXY_UPSTREAM-M-CLIENT_ID, as a value there and as a file here; keep one of them",
  ],
  [
    MQTT,
    { "PGPROXY_UPSTREAM-M-QOS": "1", "pgproxy_upstream__m__qos": "1" },
    "pgproxy_upstream__m__qos: is set twice: already by PGPROXY_UPSTREAM-M-QOS; keep one of them",
  ],
  [
    MQTT,
    { "PGPROXY_UPSTREAM-M-CLIENT_ID_FILE": "/missing" },
    'PGPROXY_UPSTREAM-M-CLIENT_ID_FILE: the file "/missing" cannot be read: no such file or directory; name a file that holds the value',
  ],
  [
    MQTT,
    { "PGPROXY_UPSTREAM-M-CLIENT_ID_FILE": "/empty" },
    'PGPROXY_UPSTREAM-M-CLIENT_ID_FILE: the file "/empty" is empty; write the value into it',
  ],
];

const FILES = { "/pem": "-----BEGIN X-----", "/text": "text", "/empty": "\n" };

for (const [base, faults, problem] of IN_ENVIRONMENT) {
  test(`faulty: ${JSON.stringify(faults).slice(0, 100)}`, () => {
    assert.deepEqual(problemsOf(base, undefined, FILES), []);
    assert.deepEqual(problemsOf({ ...base, ...faults }, undefined, FILES), [problem]);
  });
}

const VALID_INI = `[Local]
postgresql_uri=postgres://localhost/db
upstream=amqp
[local.upstream_config]
uri=amqp://localhost
bridge_channels=events->exchange:amq.topic
`;
const VALID_INI_2 = `[database]
uri=postgres://localhost/db
[upstream.a]
kind=stdout
bridge_channels=wal2json->topic:t
`;

/** Whole files: exactly these lines. */
const IN_FILE: Array<[name: string, ini: string, problems: string[]]> = [
  ["a wrong value", VALID_INI.replace("=amqp\n", "=ampq\n"), [
    'config.ini [Local] upstream: "ampq" is not allowed; allowed: amqp, mqtt, redis, awssns, awssqs, awslambda, stdout, webhook; did you mean amqp?',
  ]],
  ["a misspelt key", VALID_INI.replace("upstream=", "Upstraem="), [
    "config.ini [Local] Upstraem: unknown key; did you mean config.ini [local] upstream?",
  ]],
  ["a missing key", VALID_INI.replace(/bridge_channels.*\n/, ""), [
    "config.ini [local.upstream_config] bridge_channels: is required, but not set; wanted a list like events->exchange:amq.topic, wal2json->exchange:amq.topic",
  ]],
  ["a missing section", VALID_INI.slice(0, VALID_INI.indexOf("[local.")), [
    "config.ini [local.upstream_config] uri: is required, but not set; wanted a URI like amqp://user:pass@rabbitmq//",
    "config.ini [local.upstream_config] bridge_channels: is required, but not set; wanted a list like events->exchange:amq.topic, wal2json->exchange:amq.topic",
  ]],
  ["a misspelt section", VALID_INI.replace("[local.", "[locl.").replace("->", ">"), [
    "section locl.upstream_config: there is no section locl that it belongs to; did you mean local.upstream_config?",
    'config.ini [locl.upstream_config] bridge_channels: item 1 "events>exchange:amq.topic": has no ->; wanted ' +
    "pgchannel->type:target",
  ]],
  ["a misspelt part of a section", VALID_INI + "[local.upstream_cfg]\nqos=1\n", [
    "config.ini [local.upstream_cfg] (line 7): is no section; wanted [NAME], [NAME.upstream_config], [upstream.NAME], " +
    "[database], [http] or [log]; did you mean [local.upstream_config]?",
  ]],
  ["an unknown section", VALID_INI + "[htp]\nlisten=1\n", [
    "config.ini [htp] listen: unknown key; known here: postgresql_uri, replication_slot, wal2json_params, slot_failover, " +
    "notify_buffer_bytes, outbox, shutdown_timeout, upstream",
  ]],
  ["an upstream section with a hyphen", VALID_INI_2 + "[upstream-b]\nkind=stdout\n", [
    "config.ini [upstream-b] (line 6): is no section; did you mean [upstream.b]?",
  ]],
  ["a repeated key", VALID_INI + "[local]\nUPSTREAM=redis\n", [
    "config.ini [local] UPSTREAM: is set twice: here on line 8, already on line 3; keep one of them",
  ]],
  ["a repeated key in a section spelt otherwise", VALID_INI_2 + "[UPSTREAM.A]\nkind=stdout\n", [
    "config.ini [UPSTREAM.A] kind: is set twice: here on line 7, already on line 4; keep one of them",
  ]],
  ["a key and its file", VALID_INI + "uri_file=/pem\n", [
    "config.ini [local.upstream_config] uri_file: is set twice: here on line 7, already on line 5, as a value there and " +
    "as a file here; keep one of them",
  ]],
  ["a line without =", VALID_INI + "hunter2\n", [
    "config.ini line 7: is neither a [section] nor key=value; comments begin with ; or #",
  ]],
  ["a key before any section", "declare=1\n" + VALID_INI, [
    "config.ini line 1: declare stands before the first [section]; move it into one",
  ]],
  ["a database without upstreams", VALID_INI_2.slice(0, VALID_INI_2.indexOf("[upstream")), [
    "section database: has no upstream; add a section [upstream.NAME], or variables PGPROXY_UPSTREAM-NAME-KIND, …",
  ]],
  ["an upstream without a database", VALID_INI_2.slice(VALID_INI_2.indexOf("[upstream")), [
    "config.ini [database] uri: is required, but not set; wanted postgresql://username:password@domain.tld:5432/database",
  ]],
  [
    "one slot with two sets of parameters",
    `${VALID_INI_2}[upstream.b]
kind=stdout
bridge_channels=wal2json->topic:t
wal2json_params="format-version" '2'
`,
    [
      'config.ini [database] replication_slot: the upstreams a and b read the slot "pg_event_proxy" with different ' +
      "wal2json_params; give one of them another replication_slot, or both the same wal2json_params",
    ],
  ],
  [
    "one slot for two bridges",
    `${VALID_INI_2}[b]
postgresql_uri=postgresql://u:p@LOCALHOST:5432/db
upstream=stdout
[b.upstream_config]
bridge_channels=wal2json->topic:t
`,
    [
      'config.ini [database] replication_slot: the slot "pg_event_proxy" is also that of bridge b, in the same server; ' +
      "give one of them another replication_slot",
    ],
  ],
  [
    "one slot for two databases of a server",
    `${VALID_INI_2}[b]
postgresql_uri=postgresql://other,localhost/other
upstream=stdout
[b.upstream_config]
bridge_channels=wal2json->topic:t
`,
    [
      'config.ini [database] replication_slot: the slot "pg_event_proxy" is also that of bridge b, in the same server; ' +
      "give one of them another replication_slot",
    ],
  ],
];

for (const [name, ini, problems] of IN_FILE) {
  test(`faulty file: ${name}`, () => assert.deepEqual(problemsOf({}, ini, FILES), problems));
}

test("one slot name is fine where the servers differ, or only one bridge reads the WAL", () => {
  const second = (uri: string, channel: string) =>
    `${VALID_INI_2}[b]\npostgresql_uri=${uri}\nupstream=stdout\n[b.upstream_config]\nbridge_channels=${channel}->topic:t\n`;
  assert.deepEqual(problemsOf({}, second("postgres://localhost:5433/db", "wal2json")), []);
  assert.deepEqual(problemsOf({}, second("postgres://other/db", "wal2json")), []);
  assert.deepEqual(problemsOf({}, second("postgres://localhost/db", "events")), []);
});

test("the file that is named must be there", () => {
  const readFile = () => {
    throw new Error("ENOENT: no such file");
  };
  assert.throws(() => loadConfig({ file: "no.ini", env: {}, readFile }), {
    problems: ["no.ini: cannot be read: ENOENT: no such file; name an ini file that exists"],
  });
});

test("all faults are told at once", () => {
  const problems = problemsOf(
    { "PGPROXY_LOCAL-UPSTREAM": "ampq", "PGPROXY_LOCAL-WAL2JSON_PARAMS": "x", "PGPROXY_LOG-LEVEL": "loud" },
    "nonsense\n[local.upstream_config]\nurl=amqp://h\nqos=9\n[upstream.x]\nkind=redis\nuri=redis://\n",
  );
  const expected = [
    /line 1/,
    /url: unknown key/,
    /UPSTREAM: "ampq"/,
    /POSTGRESQL_URI.*required/,
    /WAL2JSON_PARAMS/,
    /qos: "9"/,
  ];
  expected.push(
    /bridge_channels: is required/,
    /DATABASE-URI.*required|\[database\] uri.*required/,
    /\[upstream.x\] uri/,
    /LOG-LEVEL/,
  );
  for (const one of expected) {
    assert.ok(problems.some((problem) => one.test(problem)), `${one} in\n${problems.join("\n")}`);
  }
});

test("nothing configured: both ways are told", () => {
  for (const problems of [problemsOf({}), problemsOf({}, "; nothing"), problemsOf({ "PGPROXY_LOG-LEVEL": "debug" })]) {
    assert.equal(problems.length, 1);
    assert.match(problems[0]!, /PGPROXY_LOCAL-POSTGRESQL_URI.*config\.ini.*pg-event-proxy config --example/);
  }
});

const HIDDEN = "hunter2";
const URIS_WITH_SECRETS = [
  `amqp://u:${HIDDEN}@h`,
  `mysql://u:${HIDDEN}@h`,
  `amqp://u:${HIDDEN}/x@h`,
  `amqp://u:x/${HIDDEN}@h`,
  `amqp://u:x#${HIDDEN}@h`,
  `amqp://u:x?${HIDDEN}@h`,
  `amqp://u:x@${HIDDEN}@h`,
  `amqp://u:100%${HIDDEN}@h:x`,
  `amqp:/u:${HIDDEN}@h`,
  `u:${HIDDEN}@h`,
  `mqtt://:${HIDDEN}@h:`,
  `postgresql://h/db?user=u&password=${HIDDEN}&x=y`,
  `postgresql://u:x@h/db?sslpassword=${HIDDEN}`,
  `postgres//h/db?password=${HIDDEN}`,
  `host=h password='x ${HIDDEN}'`,
];
for (const uri of URIS_WITH_SECRETS) {
  test(`the password is not shown: ${uri}`, () => {
    assert.ok(!maskUri(uri).includes(HIDDEN), maskUri(uri));
    for (const key of ["PGPROXY_LOCAL-POSTGRESQL_URI", `${CONFIG}URI`]) {
      const text = problemsOf({ ...AMQP, [key]: uri, "PGPROXY_LOG-X": "1" }).join("\n");
      assert.ok(text !== "" && !text.includes(HIDDEN), text);
    }
  });
}

test("URIs without a password are shown as they are", () => {
  for (const uri of ["amqp://rabbitmq//", "redis://redis:6379", "postgres://u@h1:1,h2:2/db?x=y", "mqtt://u@h:1"]) {
    assert.equal(maskUri(uri), uri);
  }
  assert.equal(maskUri("postgres://u:p@h1:1,h2:2/db"), "postgres://u:***@h1:1,h2:2/db");
});

test("values of unknown keys are not shown", () => {
  const text = problemsOf({ ...MQTT, "PGPROXY_UPSTREAM-M-PASSWRD": HIDDEN }, `[upstream.m]\npasword=${HIDDEN}`).join(
    "\n",
  );
  assert.match(text, /PASSWORD\?/);
  assert.ok(!text.includes(HIDDEN));
});

test("any text in any place loads or is refused with lines", () => {
  const names = ["database", "log", "local", "local.upstream_config", "upstream.x", "__proto__", "a.b.c"];
  const word = fc.oneof(
    fc.constantFrom(
      ...KEYS.map(({ name }) => name),
      ...KIND_NAMES,
      ...names,
      "constructor",
      "uri_file",
      "{",
      "\0",
      "->",
    ),
    fc.string({ unit: "binary", maxLength: 12 }),
  );
  const line = fc.oneof(
    word.map((name) => `[${name}]`),
    fc.tuple(word, word).map(([key, value]) => `${key}=${value}`),
    word,
  );
  const env = fc.dictionary(fc.tuple(word, word).map((parts) => `PGPROXY_${parts.join("-")}`), word, { maxKeys: 4 });
  fc.assert(
    fc.property(fc.array(line, { maxLength: 12 }), env, (lines, variables) => {
      for (const problem of problemsOf(variables, lines.join("\n"))) assert.ok(problem.length > 0);
    }),
    { numRuns: 1000 },
  );
});

test("the table is sound", () => {
  const kind = KEYS.find(({ section, name }) => section === "upstream" && name === "kind");
  assert.deepEqual(kind !== undefined && "allowed" in kind && kind.allowed, KIND_NAMES);
  for (const type of ["bridge", "upstream_config", "database", "upstream", "log"] as const) {
    const names = keysOf(type).map(({ name }) => name);
    assert.deepEqual(names, [...new Set(names)]);
    // A variable is cut at its hyphens and double underscores: a key must hold neither.
    for (const name of names) assert.match(name, /^[a-z0-9]+(_[a-z0-9]+)*$/);
  }
});
