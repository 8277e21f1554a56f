/**
 * Every configuration key and every kind of upstream, in one table. Loading, validation, `--help`, the printed example
 * and the reference in the README all come from it: a new key is one row here, one field in config.ts and one line
 * where load.ts builds that field; a new kind is one entry of KINDS and its rows.
 */

import type { Headers } from "../core/message_headers.ts";
import type { Binding, ListenAddress, SlotConfig, UpstreamKind } from "./config.ts";

export interface KindSpec {
  /** URI schemes without TLS; none at all where the kind takes no `uri`. */
  readonly schemes: readonly string[];
  readonly tlsSchemes: readonly string[];
  /** The types that may stand before the `:` of a binding's target. */
  readonly targetTypes: readonly string[];
  readonly exampleUri: string | undefined;
  readonly exampleBindings: string;
  readonly text: string;
}

export const KINDS: Readonly<Record<UpstreamKind, KindSpec>> = {
  amqp: {
    schemes: ["amqp"],
    tlsSchemes: ["amqps"],
    targetTypes: ["exchange", "queue"],
    exampleUri: "amqp://user:pass@rabbitmq//",
    exampleBindings: "events->exchange:amq.topic, wal2json->exchange:amq.topic",
    text: "AMQP 0.9.1 (RabbitMQ)",
  },
  mqtt: {
    schemes: ["mqtt", "tcp", "ws"],
    tlsSchemes: ["mqtts", "ssl", "wss"],
    targetTypes: ["topic"],
    exampleUri: "tcp://mosquitto:1883",
    exampleBindings: "events->topic:events, wal2json->topic:wal",
    text: "MQTT 3.1.1 or 5 (Mosquitto, HiveMQ, RabbitMQ, AWS IoT, …)",
  },
  redis: {
    schemes: ["redis"],
    tlsSchemes: ["rediss"],
    targetTypes: ["topic", "stream"],
    exampleUri: "redis://redis:6379",
    exampleBindings: "events->topic:events, wal2json->stream:wal",
    text: "Redis: `topic` is pub/sub, `stream` is stored",
  },
  awssns: {
    schemes: ["aws"],
    tlsSchemes: [],
    targetTypes: ["topic"],
    exampleUri: "aws://eu-west-2",
    exampleBindings: "events->topic:arn:aws:sns:eu-west-2:123456789012:events",
    text: "Amazon SNS, standard and FIFO topics",
  },
  awssqs: {
    schemes: ["aws"],
    tlsSchemes: [],
    targetTypes: ["queue"],
    exampleUri: "aws://eu-west-2",
    exampleBindings: "events->queue:events, wal2json->queue:changes.fifo",
    text: "Amazon SQS, standard and FIFO queues",
  },
  awslambda: {
    schemes: ["aws"],
    tlsSchemes: [],
    targetTypes: ["function"],
    exampleUri: "aws://eu-west-2",
    exampleBindings: "events->function:on-event",
    text: "AWS Lambda functions",
  },
  stdout: {
    schemes: [],
    tlsSchemes: [],
    targetTypes: ["topic"],
    exampleUri: undefined,
    exampleBindings: "events->topic:events, wal2json->topic:wal",
    text: "one JSON line per event on standard output",
  },
  webhook: {
    schemes: [],
    tlsSchemes: [],
    targetTypes: ["url"],
    exampleUri: undefined,
    exampleBindings: "events->url:https://example.com/events, wal2json->url:https://example.com/wal/{table}",
    text: "HTTP `POST` to the targets, `http://` or `https://`",
  },
};

export const KIND_NAMES = Object.keys(KINDS) as readonly UpstreamKind[];

/** How the text of a key is read. `text` is taken as it stands; the others lose the blanks around them. */
export type KeyType =
  | "text"
  | "path"
  | "broker_uri"
  | "postgresql_uri"
  | "slot_name"
  | "wal2json_params"
  | "bridge_channels"
  | "boolean"
  | "integer"
  | "bytes"
  | "choice"
  | "uri_reference"
  | "webhook_secret"
  | "header_list"
  | "listen";

interface KeyCommon {
  readonly name: string;
  readonly type: KeyType;
  /** One line for `--help`, the example and the README; code stands in backticks. */
  readonly text: string;
  /** As it would be written in the ini file. */
  readonly default?: string;
  /** What stands in place of a default in the documentation, where the default is no fixed value. */
  readonly defaultText?: string;
  readonly required?: true;
  /** Never shown: not in errors, not by the command `config`. */
  readonly secret?: true;
  /** A value for the example file, where there is no default. */
  readonly example?: string;
  readonly min?: number;
  readonly max?: number;
  readonly unit?: string;
  readonly allowed?: readonly (string | number)[];
}

export interface DatabaseKey extends KeyCommon {
  readonly section: "database";
  /** The name in the section of a bridge (first form), where it differs. */
  readonly bridgeName?: string;
  /** May also stand in `[upstream.NAME]` (second form), and then wins there. */
  readonly perUpstream?: true;
}

export interface UpstreamKey extends KeyCommon {
  readonly section: "upstream";
  /** The name in the section of a bridge (first form) for the one key that stands there and not in `upstream_config`. */
  readonly bridgeName?: string;
  /** The kinds that it applies to; all of them where this is absent. */
  readonly kinds?: readonly UpstreamKind[];
  readonly tls?: true;
}

export interface LogKey extends KeyCommon {
  readonly section: "log";
}

export interface HttpKey extends KeyCommon {
  readonly section: "http";
}

export type KeySpec = DatabaseKey | UpstreamKey | HttpKey | LogKey;

const NETWORK_KINDS = ["amqp", "mqtt", "redis"] as const;
/** Those whose TLS the `*_file` keys are for. */
const TLS_KINDS = ["amqp", "mqtt", "redis", "webhook"] as const;
const AWS_KINDS = ["awssns", "awssqs", "awslambda"] as const;

export const KEYS = [
  {
    section: "database",
    name: "uri",
    bridgeName: "postgresql_uri",
    type: "postgresql_uri",
    required: true,
    example: "postgresql://username:password@domain.tld:5432/database",
    text: "The database: `postgresql://` or `postgres://`; several hosts and the parameters of libpq are understood",
  },
  {
    section: "database",
    name: "replication_slot",
    type: "slot_name",
    default: "pg_event_proxy",
    perUpstream: true,
    text: "Logical replication slot for the WAL; created if it is missing",
  },
  {
    section: "database",
    name: "wal2json_params",
    type: "wal2json_params",
    default: `"format-version" '2' , "include-types" '0'`,
    perUpstream: true,
    text: 'Options of the output plugin; `\\"` is read as `"`',
  },
  {
    section: "database",
    name: "slot_failover",
    type: "boolean",
    default: "false",
    text: "Create the slot so that it is synchronised to standbys (PostgreSQL 17 and later)",
  },
  {
    section: "database",
    name: "notify_buffer_bytes",
    type: "bytes",
    min: 1024,
    max: 2 ** 40,
    unit: "bytes",
    default: "64MiB",
    text: "Notifications held in memory while an upstream is away; the newest beyond are dropped, counted and logged",
  },
  {
    section: "database",
    name: "outbox",
    type: "boolean",
    default: "true",
    text: "Deliver the durable messages that `events.send_message` stores; the command `sql` installs it",
  },
  {
    section: "database",
    name: "shutdown_timeout",
    type: "integer",
    min: 0,
    max: 86_400,
    unit: "seconds",
    default: "10",
    text: "How long a stop waits for acknowledgements",
  },
  {
    section: "upstream",
    name: "kind",
    bridgeName: "upstream",
    type: "choice",
    allowed: ["amqp", "mqtt", "redis", "awssns", "awssqs", "awslambda", "stdout", "webhook"],
    required: true,
    example: "amqp",
    text: "Where the events go",
  },
  {
    section: "upstream",
    name: "uri",
    type: "broker_uri",
    kinds: [...NETWORK_KINDS, ...AWS_KINDS],
    required: true,
    text: "Address of the broker; special characters in user and password are percent-encoded. AWS: `aws://REGION`",
  },
  {
    section: "upstream",
    name: "bridge_channels",
    type: "bridge_channels",
    required: true,
    text:
      "Bindings `pgchannel->type:target`, separated by commas; the channel `wal2json` means the WAL; a target may hold " +
      "`{schema}`, `{table}`, `{action}` (of the WAL), `{key}`, `{channel}`",
  },
  {
    section: "upstream",
    name: "on_reject",
    type: "choice",
    allowed: ["stop", "drop"],
    default: "stop",
    text: "An event that the upstream refuses for good: `stop` holds it and tries again, `drop` counts and logs it",
  },
  {
    section: "upstream",
    name: "format",
    type: "choice",
    allowed: ["raw", "cloudevents"],
    default: "raw",
    text:
      "`raw` sends messages as PostgreSQL has them, `cloudevents` CloudEvents 1.0: the attributes as headers where there " +
      "are any, else all in JSON",
  },
  {
    section: "upstream",
    name: "cloudevents_source",
    type: "uri_reference",
    defaultText: "the database's URI",
    example: "/databases/shop",
    text: "With `format=cloudevents`: their attribute `source`, within which ids are unique",
  },
  {
    section: "upstream",
    name: "max_in_flight",
    type: "integer",
    min: 1,
    max: 1_000_000,
    unit: "events",
    defaultText: "per kind",
    example: "1000",
    text: "Events sent and not yet acknowledged",
  },
  {
    section: "upstream",
    name: "max_in_flight_bytes",
    type: "bytes",
    min: 1,
    max: 2 ** 40,
    unit: "bytes",
    default: "32MiB",
    text: "The same in bytes of payload, as `64MiB`, `64MB` or `65536`; a larger event passes alone",
  },
  {
    section: "upstream",
    name: "delivery_mode",
    type: "choice",
    allowed: [1, 2],
    default: "2",
    kinds: ["amqp"],
    text: "`1` is non-persistent, `2` persistent",
  },
  {
    section: "upstream",
    name: "declare",
    type: "boolean",
    default: "false",
    kinds: ["amqp"],
    text: "Create missing exchanges (topic) and queues, durable",
  },
  {
    section: "upstream",
    name: "headers",
    type: "boolean",
    default: "false",
    kinds: ["amqp"],
    text: "Notifications may begin with headers of the message: `key|Name: value; Other: value|message`",
  },
  {
    section: "upstream",
    name: "maxlen",
    type: "integer",
    min: 1,
    max: 1_000_000_000_000,
    unit: "entries",
    defaultText: "unlimited",
    example: "1000000",
    kinds: ["redis"],
    text: "About how many entries a `stream` keeps (`MAXLEN ~`); older ones are removed, read or not",
  },
  {
    section: "upstream",
    name: "secret",
    type: "webhook_secret",
    kinds: ["webhook"],
    secret: true,
    example: "whsec_cmVwbGFjZSB0aGlzIGV4YW1wbGUgYnkgeW91ciBvd24=",
    text: "Signs requests as Standard Webhooks: `whsec_` and 24 to 64 bytes in base64; without it they are not signed",
  },
  {
    section: "upstream",
    name: "previous_secret",
    type: "webhook_secret",
    kinds: ["webhook"],
    secret: true,
    example: "whsec_cmVwbGFjZSB0aGlzIGV4YW1wbGUgYnkgeW91ciBvd24=",
    text: "A second secret during a rotation: requests then carry both signatures",
  },
  {
    section: "upstream",
    name: "token",
    type: "text",
    kinds: ["webhook"],
    secret: true,
    example: "token",
    text: "Sent as `Authorization: Bearer`",
  },
  {
    section: "upstream",
    name: "extra_headers",
    type: "header_list",
    kinds: ["webhook"],
    secret: true,
    example: "X-Api-Key: key; X-Other: value",
    text: "Further headers of every request, as `Name: value; Other: value`; shown nowhere",
  },
  {
    section: "upstream",
    name: "batch",
    type: "integer",
    min: 1,
    max: 10_000,
    unit: "events",
    default: "1",
    kinds: ["webhook"],
    text: "Up to so many events in a request; with more than 1 the body is a JSON array",
  },
  {
    section: "upstream",
    name: "concurrency",
    type: "integer",
    min: 1,
    max: 256,
    unit: "requests",
    default: "1",
    kinds: ["webhook", ...AWS_KINDS],
    text: "Requests at a time; with more than 1 order is kept per table or routing key, not over all",
  },
  {
    section: "upstream",
    name: "request_timeout",
    type: "integer",
    min: 1,
    max: 3600,
    unit: "seconds",
    default: "30",
    kinds: ["webhook"],
    text: "How long a request may take before it is sent again",
  },
  {
    section: "upstream",
    name: "allow_private_addresses",
    type: "boolean",
    default: "false",
    kinds: ["webhook"],
    text: "Also connect to loopback, private, link-local and other addresses that are not public",
  },
  {
    section: "upstream",
    name: "username",
    type: "text",
    kinds: ["mqtt"],
    example: "username",
    text: "User name for the broker, unless the URI holds it",
  },
  {
    section: "upstream",
    name: "password",
    type: "text",
    kinds: ["mqtt"],
    secret: true,
    example: "password",
    text: "Password for the broker, unless the URI holds it",
  },
  {
    section: "upstream",
    name: "client_id",
    type: "text",
    kinds: ["mqtt"],
    defaultText: "random",
    example: "pg-event-proxy",
    text: "MQTT client identifier; two clients of one name push each other out",
  },
  {
    section: "upstream",
    name: "qos",
    type: "choice",
    allowed: [0, 1, 2],
    default: "1",
    kinds: ["mqtt"],
    text: "Quality of service; `0` is not acknowledged and may lose events",
  },
  {
    section: "upstream",
    name: "retain",
    type: "boolean",
    default: "false",
    kinds: ["mqtt"],
    text: "Publish as retained messages",
  },
  {
    section: "upstream",
    name: "topic_separator",
    type: "text",
    default: ".",
    kinds: ["mqtt"],
    text: "Stands between the target and the routing key of a notification",
  },
  {
    section: "upstream",
    name: "protocol_version",
    type: "choice",
    allowed: [4, 5],
    default: "4",
    kinds: ["mqtt"],
    text: "`4` is MQTT 3.1.1, `5` is MQTT 5",
  },
  {
    section: "upstream",
    name: "invocation_type",
    type: "choice",
    allowed: ["Event", "RequestResponse"],
    default: "Event",
    kinds: ["awslambda"],
    text: "`Event` hands the event to Lambda's own queue, `RequestResponse` waits for the function",
  },
  {
    section: "upstream",
    name: "ca_file",
    type: "path",
    kinds: TLS_KINDS,
    tls: true,
    defaultText: "system",
    example: "/etc/ssl/certs/broker-ca.pem",
    text: "Certificate authorities that the broker's certificate is checked against (PEM)",
  },
  {
    section: "upstream",
    name: "cert_file",
    type: "path",
    kinds: TLS_KINDS,
    tls: true,
    example: "/etc/ssl/certs/client.pem",
    text: "Client certificate (PEM); together with `key_file`",
  },
  {
    section: "upstream",
    name: "key_file",
    type: "path",
    kinds: TLS_KINDS,
    tls: true,
    example: "/etc/ssl/private/client.key",
    text: "Key of the client certificate (PEM, without a passphrase); together with `cert_file`",
  },
  {
    section: "upstream",
    name: "insecure_skip_verify",
    type: "boolean",
    default: "false",
    kinds: TLS_KINDS,
    tls: true,
    text: "Accept any certificate: protects against nobody on the way, for tests only",
  },
  {
    section: "http",
    name: "listen",
    type: "listen",
    defaultText: "off",
    example: "127.0.0.1:8080",
    text: "Where to answer with health, metrics and the status page; a port alone means 127.0.0.1",
  },
  {
    section: "http",
    name: "token",
    type: "text",
    secret: true,
    example: "a-long-random-text",
    text: "What requests must show as `Authorization: Bearer …`, but for `/health/live` and `/health/ready`",
  },
  {
    section: "http",
    name: "show_payloads",
    type: "boolean",
    default: "false",
    text: "Show routing key and payload of the last event of each upstream on the status page",
  },
  {
    section: "log",
    name: "level",
    type: "choice",
    allowed: ["debug", "info", "warning", "error"],
    default: "info",
    text: "The least important lines that are written",
  },
  {
    section: "log",
    name: "format",
    type: "choice",
    allowed: ["auto", "pretty", "json"],
    default: "auto",
    text: "`auto` is `pretty` on a terminal and `json` otherwise",
  },
] as const satisfies readonly KeySpec[];

/** The type of every value, derived from the table, so that a row and the code that uses it cannot drift apart. */
interface ValueTypes {
  text: string;
  path: string;
  broker_uri: string;
  postgresql_uri: string;
  slot_name: string;
  wal2json_params: SlotConfig["wal2jsonParams"];
  bridge_channels: readonly Binding[];
  boolean: boolean;
  integer: number;
  bytes: number;
  choice: string | number;
  uri_reference: string;
  webhook_secret: string;
  header_list: Headers;
  listen: ListenAddress;
}
export type Value = ValueTypes[KeyType];

type Row = (typeof KEYS)[number];
type Present<R extends Row> = R extends { allowed: readonly (infer A)[] } ? A : ValueTypes[R["type"]];
type ValueOf<R extends Row> = R extends { required: true } | { default: string } ? Present<R> : Present<R> | undefined;
type ForKind<R extends Row, K extends UpstreamKind> = R extends { kinds: readonly (infer A)[] }
  ? K extends A ? R : never
  : R;
type Values<R extends Row> = { readonly [N in R["name"]]: ValueOf<Extract<R, { name: N }>> };

export type DatabaseValues = Values<Extract<Row, { section: "database" }>>;
export type UpstreamValues<K extends UpstreamKind> = Values<ForKind<Extract<Row, { section: "upstream" }>, K>>;
export type HttpValues = Values<Extract<Row, { section: "http" }>>;
export type LogValues = Values<Extract<Row, { section: "log" }>>;

/** Section names that are no bridges. */
export const RESERVED_SECTIONS = ["database", "upstream", "http", "log"] as const;

/** The sections of both forms: `[NAME]`, `[NAME.upstream_config]`; `[database]`, `[upstream.NAME]`; `[http]` and `[log]`. */
export type SectionType = "bridge" | "upstream_config" | "database" | "upstream" | "http" | "log";

export interface NamedKey {
  /** As it is written in this type of section. */
  readonly name: string;
  readonly spec: KeySpec;
}

const ROWS: readonly KeySpec[] = KEYS;

function tableOf(type: SectionType): NamedKey[] {
  const table: NamedKey[] = [];
  for (const spec of ROWS) {
    const name = nameIn(type, spec);
    if (name !== undefined) table.push({ name, spec });
  }
  return table;
}

function nameIn(type: SectionType, spec: KeySpec): string | undefined {
  switch (type) {
    case "bridge":
      if (spec.section === "database") return spec.bridgeName ?? spec.name;
      return spec.section === "upstream" ? spec.bridgeName : undefined;
    case "upstream_config":
      return spec.section === "upstream" && spec.bridgeName === undefined ? spec.name : undefined;
    case "upstream":
      return spec.section === "upstream" || (spec.section === "database" && spec.perUpstream) ? spec.name : undefined;
    case "database":
    case "http":
    case "log":
      return spec.section === type ? spec.name : undefined;
  }
}

const TABLES: Readonly<Record<SectionType, readonly NamedKey[]>> = {
  bridge: tableOf("bridge"),
  upstream_config: tableOf("upstream_config"),
  database: tableOf("database"),
  upstream: tableOf("upstream"),
  http: tableOf("http"),
  log: tableOf("log"),
};

/** The keys that may stand in a section of this type, in the order of the table. */
export function keysOf(type: SectionType): readonly NamedKey[] {
  return TABLES[type];
}

export function appliesTo(spec: KeySpec, kind: UpstreamKind): boolean {
  return spec.section !== "upstream" || spec.kinds === undefined || spec.kinds.includes(kind);
}
