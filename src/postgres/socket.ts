/** Sockets to a PostgreSQL server: TCP or Unix, with TLS by the rules of libpq's `sslmode`. */

import { readFileSync } from "node:fs";
import { connect as connectTcp, isIP, type Socket } from "node:net";
import { connect as connectTls, type ConnectionOptions, rootCertificates, type TLSSocket } from "node:tls";
import { errorText, PermanentError, TransientError } from "../core/errors.ts";
import type { ConnectionParams, Host, SslMode } from "./connection_uri.ts";
import { SSL_REQUEST } from "./protocol.ts";

export type Encryption = "plain" | "tls";

export interface ServerSocket {
  readonly socket: Socket;
  readonly encryption: Encryption;
  /** The server's certificate in DER, where the runtime tells it; undefined without TLS. */
  readonly certificate: Uint8Array | undefined;
  /** What was negotiated, `TLSv1.3 TLS_AES_256_GCM_SHA384`; undefined without TLS. */
  readonly tls: string | undefined;
}

/** The encryptions to try in turn; the second only where the server refused the first. Unix sockets are never encrypted. */
export function encryptionsFor(mode: SslMode, host: Host): readonly Encryption[] {
  if (isUnixSocket(host)) return ["plain"];
  switch (mode) {
    case "disable":
      return ["plain"];
    case "allow":
      return ["plain", "tls"];
    case "prefer":
      return ["tls", "plain"];
    case "require":
    case "verify-ca":
    case "verify-full":
      return ["tls"];
  }
}

/**
 * A paused socket goes on reading until its buffer is full, packet by packet, and then gives out what it read one packet
 * for each time it is resumed: by default 64 KiB, which are some 200 small events that all later ones have to wait behind.
 */
const PROMPT_PAUSE = { highWaterMark: 1 };

export function isUnixSocket(host: Host): boolean {
  return host.host.startsWith("/");
}

export function hostText(host: Host): string {
  return isUnixSocket(host) ? `${host.host}/.s.PGSQL.${host.port}` : `${host.host}:${host.port}`;
}

/**
 * Connects, and negotiates TLS where `encryption` is `tls`. `signal` ends the attempt, also when time is up.
 *
 * Throws TransientError for network faults and for a server without TLS, PermanentError for a certificate that does not
 * satisfy `sslmode`.
 */
export async function openSocket(
  params: ConnectionParams,
  host: Host,
  encryption: Encryption,
  signal: AbortSignal,
): Promise<ServerSocket> {
  const address = isUnixSocket(host)
    ? { path: hostText(host) }
    : { host: host.host, port: host.port, noDelay: true, keepAlive: true, keepAliveInitialDelay: 60_000 };
  const socket = connectTcp({ ...PROMPT_PAUSE, ...address });
  try {
    await opened(socket, "connect", host, signal);
    if (encryption === "plain") return { socket, encryption, certificate: undefined, tls: undefined };
    await requestTls(socket, host, signal);
    const secure = connectTls({ ...tlsOptions(params, host), ...PROMPT_PAUSE, socket });
    try {
      await opened(secure, "secureConnect", host, signal);
    } catch (error) {
      secure.destroy();
      throw asTlsFault(error, params, host);
    }
    return { socket: secure, encryption, certificate: peerCertificate(secure), tls: negotiated(secure) };
  } catch (error) {
    socket.on("error", () => {});
    socket.destroy();
    throw error;
  }
}

/** Waits for `event`; rejects on an error, on an early end, and when `signal` aborts. */
function opened(socket: Socket, event: "connect" | "secureConnect" | "data", host: Host, signal: AbortSignal) {
  return new Promise<Buffer | undefined>((resolve, reject) => {
    const finish = (settle: () => void) => {
      socket.off(event, onEvent);
      socket.off("error", onError);
      socket.off("close", onClose);
      signal.removeEventListener("abort", onAbort);
      settle();
    };
    const fail = (reason: string) =>
      finish(() => reject(new TransientError(`connecting to PostgreSQL at ${hostText(host)} failed: ${reason}`)));
    const onEvent = (data?: Buffer) => finish(() => resolve(data));
    const onError = (error: Error) => {
      if (event === "secureConnect") finish(() => reject(error));
      else fail(errorText(error));
    };
    const onClose = () => fail("the server closed the connection");
    const onAbort = () => fail(signal.reason instanceof Error ? signal.reason.message : "stopped");
    if (signal.aborted) return onAbort();
    socket.once(event, onEvent);
    socket.once("error", onError);
    socket.once("close", onClose);
    signal.addEventListener("abort", onAbort);
  });
}

/**
 * SSLRequest and its answer of one byte. More bytes in the same chunk would be a man in the middle's (CVE-2021-23222).
 */
async function requestTls(socket: Socket, host: Host, signal: AbortSignal): Promise<void> {
  socket.write(SSL_REQUEST);
  const answer = await opened(socket, "data", host, signal);
  socket.pause();
  if (answer?.length === 1 && answer[0] === 0x53) return;
  if (answer?.length === 1 && answer[0] === 0x4e) throw new TlsNotOfferedError(host);
  throw new TransientError(
    `connecting to PostgreSQL at ${hostText(host)} failed: its answer to SSLRequest is malformed`,
  );
}

/** The server has TLS switched off: final for `sslmode=require` and above, a reason to go on in plain text for `prefer`. */
export class TlsNotOfferedError extends PermanentError {
  override name = "TlsNotOfferedError";
  constructor(host: Host) {
    super(
      `connecting to PostgreSQL at ${
        hostText(host)
      } failed: the server does not offer TLS, which sslmode asks for; set ` +
        "ssl = on in postgresql.conf, or sslmode=disable in the connection URI",
    );
  }
}

function tlsOptions(params: ConnectionParams, host: Host): ConnectionOptions {
  const { sslMode: mode, sslRootCert } = params;
  const verify = mode === "verify-ca" || mode === "verify-full" || (mode === "require" && sslRootCert !== undefined);
  if (verify && sslRootCert === undefined) {
    throw new PermanentError(
      `sslmode=${mode} needs the certificate authority of the server: name its file with sslrootcert=… in the connection ` +
        "URI, or sslrootcert=system for the ones built in",
    );
  }
  const options: ConnectionOptions = {
    host: host.host,
    ALPNProtocols: ["postgresql"],
    rejectUnauthorized: verify,
    minVersion: "TLSv1.2",
  };
  if (isIP(host.host) === 0) options.servername = host.host;
  if (verify) options.ca = sslRootCert === "system" ? [...rootCertificates] : readPem("sslrootcert", sslRootCert!);
  if (mode !== "verify-full" && sslRootCert !== "system") options.checkServerIdentity = () => undefined;
  if (params.sslCert !== undefined) {
    options.cert = readPem("sslcert", params.sslCert);
    options.key = readPem("sslkey", params.sslKey ?? params.sslCert);
    if (params.sslPassword !== undefined) options.passphrase = params.sslPassword;
  }
  return options;
}

function readPem(parameter: string, path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    throw new PermanentError(`reading the file of ${parameter} failed: ${errorText(error)}`);
  }
}

const CERTIFICATE_FAULTS = /certificate|self.signed|altname|issuer|CERT_|UNABLE_TO|unknown ?ca|identity/i;

function asTlsFault(error: unknown, params: ConnectionParams, host: Host): Error {
  const text = errorText(error);
  const line = `TLS with PostgreSQL at ${hostText(host)} failed: ${text}`;
  const code = error instanceof Error ? String((error as { code?: unknown }).code ?? "") : "";
  if (!CERTIFICATE_FAULTS.test(`${text} ${code}`)) return new TransientError(line);
  return new PermanentError(
    `${line}; sslmode=${params.sslMode} checks the server's certificate against ${params.sslRootCert ?? "no file"}: ` +
      "check sslrootcert, the host name and sslcert in the connection URI",
  );
}

function peerCertificate(socket: TLSSocket): Uint8Array | undefined {
  const certificate = socket.getPeerCertificate() as { raw?: Uint8Array } | undefined;
  return certificate?.raw;
}

/** Not every runtime tells the cipher. */
function negotiated(socket: TLSSocket): string {
  const cipher = socket.getCipher() as { standardName?: string; name?: string } | undefined;
  return [socket.getProtocol() ?? "TLS", cipher?.standardName ?? cipher?.name ?? ""].join(" ").trim();
}

/** Ends a socket without leaving a listener or a timer. */
export function destroySocket(socket: Socket): void {
  socket.removeAllListeners();
  socket.on("error", () => {});
  socket.destroy();
}
