import assert from "node:assert/strict";
import { test } from "node:test";
import { PermanentError, TransientError } from "../../src/core/errors.ts";
import { type Host, parseConnectionUri } from "../../src/postgres/connection_uri.ts";
import { connectToAny, type SessionMaker, type SessionState } from "../../src/postgres/hosts.ts";
import { ServerError } from "../../src/postgres/server_error.ts";
import { type Encryption, TlsNotOfferedError } from "../../src/postgres/socket.ts";

interface Session {
  readonly host: string;
  readonly encryption: Encryption;
}

type Answer = Error | SessionState | "silent";

const PRIMARY: SessionState = { inRecovery: false, readOnly: false };
const STANDBY: SessionState = { inRecovery: true, readOnly: true };
const READ_ONLY: SessionState = { inRecovery: false, readOnly: true };
const NEVER = new AbortController().signal;

const refused = new TransientError("connection refused");
const tlsFault = new TransientError("TLS with PostgreSQL at h failed: wrong version number");
const serverError = (code: string) => new ServerError({ C: code, M: `error ${code}` });

/** Servers by `host` or `host/encryption`: what a login there throws, or what the session says of itself. */
class Servers implements SessionMaker<Session> {
  readonly attempts: string[] = [];
  readonly closed: string[] = [];
  readonly #onSilence: () => void;
  readonly #answers: Readonly<Record<string, Answer>>;

  constructor(answers: Readonly<Record<string, Answer>>, onSilence: () => void) {
    this.#answers = answers;
    this.#onSilence = onSilence;
  }

  #answer({ host, encryption }: Session): Answer | undefined {
    return this.#answers[`${host}/${encryption}`] ?? this.#answers[host];
  }

  open({ host }: Host, encryption: Encryption, signal: AbortSignal): Promise<Session> {
    this.attempts.push(`${host}/${encryption}`);
    signal.throwIfAborted();
    const answer = this.#answer({ host, encryption });
    return answer instanceof Error ? Promise.reject(answer) : Promise.resolve({ host, encryption });
  }

  state(session: Session): Promise<SessionState> {
    const answer = this.#answer(session);
    if (answer === "silent") {
      this.#onSilence();
      return new Promise((_, reject) => this.#onClose.set(session, () => reject(new TransientError("closed"))));
    }
    return answer instanceof Error ? Promise.reject(answer) : Promise.resolve(answer ?? PRIMARY);
  }

  readonly #onClose = new Map<Session, () => void>();

  close(session: Session): void {
    this.closed.push(session.host);
    this.#onClose.get(session)?.();
  }
}

function params(uri: string) {
  const nothing = { env: {}, userName: "me", homeDir: "/home", readTextFile: () => undefined, exists: () => false };
  return parseConnectionUri(uri, nothing);
}

async function connect(
  uri: string,
  answers: Readonly<Record<string, Answer>>,
  signal = NEVER,
  onSilence = () => {},
) {
  const servers = new Servers(answers, onSilence);
  const outcome = await connectToAny(params(uri), "testing", servers, signal).then(
    (session) => `${session.host}/${session.encryption}`,
    (error: Error) => error,
  );
  return { outcome, attempts: servers.attempts, closed: servers.closed };
}

const WAYS: Array<[uri: string, answers: Record<string, Answer>, outcome: string, attempts: string[]]> = [
  ["postgres://a", {}, "a/tls", ["a/tls"]],
  ["postgres://a", { "a/tls": new TlsNotOfferedError({ host: "a", port: 1 }) }, "a/plain", ["a/tls", "a/plain"]],
  ["postgres://a", { "a/tls": tlsFault }, "a/plain", ["a/tls", "a/plain"]],
  ["postgres://a", { "a/tls": serverError("28000") }, "a/plain", ["a/tls", "a/plain"]],
  ["postgres://a?sslmode=allow", {}, "a/plain", ["a/plain"]],
  ["postgres://a?sslmode=allow", { "a/plain": serverError("28000") }, "a/tls", ["a/plain", "a/tls"]],
  ["postgres://a?sslmode=disable", {}, "a/plain", ["a/plain"]],
  ["postgres://%2Ftmp?sslmode=require", {}, "/tmp/plain", ["/tmp/plain"]],
  ["postgres://a,b?sslmode=disable", { a: refused }, "b/plain", ["a/plain", "b/plain"]],
  ["postgres://a,b?sslmode=disable", { a: serverError("57P03") }, "b/plain", ["a/plain", "b/plain"]],
  ["postgres://a,b?sslmode=disable", { a: STANDBY }, "b/plain", ["a/plain", "b/plain"]],
  ["postgres://a,b?sslmode=disable", { a: READ_ONLY }, "b/plain", ["a/plain", "b/plain"]],
  ["postgres://a,b?sslmode=disable&target_session_attrs=any", { a: STANDBY }, "a/plain", ["a/plain"]],
  ["postgres://a,b?sslmode=disable&target_session_attrs=primary", { a: READ_ONLY }, "a/plain", ["a/plain"]],
  ["postgres://a,b?sslmode=disable&target_session_attrs=read-only", { b: READ_ONLY }, "b/plain", [
    "a/plain",
    "b/plain",
  ]],
  ["postgres://a,b?sslmode=disable&target_session_attrs=standby", { b: STANDBY }, "b/plain", ["a/plain", "b/plain"]],
  ["postgres://a,b?sslmode=disable&target_session_attrs=prefer-standby", {}, "a/plain", [
    "a/plain",
    "b/plain",
    "a/plain",
  ]],
];

for (const [uri, answers, outcome, attempts] of WAYS) {
  test(`${uri} where ${Object.keys(answers).join(", ") || "nothing"} is special leads to ${outcome}`, async () => {
    const found = await connect(uri, answers);
    assert.deepEqual([found.outcome, found.attempts], [outcome, attempts]);
    assert.deepEqual(
      found.closed,
      attempts.slice(0, -1).filter((attempt) => {
        const answer = answers[attempt.split("/")[0]!] ?? answers[attempt];
        return !(answer instanceof Error);
      }).map((attempt) => attempt.split("/")[0]),
      "sessions that do not do are closed",
    );
  });
}

test("a network fault does not lead from TLS to plain text", async () => {
  const { outcome, attempts } = await connect("postgres://a", { a: refused });
  assert.deepEqual([outcome, attempts], [refused, ["a/tls"]]);
  const required = await connect("postgres://a?sslmode=require", { a: tlsFault });
  assert.deepEqual(required.attempts, ["a/tls"]);
});

for (const code of ["28P01", "28000", "3D000", "42501"]) {
  test(`a login that is refused with ${code} ends the search`, async () => {
    const { outcome, attempts } = await connect("postgres://a,b?sslmode=disable", { a: serverError(code) });
    assert.ok(outcome instanceof PermanentError, String(outcome));
    assert.match(
      outcome.message,
      new RegExp(`^testing of database "me" at a:5432 as user "me" failed: error ${code}; `),
    );
    assert.deepEqual(attempts, ["a/plain"]);
  });
}

test("where no host will do all are named, and it is permanent only if each fault is", async () => {
  const mixed = await connect("postgres://a,b?sslmode=require", {
    a: refused,
    b: new PermanentError("no certificate"),
  });
  assert.ok(mixed.outcome instanceof TransientError);
  assert.equal(mixed.outcome.message, "connection refused; no certificate");
  const final = await connect("postgres://a,b?sslmode=require", {
    a: new PermanentError("no"),
    b: new PermanentError("no"),
  });
  assert.ok(final.outcome instanceof PermanentError);
  assert.equal(final.outcome.message, "no");
  const wrong = await connect("postgres://a,b?sslmode=disable", { a: STANDBY, b: STANDBY });
  assert.ok(wrong.outcome instanceof TransientError);
  assert.match(wrong.outcome.message, /a:5432 is not what target_session_attrs=read-write asks for; .*b:5432/);
  assert.deepEqual(wrong.closed, ["a", "b"]);
});

test("a session that does not say what it is is closed: after the timeout, and when it is time to stop", async () => {
  const late = await connect("postgres://a,b?sslmode=disable&connect_timeout=1", { a: "silent" });
  assert.equal(late.outcome, "b/plain");
  assert.deepEqual([...new Set(late.closed)], ["a"]);
  const stop = new AbortController();
  const stopped = await connect(
    "postgres://a,b?sslmode=disable&connect_timeout=0",
    { a: "silent" },
    stop.signal,
    () => queueMicrotask(() => stop.abort(new Error("stopping"))),
  );
  const { outcome, attempts, closed } = stopped;
  assert.ok(outcome instanceof Error);
  assert.deepEqual([attempts, [...new Set(closed)]], [["a/plain"], ["a"]]);
});
