/** Which host of several, and with or without TLS: the order of attempts that libpq makes. */

import { errorText, PermanentError, TransientError } from "../core/errors.ts";
import type { ConnectionParams, Host, TargetSessionAttrs } from "./connection_uri.ts";
import { explain, ServerError, type SessionName } from "./server_error.ts";
import { type Encryption, encryptionsFor, hostText, TlsNotOfferedError } from "./socket.ts";

export interface SessionState {
  readonly inRecovery: boolean;
  readonly readOnly: boolean;
}

/** How one kind of session is made and looked at. */
export interface SessionMaker<T> {
  /** Opens a socket and logs in. Throws ServerError for what the server says, other errors for the rest. */
  open(host: Host, encryption: Encryption, signal: AbortSignal): Promise<T>;
  state(session: T): Promise<SessionState>;
  close(session: T): void;
}

/**
 * Logs in to the first host that takes us and satisfies `target_session_attrs`. `action` begins the error text.
 *
 * Throws PermanentError with a remedy where retrying is of no use, otherwise TransientError.
 */
export async function connectToAny<T>(
  params: ConnectionParams,
  action: string,
  maker: SessionMaker<T>,
  signal: AbortSignal,
): Promise<T> {
  const faults: Error[] = [];
  for (const wanted of passes(params.targetSessionAttrs)) {
    for (const host of params.hosts) {
      try {
        const session = await connectToHost(params, host, maker, signal);
        if (await satisfiesInTime(session, wanted, maker, params.connectTimeoutMs, signal)) return session;
        maker.close(session);
        faults.push(
          new TransientError(`PostgreSQL at ${hostText(host)} is not what target_session_attrs=${wanted} asks for`),
        );
      } catch (error) {
        if (signal.aborted) throw error;
        const fault = error instanceof ServerError ? explain(error, action, sessionName(params, host)) : asError(error);
        if (error instanceof ServerError && endsSearch(error)) throw fault;
        faults.push(fault);
      }
    }
  }
  if (faults.length === 1) throw faults[0]!;
  const text = [...new Set(faults.map(errorText))].join("; ");
  throw faults.every((fault) => fault instanceof PermanentError) ? new PermanentError(text) : new TransientError(text);
}

export function sessionName(params: ConnectionParams, host: Host): SessionName {
  return { user: params.user, database: params.database, where: hostText(host) };
}

/** libpq does not try further hosts after a failed login; a server that is starting or full is passed over. */
function endsSearch(error: ServerError): boolean {
  return error.code.startsWith("28") || error.code === "3D000" || error.code === "42501";
}

async function connectToHost<T>(
  params: ConnectionParams,
  host: Host,
  maker: SessionMaker<T>,
  signal: AbortSignal,
): Promise<T> {
  const encryptions = encryptionsFor(params.sslMode, host);
  for (const [i, encryption] of encryptions.entries()) {
    const attempt = withTimeout(params.connectTimeoutMs, signal);
    try {
      return await maker.open(host, encryption, attempt.signal);
    } catch (error) {
      const last = i === encryptions.length - 1;
      if (last || signal.aborted || !worthTheOther(error, encryption)) throw error;
    } finally {
      attempt.clear();
    }
  }
  throw new Error("no encryption to try");
}

/** `prefer` goes on in plain text where TLS is not to be had, `allow` with TLS where plain text is turned away. */
function worthTheOther(error: unknown, encryption: Encryption): boolean {
  if (error instanceof TlsNotOfferedError) return true;
  if (error instanceof ServerError) return error.code === "28000";
  return encryption === "tls" && /^TLS with/.test(errorText(error));
}

function withTimeout(timeoutMs: number, signal: AbortSignal): { signal: AbortSignal; clear(): void } {
  const controller = new AbortController();
  const onAbort = () => controller.abort(signal.reason);
  if (signal.aborted) onAbort();
  signal.addEventListener("abort", onAbort);
  const timer = timeoutMs === 0 ? undefined : setTimeout(
    () => controller.abort(new Error(`no answer within ${timeoutMs / 1000} s (connect_timeout)`)),
    timeoutMs,
  );
  return {
    signal: controller.signal,
    clear() {
      clearTimeout(timer);
      signal.removeEventListener("abort", onAbort);
    },
  };
}

function passes(attrs: TargetSessionAttrs): readonly TargetSessionAttrs[] {
  return attrs === "prefer-standby" ? ["standby", "any"] : [attrs];
}

/** Closes the session, which ends its queries, when the server does not answer in time. */
async function satisfiesInTime<T>(
  session: T,
  attrs: TargetSessionAttrs,
  maker: SessionMaker<T>,
  timeoutMs: number,
  signal: AbortSignal,
): Promise<boolean> {
  const attempt = withTimeout(timeoutMs, signal);
  const onAbort = () => maker.close(session);
  attempt.signal.addEventListener("abort", onAbort);
  if (attempt.signal.aborted) onAbort();
  try {
    return await satisfies(session, attrs, maker);
  } catch (error) {
    maker.close(session);
    throw error;
  } finally {
    attempt.signal.removeEventListener("abort", onAbort);
    attempt.clear();
  }
}

async function satisfies<T>(session: T, attrs: TargetSessionAttrs, maker: SessionMaker<T>): Promise<boolean> {
  if (attrs === "any") return true;
  const state = await maker.state(session);
  switch (attrs) {
    case "primary":
      return !state.inRecovery;
    case "standby":
    case "prefer-standby":
      return state.inRecovery;
    case "read-write":
      return !state.inRecovery && !state.readOnly;
    case "read-only":
      return state.inRecovery || state.readOnly;
  }
}

function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}
