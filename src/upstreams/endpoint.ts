/** The address in an upstream's URI, and what a failed connection to it means. */

import { isIP } from "node:net";
import { errorText, OperatorError, PermanentError, TransientError } from "../core/errors.ts";

/** How long an upstream may take to let a session in, from the first packet to the last check, in milliseconds. */
export const CONNECT_TIMEOUT_MS = 10_000;

export interface Endpoint {
  /** In lower case, without the colon: `amqps`. */
  readonly scheme: string;
  /** A name or an address; an IPv6 address without its brackets. */
  readonly host: string;
  readonly port: number;
  /** Undefined if the URI names none; percent-decoded. */
  readonly username: string | undefined;
  readonly password: string | undefined;
  /** As written, still percent-encoded, with its leading slash; empty if there is none. */
  readonly path: string;
  readonly query: URLSearchParams;
  /** `host:port` for messages: holds no secret. */
  readonly text: string;
}

/** What messages say of an endpoint. */
export type Address = Pick<Endpoint, "text">;

/**
 * Reads `scheme://user:password@host:port/path?query` (RFC 3986). `defaultPorts` maps the schemes allowed to their ports.
 * Throws PermanentError, which never shows the URI since it may hold a password.
 */
export function parseEndpoint(uri: string, defaultPorts: Readonly<Record<string, number>>): Endpoint {
  const schemes = Object.keys(defaultPorts).map((scheme) => `${scheme}://`).join(", ");
  let url: URL;
  try {
    url = new URL(uri);
  } catch {
    throw new PermanentError(
      "uri is not a valid URI; write scheme://user:password@host:port/path, with special characters percent-encoded",
    );
  }
  const scheme = url.protocol.slice(0, -1).toLowerCase();
  const defaultPort = Object.hasOwn(defaultPorts, scheme) ? defaultPorts[scheme] : undefined;
  if (defaultPort === undefined) throw new PermanentError(`uri begins with ${scheme}://; write one of ${schemes}`);
  const host = decodePart(url.hostname.replace(/^\[|\]$/g, ""), "host") ?? "localhost";
  const port = url.port === "" ? defaultPort : Number(url.port);
  return {
    scheme,
    host,
    port,
    username: decodePart(url.username, "user name"),
    password: decodePart(url.password, "password"),
    path: url.pathname,
    query: url.searchParams,
    text: `${isIP(host) === 6 ? `[${host}]` : host}:${port}`,
  };
}

function decodePart(text: string, part: string): string | undefined {
  if (text === "") return undefined;
  return percentDecode(text, `the ${part} in uri`);
}

/** Throws PermanentError with `what`, not with the text. */
export function percentDecode(text: string, what: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw new PermanentError(`${what} holds a % that is not followed by two hexadecimal digits; write %25 for %`);
  }
}

/**
 * Codes of Node's TLS errors (nodejs.org/api/tls.html, "X509 certificate error codes"; tls.html "ERR_TLS_*"), and the
 * texts of rustls, which Deno uses.
 */
const CERTIFICATE_CODES =
  /^(CERT_|UNABLE_TO_|SELF_SIGNED_|DEPTH_ZERO_|CRL_|HOSTNAME_MISMATCH|INVALID_CA|INVALID_PURPOSE|ERR_TLS_CERT)/;
const CERTIFICATE_TEXTS = /invalid peer certificate|certificate not valid for name|TLS not authorized/i;
const CLIENT_CERTIFICATE_TEXTS =
  /certificate[ _]?required|alert[^a-z]*(bad[ _]certificate|unknown[ _]ca)|handshake[ _]?failure|received fatal alert/i;
const NOT_TLS_TEXTS = /wrong[ _]version[ _]number|InvalidContentType|packet[ _]length[ _]too[ _]long|corrupt message/i;

/**
 * Turns the fault of a connection attempt into an error for the operator: permanent for certificates, which no retry
 * mends, otherwise transient. `product` is the server's name: `RabbitMQ`. The error itself is not kept as the cause, since
 * some libraries hang the command on it that failed, password included.
 */
export function connectError(product: string, endpoint: Address, error: unknown): OperatorError {
  if (error instanceof OperatorError) return error;
  const text = errorText(error);
  const code = String((error as { code?: unknown } | null)?.code ?? "");
  const what = `cannot connect to ${product} at ${endpoint.text}: ${text}`;
  if (CERTIFICATE_CODES.test(code) || CERTIFICATE_TEXTS.test(text)) {
    return new PermanentError(
      `${what}; its certificate is not trusted for this name: set ca_file to the authority that signed it, and use the ` +
        "host name that it was made for",
    );
  }
  if (CLIENT_CERTIFICATE_TEXTS.test(text)) {
    return new PermanentError(
      `${what}; the server refused the TLS handshake: if it asks for a client certificate, set cert_file and key_file`,
    );
  }
  if (NOT_TLS_TEXTS.test(text)) {
    return new PermanentError(`${what}; that port does not speak TLS: use its TLS port, or a uri without TLS`);
  }
  return new TransientError(what);
}

/** The error for a server that was reached, or not even that, and did not let the session in in time. */
export function connectTimeout(product: string, endpoint: Address): TransientError {
  return new TransientError(
    `cannot connect to ${product} at ${endpoint.text}: no answer within ${CONNECT_TIMEOUT_MS / 1000} s`,
  );
}

/**
 * Runs one attempt to connect. When `signal` aborts or `CONNECT_TIMEOUT_MS` are over, `destroy` is called, which must free
 * what the attempt has opened, at once; the attempt's own outcome is then of no interest.
 */
export async function attemptConnect<T>(
  product: string,
  endpoint: Address,
  signal: AbortSignal,
  attempt: () => Promise<T>,
  destroy: () => void,
): Promise<T> {
  signal.throwIfAborted();
  const { promise: givenUp, reject } = Promise.withResolvers<never>();
  givenUp.catch(() => {});
  const onAbort = () => reject(signal.reason);
  signal.addEventListener("abort", onAbort, { once: true });
  const timer = setTimeout(() => reject(connectTimeout(product, endpoint)), CONNECT_TIMEOUT_MS);
  try {
    return await Promise.race([attempt(), givenUp]);
  } catch (error) {
    destroy();
    if (signal.aborted) throw signal.reason;
    throw connectError(product, endpoint, error);
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", onAbort);
  }
}
