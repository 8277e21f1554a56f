/** The connection to PostgreSQL and what the server is: version, encoding, TLS. */

import type { BridgeConfig, SlotConfig, UpstreamConfig } from "../config/config.ts";
import { errorText } from "../core/errors.ts";
import { WAL_CHANNEL } from "../core/event.ts";
import type { ConnectionParams } from "../postgres/connection_uri.ts";
import { QuerySession } from "../postgres/query_session.ts";
import { encodingFault } from "../postgres/replication.ts";
import { hostText, isUnixSocket } from "../postgres/socket.ts";
import { Findings, type Section } from "./finding.ts";
import { checkChannelNames, checkNotify, checkOutbox } from "./listening.ts";
import { checkReplication } from "./replication.ts";

/** The oldest that has the columns of pg_replication_slots that are read. */
const OLDEST_VERSION = 130000;

/** The server that was found, and what every further look at it needs. */
export interface Server {
  /** For this host, whichever of several it was. */
  readonly params: ConnectionParams;
  readonly session: QuerySession;
  /** `server_version_num`: 150004 is 15.4. */
  readonly version: number;
  readonly encoding: string;
  readonly walLevel: string;
}

export interface DatabaseReport {
  readonly section: Section;
  /** The routing key of an event of the first table whose changes are read; undefined where there is none. */
  readonly walKey: string | undefined;
}

/** Never throws but when `signal` aborts. */
export async function checkDatabase(
  config: BridgeConfig,
  params: ConnectionParams,
  signal: AbortSignal,
): Promise<DatabaseReport> {
  const findings = new Findings();
  const report = (walKey?: string): DatabaseReport => ({
    section: { part: config.name, server: serverText(params), findings: findings.list },
    walKey,
  });
  const slots = slotsOf(config);
  const channels = channelsOf(config);
  const server = await connect(params, findings, signal);
  checkChannelNames(channels, findings);
  if (server === undefined) return report();
  try {
    checkEncoding(server, slots.length > 0, findings);
    const walKey = slots.length === 0 ? undefined : await checkReplication(server, slots, findings, signal);
    if (channels.length > 0) {
      await checkNotify(server, findings, signal);
      if (config.outbox) await checkOutbox(server, findings, signal);
    }
    return report(walKey);
  } catch (error) {
    signal.throwIfAborted();
    findings.failWith("connection", error, "look into the log of the server, and check again");
    return report();
  } finally {
    server.session.close();
  }
}

function serverText(params: ConnectionParams): string {
  const hosts = params.hosts.map(hostText).join(", ");
  return `PostgreSQL at ${hosts}, database "${params.database}", role "${params.user}"`;
}

/** One for each slot that an upstream with a `wal2json` binding names. */
function slotsOf(config: BridgeConfig): SlotConfig[] {
  const readers = config.upstreams.filter((upstream) => channelsOfUpstream(upstream).includes(WAL_CHANNEL));
  return [...new Map(readers.map(({ slot }) => [slot.name, slot])).values()];
}

function channelsOf(config: BridgeConfig): string[] {
  return [...new Set(config.upstreams.flatMap(channelsOfUpstream))].filter((channel) => channel !== WAL_CHANNEL);
}

function channelsOfUpstream({ bindings }: UpstreamConfig): string[] {
  return bindings.map(({ channel }) => channel);
}

async function connect(params: ConnectionParams, findings: Findings, signal: AbortSignal): Promise<Server | undefined> {
  let session: QuerySession;
  try {
    session = await QuerySession.open(params, "the check", signal);
  } catch (error) {
    signal.throwIfAborted();
    const remedy =
      "check host and port in the connection URI, that the server runs, and that no firewall stands between";
    // Of several hosts each tells its own.
    if (params.hosts.length > 1) findings.fail("connection", errorText(error), remedy);
    else findings.failWith("connection", error, remedy);
    return undefined;
  }
  const { tls, channelBound, host } = session.connection;
  const where = params.hosts.length > 1 ? ` with ${session.where}` : "";
  findings.ok(
    "connection",
    isUnixSocket(host)
      ? "by a Unix socket"
      : tls === undefined
      ? `in plain text${where} (sslmode=${params.sslMode})`
      : `${tls}${where}, ${certificateText(params)}${channelBound ? ", channel binding" : ""}`,
  );
  return await look(session, params, findings);
}

function certificateText({ sslMode, sslRootCert }: ConnectionParams): string {
  const isVerified = sslMode.startsWith("verify") || (sslMode === "require" && sslRootCert !== undefined);
  return isVerified ? `certificate verified (sslmode=${sslMode})` : `certificate not verified (sslmode=${sslMode})`;
}

async function look(session: QuerySession, params: ConnectionParams, findings: Findings): Promise<Server> {
  const [row] = await session.query(
    "select current_setting('server_version'), current_setting('server_version_num'), pg_encoding_to_char(encoding), " +
      "pg_is_in_recovery(), current_setting('wal_level') from pg_database where datname = current_database()",
  );
  const [text, version, encoding, isStandby, walLevel] = row ?? [];
  const number = Number(version);
  if (number >= OLDEST_VERSION) findings.ok("server version", text ?? "");
  else findings.fail("server version", text ?? "", "use PostgreSQL 13 or later");
  if (isStandby === "t") {
    findings.fail(
      "server",
      "is a standby: LISTEN and durable messages need the primary",
      "name the primary in the connection URI, or all hosts, and target_session_attrs=read-write",
    );
  }
  return {
    params: { ...params, hosts: [session.connection.host], targetSessionAttrs: "any" },
    session,
    version: number,
    encoding: encoding ?? "UTF8",
    walLevel: walLevel ?? "",
  };
}

function checkEncoding({ encoding }: Server, readsWal: boolean, findings: Findings): void {
  const fault = readsWal ? encodingFault(encoding) : undefined;
  if (fault !== undefined) {
    findings.failWith("encoding", fault, "");
  } else if (encoding === "SQL_ASCII") {
    findings.warn(
      "encoding",
      "SQL_ASCII, which does not say what bytes above 127 mean",
      "see that every application writes UTF-8, or move the data to a database of encoding UTF8",
    );
  } else findings.ok("encoding", encoding === "UTF8" ? encoding : `${encoding}, converted to UTF8`);
}
