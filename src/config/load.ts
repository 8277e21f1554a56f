/** Reads the whole configuration: the ini file and the environment, in both forms, into one typed Config. */

import { ConfigError } from "../core/errors.ts";
import type {
  BridgeConfig,
  Config,
  HttpConfig,
  SlotConfig,
  TlsConfig,
  UpstreamConfig,
  UpstreamKind,
} from "./config.ts";
import type { DatabaseValues, HttpValues, LogValues, SectionType, UpstreamValues, Value } from "./keys.ts";
import { sectionPath } from "./names.ts";
import { nearest } from "./nearest.ts";
import { asKind, readSection, type SectionOrigins, type SectionValues } from "./section_values.ts";
import { collectSections, type Environment, type ReadFile, type Section } from "./sections.ts";
import { databaseUri } from "./uri.ts";
import { checkSlots, checkUpstream, type SlotUse } from "./validate.ts";

export interface LoadOptions {
  /** Path of the ini file; called in errors as it stands here. */
  readonly file?: string | undefined;
  readonly env: Environment;
  readonly readFile: ReadFile;
}

export interface LoadedConfig {
  readonly config: Config;
  /** Every effective value with its origin, section by section. */
  readonly origins: readonly SectionOrigins[];
}

const NOTHING_CONFIGURED = "nothing is configured: set PGPROXY_LOCAL-POSTGRESQL_URI, PGPROXY_LOCAL-UPSTREAM, " +
  "PGPROXY_LOCAL-UPSTREAM_CONFIG-URI and PGPROXY_LOCAL-UPSTREAM_CONFIG-BRIDGE_CHANNELS in the environment " +
  "(__ does for -, as in PGPROXY_LOCAL__UPSTREAM), or name an ini file, as in: pg-event-proxy config.ini; " +
  "to print an example: pg-event-proxy config --example";

/**
 * Loads and checks everything. A variable wins over the file; a name that ends in `_FILE` has its value read from the
 * file that it names. Throws ConfigError with all problems at once, one line each.
 */
export function loadConfig({ file, env, readFile }: LoadOptions): LoadedConfig {
  const problems: string[] = [];
  const sections = collectSections(file, env, readFile, problems);
  const loading: Loading = { sections, readFile, problems, origins: [], slotUses: [] };
  const bridges = [...loadBridges(loading), ...loadDatabase(loading)];
  const http = loadHttp(loading);
  const log = asValues<LogValues>(read(loading, find(loading, "log", "log"), "log", "log").values);
  checkSlots(loading.slotUses, problems);
  if (problems.length === 0 && bridges.length === 0) problems.push(NOTHING_CONFIGURED);
  if (problems.length > 0) {
    // One line each, whatever a name or a value holds.
    throw new ConfigError([...new Set(problems)].map((problem) => problem.replace(/[\r\n\0]+/g, " ")));
  }
  const config: Config = {
    bridges,
    http,
    log: { level: log.level, format: log.format },
  };
  return { config, origins: loading.origins };
}

function loadHttp(loading: Loading): HttpConfig {
  const section = read(loading, find(loading, "http", "http"), "http", "http");
  const { listen, token, show_payloads: showPayloads } = asValues<HttpValues>(section.values);
  // What a client can put into the header: RFC 6750, section 2.1, and every visible character beside.
  if (token !== undefined && !/^[\x21-\x7e]+$/.test(token)) {
    loading.problems.push(
      `${section.label("token")}: the value (secret, not shown) holds a blank or a character beyond ASCII, which no ` +
        "Authorization header can carry; write letters, digits and signs",
    );
  }
  return { listen, token, showPayloads };
}

/** What is being loaded, and what is found on the way. */
interface Loading {
  readonly sections: readonly Section[];
  readonly readFile: ReadFile;
  readonly problems: string[];
  readonly origins: SectionOrigins[];
  readonly slotUses: SlotUse[];
}

function find(loading: Loading, type: SectionType, name: string): Section | undefined {
  return loading.sections.find((section) => section.type === type && section.name === name);
}

/** Reads a section, which may be missing; `sibling` is one whose way of writing names missing keys then follow. */
function read(
  loading: Loading,
  section: Section | undefined,
  type: SectionType,
  name: string,
  options: { sibling?: Section | undefined; kind?: UpstreamKind | undefined } = {},
): SectionValues {
  const result = readSection({ section, type, name, ...options }, loading.problems);
  loading.origins.push(result.origins);
  return result;
}

/** The one place where what the table promises is taken for granted: only complete values get here. */
function asValues<T>(values: ReadonlyMap<string, Value>): T {
  return Object.fromEntries(values) as T;
}

/** First form: a section per bridge, of any name, and `[NAME.upstream_config]`. */
function loadBridges(loading: Loading): BridgeConfig[] {
  const ofForm1 = loading.sections.filter(({ type }) => type === "bridge" || type === "upstream_config");
  const strays = findStrays(loading);
  const bridges: BridgeConfig[] = [];
  for (const name of new Set(ofForm1.map((section) => section.name))) {
    const main = find(loading, "bridge", name);
    const upstream = find(loading, "upstream_config", name) ?? strays.get(name);
    const isStray = main === undefined && upstream !== undefined && [...strays.values()].includes(upstream);
    if (isStray || (isNonsense(main) && isNonsense(upstream))) continue;
    const values = read(loading, main, "bridge", name, { sibling: upstream });
    const kind = asKind(values.values.get("kind"));
    const config = read(loading, upstream, "upstream_config", name, { sibling: main, kind });
    const checked = kind === undefined ? undefined : checkUpstream(kind, config, loading.readFile, loading.problems);
    if (kind === undefined || checked === false || !values.isComplete || !config.isComplete) continue;
    const database = asValues<DatabaseValues>(values.values);
    const built = buildUpstream({ name, database, slot: slotOf(database, {}) }, kind, config.values);
    loading.slotUses.push({
      bridge: name,
      uri: database.uri,
      upstream: built,
      label: values.label("replication_slot"),
    });
    bridges.push(buildBridge(name, database, [built]));
  }
  return bridges;
}

/** Nothing in it is known: that is reported, and what it lacks is not worth a line. */
function isNonsense(section: Section | undefined): boolean {
  return section === undefined || (section.settings.size === 0 && section.misspelt.size > 0);
}

/**
 * Misspelt `[NAME.upstream_config]`, by the name of the bridge that lacks one and is called nearly the same: they are
 * then read as that bridge's, so that their other faults are told as well.
 */
function findStrays(loading: Loading): Map<string, Section> {
  const bridges = loading.sections.filter(({ type }) => type === "bridge").map(({ name }) => name);
  const lonely = bridges.filter((name) => find(loading, "upstream_config", name) === undefined);
  const strays = new Map<string, Section>();
  for (const section of loading.sections) {
    if (section.type !== "upstream_config" || bridges.includes(section.name)) continue;
    const meant = nearest(section.name, lonely);
    if (meant !== undefined && !strays.has(meant)) strays.set(meant, section);
  }
  for (const [meant, { path, name }] of strays) {
    const wanted = sectionPath("upstream_config", meant);
    loading.problems.push(`section ${path}: there is no section ${name} that it belongs to; did you mean ${wanted}?`);
  }
  return strays;
}

/** Second form: `[database]` and any number of `[upstream.NAME]`. */
function loadDatabase(loading: Loading): BridgeConfig[] {
  const section = find(loading, "database", "database");
  const upstreamSections = loading.sections.filter(({ type }) => type === "upstream");
  if (section === undefined && upstreamSections.length === 0) return [];
  const values = read(loading, section, "database", "database", { sibling: upstreamSections[0] });
  if (upstreamSections.length === 0) {
    loading.problems.push(
      "section database: has no upstream; add a section [upstream.NAME], or variables PGPROXY_UPSTREAM-NAME-KIND, …",
    );
  }
  const upstreams: UpstreamConfig[] = [];
  for (const upstream of upstreamSections) {
    if (isNonsense(upstream)) continue;
    const config = read(loading, upstream, "upstream", upstream.name);
    const kind = asKind(config.values.get("kind"));
    const checked = kind === undefined ? undefined : checkUpstream(kind, config, loading.readFile, loading.problems);
    if (kind === undefined || checked === false || !values.isComplete || !config.isComplete) continue;
    const database = asValues<DatabaseValues>(values.values);
    const slot = slotOf(database, asValues<Partial<DatabaseValues>>(config.values));
    const built = buildUpstream({ name: upstream.name, database, slot }, kind, config.values);
    const owner = config.isSet("replication_slot") ? config : values;
    loading.slotUses.push({
      bridge: "database",
      uri: database.uri,
      upstream: built,
      label: owner.label("replication_slot"),
    });
    upstreams.push(built);
  }
  if (upstreams.length === 0 || !values.isComplete) return [];
  return [buildBridge("database", asValues<DatabaseValues>(values.values), upstreams)];
}

function buildBridge(name: string, database: DatabaseValues, upstreams: readonly UpstreamConfig[]): BridgeConfig {
  return {
    name,
    postgresqlUri: database.uri,
    slotFailover: database.slot_failover,
    notifyBufferBytes: database.notify_buffer_bytes,
    outbox: database.outbox,
    shutdownTimeoutMs: database.shutdown_timeout * 1000,
    upstreams,
  };
}

function slotOf(database: DatabaseValues, own: Partial<DatabaseValues>): SlotConfig {
  return {
    name: own.replication_slot ?? database.replication_slot,
    wal2jsonParams: own.wal2json_params ?? database.wal2json_params,
  };
}

/** What an upstream's own section does not tell. */
interface Surroundings {
  readonly name: string;
  readonly database: DatabaseValues;
  readonly slot: SlotConfig;
}

function buildUpstream(
  surroundings: Surroundings,
  kind: UpstreamKind,
  values: ReadonlyMap<string, Value>,
): UpstreamConfig {
  const common = commonOf(surroundings, asValues<UpstreamValues<UpstreamKind>>(values));
  switch (kind) {
    case "amqp": {
      const own = asValues<UpstreamValues<"amqp">>(values);
      return {
        kind,
        ...common,
        uri: own.uri,
        deliveryMode: own.delivery_mode,
        declare: own.declare,
        headers: own.headers,
        tls: tlsOf(own),
      };
    }
    case "mqtt": {
      const own = asValues<UpstreamValues<"mqtt">>(values);
      return {
        kind,
        ...common,
        uri: own.uri,
        username: own.username,
        password: own.password,
        clientId: own.client_id,
        qos: own.qos,
        retain: own.retain,
        topicSeparator: own.topic_separator,
        protocolVersion: own.protocol_version,
        tls: tlsOf(own),
      };
    }
    case "redis": {
      const own = asValues<UpstreamValues<"redis">>(values);
      return { kind, ...common, uri: own.uri, maxlen: own.maxlen, tls: tlsOf(own) };
    }
    case "awssns":
    case "awssqs": {
      const own = asValues<UpstreamValues<"awssqs">>(values);
      return { kind, ...common, uri: own.uri, concurrency: own.concurrency };
    }
    case "awslambda": {
      const own = asValues<UpstreamValues<"awslambda">>(values);
      return { kind, ...common, uri: own.uri, concurrency: own.concurrency, invocationType: own.invocation_type };
    }
    case "stdout":
      return { kind, ...common };
    case "webhook": {
      const own = asValues<UpstreamValues<"webhook">>(values);
      return {
        kind,
        ...common,
        secrets: [own.secret, own.previous_secret].filter((secret) => secret !== undefined),
        token: own.token,
        extraHeaders: own.extra_headers ?? {},
        batch: own.batch,
        concurrency: own.concurrency,
        requestTimeoutMs: own.request_timeout * 1000,
        allowPrivateAddresses: own.allow_private_addresses,
        tls: tlsOf(own),
      };
    }
  }
}

function commonOf({ name, database, slot }: Surroundings, values: UpstreamValues<UpstreamKind>) {
  const source = values.cloudevents_source ?? databaseUri(database.uri);
  return {
    name,
    bindings: values.bridge_channels,
    slot,
    maxInFlight: values.max_in_flight,
    maxInFlightBytes: values.max_in_flight_bytes,
    onReject: values.on_reject,
    cloudEventsSource: values.format === "cloudevents" ? source : undefined,
  };
}

type TlsValues = Pick<UpstreamValues<"amqp">, "ca_file" | "cert_file" | "key_file" | "insecure_skip_verify">;

function tlsOf(values: TlsValues): TlsConfig {
  return {
    caFile: values.ca_file,
    certFile: values.cert_file,
    keyFile: values.key_file,
    insecureSkipVerify: values.insecure_skip_verify,
  };
}
