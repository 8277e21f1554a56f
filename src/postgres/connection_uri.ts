/**
 * PostgreSQL connection URIs with the defaults that libpq gives them: `PG*` variables, password file, socket folder.
 * PostgreSQL documentation, "Connection Strings", "Environment Variables", "The Password File".
 */

import { OperatorError } from "../core/errors.ts";
import { passwordFromFile } from "./password_file.ts";
import type { Host, UriEnvironment } from "./uri_environment.ts";

export type { Host, UriEnvironment };

export type SslMode = "disable" | "allow" | "prefer" | "require" | "verify-ca" | "verify-full";
export type TargetSessionAttrs = "any" | "read-write" | "read-only" | "primary" | "standby" | "prefer-standby";

export interface ConnectionParams {
  readonly hosts: readonly Host[];
  readonly user: string;
  readonly database: string;
  /** For the given host, since the password file tells by host. Undefined: none is known. */
  password(host: Host): string | undefined;
  readonly sslMode: SslMode;
  /** A file, `system`, or undefined for the file that libpq would look for. */
  readonly sslRootCert: string | undefined;
  readonly sslCert: string | undefined;
  readonly sslKey: string | undefined;
  readonly sslPassword: string | undefined;
  readonly channelBinding: "disable" | "prefer" | "require";
  readonly targetSessionAttrs: TargetSessionAttrs;
  /** For each host in turn, in milliseconds; 0 waits as long as the system does. */
  readonly connectTimeoutMs: number;
  /** Command-line options for the session, `-c name=value`. */
  readonly options: string | undefined;
}

/** Parameters of a URI and the environment variable that stands in for each. */
const PARAMETERS: Readonly<Record<string, string | undefined>> = {
  host: "PGHOST",
  port: "PGPORT",
  user: "PGUSER",
  password: "PGPASSWORD",
  dbname: "PGDATABASE",
  passfile: "PGPASSFILE",
  sslmode: "PGSSLMODE",
  sslrootcert: "PGSSLROOTCERT",
  sslcert: "PGSSLCERT",
  sslkey: "PGSSLKEY",
  sslpassword: undefined,
  channel_binding: "PGCHANNELBINDING",
  target_session_attrs: "PGTARGETSESSIONATTRS",
  connect_timeout: "PGCONNECT_TIMEOUT",
  options: "PGOPTIONS",
  gssencmode: "PGGSSENCMODE",
};

const SSL_MODES: readonly SslMode[] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];
const CHANNEL_BINDINGS = ["disable", "prefer", "require"] as const;
const SESSION_ATTRS: readonly TargetSessionAttrs[] = [
  "any",
  "read-write",
  "read-only",
  "primary",
  "standby",
  "prefer-standby",
];

/** Socket folders that packages build libpq with: Debian's first, then the upstream default. */
const SOCKET_FOLDERS = ["/var/run/postgresql", "/tmp"];
const DEFAULT_PORT = 5432;
/** libpq waits for ever by default; a proxy must notice a black hole. */
const DEFAULT_CONNECT_TIMEOUT_S = 10;

/** A fault in the connection URI, in one line and without the password. */
export class ConnectionUriError extends OperatorError {
  override name = "ConnectionUriError";
}

/** Throws ConnectionUriError. */
export function parseConnectionUri(uri: string, outside: UriEnvironment): ConnectionParams {
  const given = splitUri(uri);
  const value = (name: string): string | undefined => {
    const fromUri = given.get(name);
    if (fromUri !== undefined && fromUri !== "") return fromUri;
    const variable = PARAMETERS[name];
    const fromEnv = variable === undefined ? undefined : outside.env[variable];
    return fromEnv === "" ? undefined : fromEnv;
  };
  const hosts = parseHosts(value("host"), value("port"), outside);
  const user = value("user") ?? outside.userName;
  const database = value("dbname") ?? user;
  const password = value("password");
  const passfile = value("passfile") ?? `${outside.homeDir}/.pgpass`;
  const gssencmode = value("gssencmode") ?? "disable";
  if (gssencmode === "require") {
    throw new ConnectionUriError(
      'gssencmode "require" is not possible: GSSAPI encryption is not supported; use sslmode',
    );
  }
  // libpq takes the first host that answers; the proxy needs the primary, where the slot is.
  const standardAttrs = hosts.length > 1 ? "read-write" : "any";
  return {
    hosts,
    user,
    database,
    password: (host) => password ?? passwordFromFile(passfile, host, database, user, outside),
    sslMode: oneOf("sslmode", value("sslmode") ?? "prefer", SSL_MODES),
    sslRootCert: existing(value("sslrootcert"), `${outside.homeDir}/.postgresql/root.crt`, outside),
    sslCert: existing(value("sslcert"), `${outside.homeDir}/.postgresql/postgresql.crt`, outside),
    sslKey: existing(value("sslkey"), `${outside.homeDir}/.postgresql/postgresql.key`, outside),
    sslPassword: value("sslpassword"),
    channelBinding: oneOf("channel_binding", value("channel_binding") ?? "prefer", CHANNEL_BINDINGS),
    targetSessionAttrs: oneOf("target_session_attrs", value("target_session_attrs") ?? standardAttrs, SESSION_ATTRS),
    connectTimeoutMs: 1000 * integer("connect_timeout", value("connect_timeout") ?? String(DEFAULT_CONNECT_TIMEOUT_S)),
    options: value("options"),
  };
}

function existing(given: string | undefined, standard: string, outside: UriEnvironment): string | undefined {
  if (given !== undefined) return given;
  return outside.exists(standard) ? standard : undefined;
}

function splitUri(uri: string): Map<string, string> {
  const match = /^postgres(?:ql)?:\/\/(?:([^@/?]*)@)?([^/?]*)(?:\/([^?]*))?(?:\?(.*))?$/s.exec(uri);
  if (match === null) {
    throw new ConnectionUriError(
      "the connection URI cannot be read: expected postgresql://user:password@host:port/database?parameter=value, with " +
        "the characters @ : / ? # % of a password percent-encoded",
    );
  }
  const [, userInfo, hostList, database, parameters] = match;
  const names = (parameters ?? "").split("&").map((part) => part.split("=", 1)[0]);
  // Behind an unencoded @ / or ? stands the rest of a password, which no error below may show.
  if ([hostList, database, ...names].some((text) => text?.includes("@"))) throw unencodedPassword();
  const mayHoldPassword = userInfo === undefined && hostList!.includes(":") && uri.includes("@");
  const given = new Map<string, string>();
  if (userInfo !== undefined && userInfo !== "") {
    const colon = userInfo.indexOf(":");
    const user = colon === -1 ? userInfo : userInfo.slice(0, colon);
    if (user !== "") given.set("user", decode("the user name", user));
    if (colon !== -1) given.set("password", decode("the password", userInfo.slice(colon + 1)));
  }
  if (hostList !== undefined && hostList !== "") setHosts(given, hostList, mayHoldPassword);
  if (database !== undefined && database !== "") given.set("dbname", decode("the database name", database));
  for (const part of (parameters ?? "").split("&")) if (part !== "") setParameter(given, part, mayHoldPassword);
  return given;
}

function unencodedPassword(): ConnectionUriError {
  return new ConnectionUriError(
    "the connection URI cannot be read: percent-encode the characters @ : / ? # % of user name and password (%40 %3A " +
      "%2F %3F %23 %25)",
  );
}

function setHosts(given: Map<string, string>, hostList: string, mayHoldPassword: boolean): void {
  const hosts: string[] = [];
  const ports: string[] = [];
  for (const item of hostList.split(",")) {
    const match = /^(\[[^\]]*\]|[^:[]*)(?::(.*))?$/s.exec(item);
    if (mayHoldPassword && (match === null || /\D/.test(match[2] ?? ""))) throw unencodedPassword();
    if (match === null) {
      throw new ConnectionUriError(
        `the host "${item}" of the connection URI cannot be read: expected host or host:port`,
      );
    }
    hosts.push(decode("the host", match[1]!.replace(/^\[|\]$/g, "")));
    ports.push(match[2] ?? "");
  }
  if (hosts.some((host) => host !== "")) given.set("host", hosts.join(","));
  if (ports.some((port) => port !== "")) given.set("port", ports.join(","));
}

function setParameter(given: Map<string, string>, part: string, mayHoldPassword: boolean): void {
  const equals = part.indexOf("=");
  const name = decode("a parameter", equals === -1 ? part : part.slice(0, equals));
  if (name === "application_name") {
    throw new ConnectionUriError(
      'the parameter "application_name" of the connection URI is fixed to pg-event-proxy, which the SQL helpers look ' +
        "for: remove it",
    );
  }
  if (!Object.hasOwn(PARAMETERS, name)) {
    if (mayHoldPassword) throw unencodedPassword();
    throw new ConnectionUriError(
      `the parameter "${name}" of the connection URI is not known; known are ${Object.keys(PARAMETERS).join(", ")}`,
    );
  }
  if (equals === -1) throw new ConnectionUriError(`the parameter "${name}" of the connection URI has no value`);
  given.set(name, decode(`the parameter ${name}`, part.slice(equals + 1)));
}

function decode(what: string, text: string): string {
  let decoded: string;
  try {
    decoded = decodeURIComponent(text);
  } catch {
    throw new ConnectionUriError(
      `${what} in the connection URI holds a "%" that begins no percent-encoded character: write it as %25`,
    );
  }
  // The startup message ends each value with a zero byte: what follows one would be read as the next parameter.
  if (decoded.includes("\0")) throw new ConnectionUriError(`${what} in the connection URI holds %00: remove it`);
  return decoded;
}

function parseHosts(
  hosts: string | undefined,
  ports: string | undefined,
  outside: UriEnvironment,
): Host[] {
  const names = hosts?.split(",") ?? [defaultHost(outside)];
  const numbers = ports?.split(",") ?? [];
  if (numbers.length > 1 && numbers.length !== names.length) {
    throw new ConnectionUriError(
      `the connection names ${names.length} hosts and ${numbers.length} ports: give one port, or one for each host`,
    );
  }
  return names.map((name, i) => {
    const port = numbers.length === 1 ? numbers[0]! : numbers[i] ?? "";
    return { host: name === "" ? defaultHost(outside) : name, port: portNumber(port) };
  });
}

function defaultHost(outside: UriEnvironment): string {
  return SOCKET_FOLDERS.find((folder) => outside.exists(folder)) ?? "localhost";
}

function portNumber(text: string): number {
  if (text === "") return DEFAULT_PORT;
  const port = integer("port", text);
  if (port < 1 || port > 65535) {
    throw new ConnectionUriError(`the port "${text}" of the connection is out of range: 1 to 65535 are possible`);
  }
  return port;
}

function integer(name: string, text: string): number {
  if (!/^\s*\d{1,9}\s*$/.test(text)) {
    throw new ConnectionUriError(`${name} "${text}" of the connection is not a whole number`);
  }
  return Number(text);
}

function oneOf<T extends string>(name: string, text: string, allowed: readonly T[]): T {
  const found = allowed.find((value) => value === text);
  if (found === undefined) {
    throw new ConnectionUriError(
      `${name} "${text}" of the connection is not possible; allowed are ${allowed.join(", ")}`,
    );
  }
  return found;
}
