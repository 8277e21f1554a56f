/** The configuration as the rest of the program sees it, whichever form (section per bridge, or one database with upstreams) it was written in. */

import type { Target } from "../core/upstream.ts";

export interface Config {
  readonly bridges: readonly BridgeConfig[];
  readonly http: HttpConfig;
  readonly log: LogConfig;
}

export type LogLevel = "debug" | "info" | "warning" | "error";
/** `auto` is `pretty` on a terminal and `json` otherwise. */
export type LogFormat = "auto" | "pretty" | "json";

export interface LogConfig {
  readonly level: LogLevel;
  readonly format: LogFormat;
}

/** An address to listen at; port 0 takes a free one. */
export interface ListenAddress {
  readonly host: string;
  readonly port: number;
}

export interface HttpConfig {
  /** Undefined: no server. */
  readonly listen: ListenAddress | undefined;
  /** What a request for anything but the state of health must show; undefined: nothing. */
  readonly token: string | undefined;
  /** Whether the status page shows routing keys and payloads. */
  readonly showPayloads: boolean;
}

/** One database and the upstreams that its events go to. */
export interface BridgeConfig {
  /** The section name of the first form; `database` in the second. */
  readonly name: string;
  /** `postgresql://…` as configured, password included: never to be printed. */
  readonly postgresqlUri: string;
  /** Whether a slot that is created is synchronised to standbys; PostgreSQL 17 and later. */
  readonly slotFailover: boolean;
  /** Bytes of notifications held through an upstream's outage, over all upstreams of the bridge. */
  readonly notifyBufferBytes: number;
  /** Whether the durable messages in `events.events` are delivered. */
  readonly outbox: boolean;
  /** How long stopping waits for acknowledgements. */
  readonly shutdownTimeoutMs: number;
  readonly upstreams: readonly UpstreamConfig[];
}

/** `pgchannel->type:name` */
export interface Binding {
  readonly channel: string;
  readonly target: Target;
}

/** A WAL source: upstreams with equal values share one replication connection. */
export interface SlotConfig {
  readonly name: string;
  /** In the order given, names and values unquoted. */
  readonly wal2jsonParams: ReadonlyArray<readonly [name: string, value: string]>;
}

interface UpstreamCommon {
  /** The section name of the second form (`[upstream.NAME]`); in the first form the bridge's name. */
  readonly name: string;
  readonly bindings: readonly Binding[];
  readonly slot: SlotConfig;
  /** Undefined: the kind's own default. */
  readonly maxInFlight: number | undefined;
  readonly maxInFlightBytes: number;
  readonly onReject: "stop" | "drop";
  /** The attribute `source` of CloudEvents 1.0; undefined: messages are what PostgreSQL sent. */
  readonly cloudEventsSource: string | undefined;
}

export interface TlsConfig {
  readonly caFile: string | undefined;
  readonly certFile: string | undefined;
  readonly keyFile: string | undefined;
  readonly insecureSkipVerify: boolean;
}

export interface AmqpConfig extends UpstreamCommon {
  readonly kind: "amqp";
  readonly uri: string;
  readonly deliveryMode: 1 | 2;
  readonly declare: boolean;
  /** Whether notifications may begin with headers: `key|Name: value; Other: value|message`. */
  readonly headers: boolean;
  readonly tls: TlsConfig;
}

export interface MqttConfig extends UpstreamCommon {
  readonly kind: "mqtt";
  readonly uri: string;
  readonly username: string | undefined;
  readonly password: string | undefined;
  readonly clientId: string | undefined;
  readonly qos: 0 | 1 | 2;
  readonly retain: boolean;
  readonly topicSeparator: string;
  readonly protocolVersion: 4 | 5;
  readonly tls: TlsConfig;
}

export interface RedisConfig extends UpstreamCommon {
  readonly kind: "redis";
  readonly uri: string;
  /** About how many entries a stream keeps; undefined: all. */
  readonly maxlen: number | undefined;
  readonly tls: TlsConfig;
}

export interface StdoutConfig extends UpstreamCommon {
  readonly kind: "stdout";
}

export interface WebhookConfig extends UpstreamCommon {
  readonly kind: "webhook";
  /** `whsec_…`, the new one first during a rotation; none: requests are not signed. */
  readonly secrets: readonly string[];
  /** For `Authorization: Bearer`. */
  readonly token: string | undefined;
  readonly extraHeaders: Readonly<Record<string, string>>;
  /** Events in a request; with more than 1 the body is a JSON array. */
  readonly batch: number;
  /** Requests at a time; with more than 1 the order is kept per routing key. */
  readonly concurrency: number;
  readonly requestTimeoutMs: number;
  readonly allowPrivateAddresses: boolean;
  readonly tls: TlsConfig;
}

interface AwsCommon extends UpstreamCommon {
  readonly uri: string;
  /** Requests at a time for a target; with more than 1 the order is kept per table or routing key. */
  readonly concurrency: number;
}

export interface AwsSnsConfig extends AwsCommon {
  readonly kind: "awssns";
}

export interface AwsSqsConfig extends AwsCommon {
  readonly kind: "awssqs";
}

export interface AwsLambdaConfig extends AwsCommon {
  readonly kind: "awslambda";
  readonly invocationType: "Event" | "RequestResponse";
}

export type UpstreamConfig =
  | AmqpConfig
  | MqttConfig
  | RedisConfig
  | StdoutConfig
  | WebhookConfig
  | AwsSnsConfig
  | AwsSqsConfig
  | AwsLambdaConfig;
export type UpstreamKind = UpstreamConfig["kind"];
