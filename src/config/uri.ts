/** What the configuration needs to know of URIs: whether they can be used at all, and how to show them. */

const SCHEME = /^([a-z][a-z0-9+.-]*):\/\//i;
const MASK = "***";

/**
 * The URI with the passwords masked: in the user part, and in query parameters (`password`, `sslpassword`, tokens).
 *
 * Masks too much rather than too little: a password with an unescaped `/`, `?` or `@` makes the URI faulty, and it is
 * then shown in an error. Text that is no URI is shown only where it cannot hold a password.
 */
export function maskUri(text: string): string {
  const scheme = SCHEME.exec(text)?.[0];
  if (scheme === undefined) return /^[\w./-]*$/.test(text) ? text : "(not shown, it may hold a password)";
  const rest = text.slice(scheme.length).replace(
    /([?&][^=&?]*(?:passw|pwd|secret|token)[^=&]*=)[^&]*(?:&(?![\w.-]+=)[^&]*)*/gi,
    `$1${MASK}`,
  );
  const at = rest.lastIndexOf("@");
  const colon = rest.indexOf(":");
  if (colon < 0 || colon > at) return scheme + rest;
  return `${scheme}${rest.slice(0, colon + 1)}${MASK}${rest.slice(at)}`;
}

export function schemeOf(text: string): string | undefined {
  return SCHEME.exec(text)?.[1]?.toLowerCase();
}

function list(schemes: readonly string[]): string {
  return schemes.map((scheme) => `${scheme}://`).join(", ");
}

/** Undefined where the URI can be used. `schemes` are those of the kind of upstream, with TLS and without. */
export function brokerUriProblem(text: string, schemes: readonly string[]): string | undefined {
  const scheme = schemeOf(text);
  if (scheme === undefined) return `is no URI; wanted one that begins with ${list(schemes)}`;
  if (!schemes.includes(scheme)) return `has the scheme ${scheme}://; allowed: ${list(schemes)}`;
  if (/\s/.test(text)) return "holds a blank; write %20, and comments on a line of their own";
  const remedy = "percent-encode special characters in user and password (/ is %2F, @ is %40, # is %23, % is %25)";
  let uri: URL;
  try {
    uri = new URL(text);
  } catch {
    return `cannot be parsed; wanted ${scheme}://user:password@host:port, ${remedy}`;
  }
  if (uri.hostname === "") return `names no host; wanted ${scheme}://host:port`;
  // What stands after a # would be dropped in silence: the rest of a password, mostly.
  if (uri.hash !== "") return `holds a #; ${remedy}`;
  try {
    [uri.username, uri.password, uri.pathname].forEach(decodeURIComponent);
  } catch {
    return `holds a % that is no percent-encoding; ${remedy}`;
  }
  if (uri.protocol.startsWith("redis") && !/^\/?\d*$/.test(uri.pathname)) {
    return `has the path ${
      JSON.stringify(uri.pathname)
    }; wanted the number of a database, as in ${scheme}://host:6379/0`;
  }
  return undefined;
}

/**
 * Only the scheme is checked here: hosts, parameters and PG* variables are read by the module that connects,
 * src/postgres/connection_uri.ts, since they follow libpq and not the URI standard.
 */
export function postgresqlUriProblem(text: string): string | undefined {
  const scheme = schemeOf(text);
  if (scheme === "postgres" || scheme === "postgresql") return undefined;
  const wanted = "wanted postgresql://user:password@host:port/database";
  return scheme === undefined ? `is no URI; ${wanted}` : `has the scheme ${scheme}://; ${wanted}`;
}

/** `host:port` of every server that a `postgresql://` URI names, well enough to see that two of them share one. */
export function serversOf(text: string): readonly string[] {
  const [path = "", query = ""] = splitOnce(text.replace(SCHEME, ""), "?");
  const [authority] = splitOnce(path, "/");
  const parameters = new URLSearchParams(query);
  const hosts = (parameters.get("host") ?? authority.slice(authority.lastIndexOf("@") + 1)).split(",");
  const ports = parameters.get("port")?.split(",") ?? [];
  return hosts.map((host, index) => {
    // A colon may only stand before a port, or within the brackets of an IPv6 address.
    const match = /^(\[[^\]]*\]|[^:]*)(?::(\d*))?$/.exec(host);
    const port = match?.[2] || ports[index] || ports[0] || "5432";
    return `${(match?.[1] ?? host).toLowerCase()}:${port}`;
  });
}

/** The database without user, password and parameters, and only its first server: what tells it from others. */
export function databaseUri(text: string): string {
  const [server = ""] = serversOf(text);
  const [path = ""] = splitOnce(text.replace(SCHEME, ""), "?");
  const [, database = ""] = splitOnce(path, "/");
  const encoded = (part: string) => part.replace(/[^\w.~%:[\]-]/gu, encodeURIComponent);
  return `postgresql://${encoded(server.toWellFormed())}/${encoded(database.toWellFormed())}`;
}

/** Whether it holds only what a URI may (RFC 3986, section 2), which is what a relative one has to show. */
export function isUriReference(text: string): boolean {
  return /^(?:[\w.~:/?#[\]@!$&'()*+,;=-]|%[0-9a-f]{2})+$/i.test(text);
}

function splitOnce(text: string, separator: string): [string, string?] {
  const at = text.indexOf(separator);
  return at < 0 ? [text] : [text.slice(0, at), text.slice(at + separator.length)];
}
