/** What every upstream has to do, tested against its real server (src/core/upstream.ts is the contract). */

import assert from "node:assert/strict";
import { isUtf8 } from "node:buffer";
import { createServer, type Server as TcpServer, type Socket } from "node:net";
import { after, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import type { TlsConfig, UpstreamConfig } from "../../src/config/config.ts";
import { PermanentError, TransientError } from "../../src/core/errors.ts";
import type { Event } from "../../src/core/event.ts";
import type { Delivery, Session, Target, Upstream } from "../../src/core/upstream.ts";
import { createUpstream } from "../../src/upstreams/mod.ts";
import type { Consumer, Message } from "./consumers.ts";
import { makeTlsFiles, type Server, type TlsFiles } from "./servers.ts";
import { until } from "./wait.ts";

export const NO_TLS: TlsConfig = {
  caFile: undefined,
  certFile: undefined,
  keyFile: undefined,
  insecureSkipVerify: false,
};

/** What all kinds have in common in a configuration. */
export const COMMON_CONFIG = {
  name: "contract",
  bindings: [],
  slot: { name: "unused", wal2jsonParams: [] },
  maxInFlight: undefined,
  maxInFlightBytes: 32 * 1024 * 1024,
  onReject: "stop",
  cloudEventsSource: undefined,
} as const;

let lastId = 0;

/** A WAL event; `fields` replace. */
export function walEvent(payload: string | Uint8Array, fields: Partial<Event> = {}): Event {
  return {
    id: `0/1A2B3C4-${++lastId}`,
    type: "wal",
    channel: "wal2json",
    routingKey: "public.orders.insert",
    payload: typeof payload === "string" ? Buffer.from(payload) : payload,
    json: true,
    receivedAtMs: 1_700_000_000_123,
    ...fields,
  };
}

/** A notification that is not JSON; `fields` replace. */
export function notifyEvent(payload: string | Uint8Array, fields: Partial<Event> = {}): Event {
  return walEvent(payload, { type: "notify", channel: "events", routingKey: "", json: false, ...fields });
}

type Outcome = "acknowledged" | { readonly refused: string };

/** A delivery that remembers how it was answered. */
export class TestDelivery implements Delivery {
  readonly event: Event;
  readonly target: Target;
  readonly #answered: (delivery: TestDelivery) => void;
  outcome: Outcome | undefined;

  constructor(event: Event, target: Target, answered: (delivery: TestDelivery) => void) {
    this.event = event;
    this.target = target;
    this.#answered = answered;
  }

  acknowledge(): void {
    this.#answer("acknowledged");
  }
  refuse(_session: Session, reason: string): void {
    this.#answer({ refused: reason });
  }

  get refusal(): string | undefined {
    return typeof this.outcome === "object" ? this.outcome.refused : undefined;
  }

  #answer(outcome: Outcome): void {
    assert.equal(this.outcome, undefined, `event ${this.event.id} was answered twice`);
    this.outcome = outcome;
    this.#answered(this);
  }
}

/** One session with a window, as a lane keeps it, without resending. */
export class TestLane {
  readonly upstream: Upstream;
  readonly sent: TestDelivery[] = [];
  readonly losses: Error[] = [];
  /** The ids, in the order of their answers. */
  readonly answers: string[] = [];
  #session: Session | undefined;
  #waiting: TestDelivery[] = [];
  #inFlight = 0;
  #pumping = false;

  private constructor(upstream: Upstream) {
    this.upstream = upstream;
  }

  static async open(
    config: UpstreamConfig | Upstream,
    targets: readonly Target[],
    signal: AbortSignal = new AbortController().signal,
  ): Promise<TestLane> {
    const lane = new TestLane("connect" in config ? config : await createUpstream(config));
    lane.#session = await lane.upstream.connect(targets, (cause) => lane.losses.push(cause), signal);
    return lane;
  }

  get unanswered(): number {
    return this.sent.length - this.answers.length;
  }

  send(target: Target, ...events: readonly Event[]): TestDelivery[] {
    const deliveries = events.map((event) => new TestDelivery(event, target, (answered) => this.#answered(answered)));
    this.sent.push(...deliveries);
    this.#waiting.push(...deliveries);
    this.#pump();
    return deliveries;
  }

  /** Resolves when all is answered; fails at once if the session is lost. */
  async answered(timeoutMs = 45_000): Promise<void> {
    await until(() => {
      if (this.losses.length > 0) return true;
      return this.unanswered === 0;
    }, { what: () => `answers to ${this.unanswered} of ${this.sent.length} deliveries`, timeoutMs, intervalMs: 2 });
    assert.deepEqual(this.losses, []);
  }

  async lost(timeoutMs = 45_000): Promise<Error> {
    return await until(() => this.losses[0], { what: "the session to report its loss", timeoutMs });
  }

  async close(deadlineMs = 5_000): Promise<void> {
    await this.#session?.close(deadlineMs);
  }

  #answered(delivery: TestDelivery): void {
    this.answers.push(delivery.event.id);
    this.#inFlight--;
    if (this.#pumping) return;
    this.#pumping = true;
    queueMicrotask(() => {
      this.#pumping = false;
      this.#pump();
    });
  }

  #pump(): void {
    const session = this.#session!;
    let published = 0;
    while (this.losses.length === 0 && this.#inFlight < this.upstream.maxInFlight && published < this.#waiting.length) {
      this.#inFlight++;
      session.publish(this.#waiting[published++]!);
    }
    this.#waiting.splice(0, published);
    if (published > 0) session.flush();
  }
}

export interface ContractSubject {
  /** For the names of the tests: `mqtt 3.1.1, QoS 1`. */
  readonly title: string;
  readonly target: Target;
  /** Where the target names the server. */
  targetAt?(uri: string): Target;
  startServer(options?: { tls?: TlsFiles; config?: readonly string[] }): Promise<Server>;
  config(uri: string, tls?: TlsConfig): UpstreamConfig;
  consume(uri: string): Promise<Consumer<Message>>;
  /** The routing key, topic or channel under which a consumer gets the event. */
  keyOf(event: Event): string;
  /** A configuration whose login the server refuses, and a secret in it that no message may show. */
  refusedLogin(): Promise<{ config: UpstreamConfig; target?: Target; secret: string; close(): Promise<void> }>;
  /** The server hangs up on a wrong client certificate without a word, so that it looks like an outage. */
  readonly hangsUpOnStrangers?: true;
  /**
   * Configuration lines that make the server insist on a client certificate; none if it only verifies what it gets.
   * Undefined for a kind without keys for TLS.
   */
  readonly clientCertificateConfig: readonly string[] | undefined;
  /** How many events the test of order sends; default 5,000. */
  readonly volume?: number;
  /** Whether the protocol has a way to carry the event; one that it has none for must be refused. Default: all. */
  carries?(event: Event): boolean;
}

const TIMEOUT = { timeout: 180_000 };

/** Payloads that a careless encoder changes. */
const HOSTILE_PAYLOADS: readonly Uint8Array[] = [
  Buffer.from(`{"action":"I","columns":[{"name":"n","value":9007199254740993}]}`),
  Buffer.from('naïve 🐘 \u0000 \r\n \u2028 "quoted" \\ \ufeff'),
  Buffer.from("\ufeffbegins with a byte order mark"),
  Buffer.from([0, 1, 0x7f, 0x80, 0xff, 0xc3, 0x28, 0xed, 0xa0, 0x80]),
  new Uint8Array(0),
  // A view into a larger buffer, as the events of the WAL are.
  new Uint8Array(Buffer.from("before|the view|after").buffer).subarray(0, 0),
  Buffer.from("....the view....").subarray(4, 12),
  Buffer.alloc(1024 * 1024, "a megabyte. 🐘 "),
];

/** Whether a protocol of text can carry it: not empty, UTF-8 without the characters that XML forbids, and not too large. */
export function carriesText({ payload }: Event, maxBytes: number): boolean {
  const text = Buffer.from(payload).toString();
  // Room for the attributes.
  return payload.length > 0 && payload.length + 300 <= maxBytes && isUtf8(payload) && !text.includes("\0");
}

export function upstreamContract(subject: ContractSubject): void {
  const { title } = subject;
  const targetAt = (uri: string) => subject.targetAt?.(uri) ?? subject.target;
  let server: Promise<Server> | undefined;
  const running = () => server ??= subject.startServer();
  after(async () => {
    await (await server)?.stop();
  });
  const open = async () => {
    const { uri } = await running();
    const target = targetAt(uri);
    return { target, lane: await TestLane.open(subject.config(uri), [target]) };
  };

  test(`${title}: events arrive byte for byte, under their keys, in order`, TIMEOUT, async () => {
    const { uri } = await running();
    const consumer = await subject.consume(uri);
    const { lane, target } = await open();
    const events = HOSTILE_PAYLOADS.flatMap((payload) => [
      walEvent(payload),
      notifyEvent(payload),
      notifyEvent(payload, { routingKey: "sign-up.ünï" }),
    ]);
    lane.send(target, ...events);
    await lane.answered();
    const { carries = () => true } = subject;
    for (const { event, outcome, refusal } of lane.sent) {
      if (carries(event)) assert.equal(outcome, "acknowledged", `${event.payload.subarray(0, 40)}`);
      else assert.ok(refusal !== undefined && !refusal.includes("\n"), `${event.payload.subarray(0, 40)}: ${outcome}`);
    }
    const carried = events.filter(carries);
    assert.ok(carried.length >= events.length / 3);
    const received = await consumer.waitFor(carried.length);
    assert.equal(received.length, carried.length);
    for (const [i, event] of carried.entries()) {
      assert.equal(received[i]!.key, subject.keyOf(event));
      assert.ok(received[i]!.payload.equals(event.payload), `payload ${i} was changed on its way`);
    }
    await lane.close();
    await consumer.close();
    assert.deepEqual(lane.losses, []);
  });

  const { volume = 5_000 } = subject;
  test(`${title}: ${volume.toLocaleString("en")} events through a full window keep their order`, TIMEOUT, async () => {
    const { uri } = await running();
    const consumer = await subject.consume(uri);
    const { lane, target } = await open();
    const events = Array.from({ length: volume }, (_, i) => walEvent(`{"n":${i}}`));
    lane.send(target, ...events);
    await lane.answered(60_000);
    const received = await consumer.waitFor(events.length, 30_000);
    assert.deepEqual(received.map(({ text }) => text), events.map(({ payload }) => String(payload)));
    assert.deepEqual(lane.answers, events.map(({ id }) => id));
    await lane.close();
    await consumer.close();
  });

  test(`${title}: nothing is acknowledged before the server has answered`, TIMEOUT, async () => {
    const broker = await running();
    const { lane, target } = await open();
    lane.send(target, walEvent('"warm"'));
    await lane.answered();
    broker.freeze();
    try {
      lane.send(target, ...Array.from({ length: 50 }, () => walEvent('"sent to a frozen server"')));
      // A session that acknowledges what it has written does so at once.
      await delay(300);
      assert.equal(lane.unanswered, 50);
    } finally {
      broker.thaw();
    }
    await lane.answered();
    await lane.close();
    assert.deepEqual(lane.losses, []);
  });

  test(`${title}: close ends the connection in time, even if the server does not answer`, TIMEOUT, async () => {
    const broker = await running();
    const { lane, target } = await open();
    broker.freeze();
    try {
      lane.send(target, ...Array.from({ length: 50 }, () => walEvent('"given up"')));
      const startedAt = performance.now();
      await lane.close(300);
      assert.ok(performance.now() - startedAt < 2_000);
    } finally {
      broker.thaw();
    }
    assert.deepEqual(lane.losses, []);
    assert.equal(lane.answers.length, 0);
  });

  test(`${title}: the loss of a killed server is reported once, and a new session takes over`, TIMEOUT, async () => {
    const broker = await running();
    const upstream = await createUpstream(subject.config(broker.uri));
    const target = targetAt(broker.uri);
    const lane = await TestLane.open(upstream, [target]);
    lane.send(target, walEvent('"before"'));
    await lane.answered();
    broker.freeze();
    lane.send(target, ...Array.from({ length: 50 }, () => walEvent('"lost"')));
    await broker.kill();
    const cause = await lane.lost();
    assert.ok(!(cause instanceof PermanentError), String(cause));
    assert.equal(lane.unanswered, 50);
    await assert.rejects(TestLane.open(upstream, [target]), (error) => {
      assert.ok(error instanceof Error && !(error instanceof PermanentError), String(error));
      assert.match(error.message, new RegExp(`127\\.0\\.0\\.1:${broker.port}`));
      return true;
    });
    await broker.start();
    const consumer = await subject.consume(broker.uri);
    const next = await TestLane.open(upstream, [target]);
    next.send(target, walEvent('"after"'));
    await next.answered();
    await consumer.waitFor((received) => received.some(({ text }) => text === '"after"'));
    await next.close();
    await consumer.close();
    assert.equal(lane.unanswered, 50, "a lost session answered");
    assert.equal(lane.losses.length, 1);
    assert.deepEqual(next.losses, []);
  });

  test(`${title}: giving up while connecting leaves no connection`, TIMEOUT, async () => {
    const silent = await SilentServer.start();
    try {
      const { uri } = await running();
      const upstream = await createUpstream(subject.config(withPort(uri, silent.port)));
      const target = targetAt(withPort(uri, silent.port));
      const controller = new AbortController();
      const attempt = upstream.connect([target], () => assert.fail("no session, no loss"), controller.signal);
      attempt.catch(() => {});
      await until(() => silent.open > 0, { what: "the upstream to connect" });
      controller.abort(new Error("given up"));
      await assert.rejects(attempt, /given up/);
      await until(() => silent.open === 0, { what: "the connection to be closed", timeoutMs: 2_000 });
      await assert.rejects(upstream.connect([target], () => {}, controller.signal), /given up/);
      assert.equal(silent.accepted, 1);
    } finally {
      await silent.close();
    }
  });

  test(`${title}: a refused login is permanent and shows no secret`, TIMEOUT, async () => {
    const { config, target = subject.target, secret, close } = await subject.refusedLogin();
    try {
      await assert.rejects(TestLane.open(config, [target]), (error) => {
        assert.ok(error instanceof PermanentError, String(error));
        assert.doesNotMatch(`${error.message} ${error.stack} ${JSON.stringify(error)}`, new RegExp(secret));
        assert.match(error.message, /refused the login of user|refused a login/);
        return true;
      });
    } finally {
      await close();
    }
  });

  const { clientCertificateConfig } = subject;
  if (clientCertificateConfig === undefined) return;

  test(`${title}: TLS with an authority, a wrong one, none, and a client certificate`, TIMEOUT, async () => {
    const [files, foreign] = await Promise.all([makeTlsFiles(), makeTlsFiles()]);
    const secure = await subject.startServer({ tls: files, config: clientCertificateConfig });
    const uri = secure.uri.replace("127.0.0.1", "localhost");
    const client = { certFile: files.clientCertFile, keyFile: files.clientKeyFile };
    const works = async (tls: TlsConfig, address = uri) => {
      const target = targetAt(address);
      const lane = await TestLane.open(subject.config(address, tls), [target]);
      lane.send(target, walEvent('"over TLS"'), walEvent(Buffer.alloc(300_000, "x")));
      await lane.answered();
      await lane.close();
    };
    // A server that wants another certificate says so after the handshake (RFC 8446, section 4.4.2.4), and hangs up: where
    // that is seen first, the fault passes for one of the network, and the next attempt tells.
    const fails = async (tls: TlsConfig, expected: RegExp) => {
      const refusal = await until(async () => {
        const opening = TestLane.open(subject.config(uri, tls), [targetAt(uri)]);
        const answer: unknown = await opening.then(() => "it connected", (error) => error);
        return answer instanceof TransientError && /EPIPE|ECONNRESET/.test(answer.message) ? undefined : answer;
      }, { what: "an answer about the certificate" });
      assert.ok(refusal instanceof PermanentError, String(refusal));
      assert.match(refusal.message, expected);
    };
    try {
      await works({ ...NO_TLS, ...client, caFile: files.caFile });
      await works({ ...NO_TLS, ...client, caFile: files.caFile }, secure.uri);
      await works({ ...NO_TLS, ...client, insecureSkipVerify: true });
      await fails({ ...NO_TLS, ...client }, /ca_file/);
      await fails({ ...NO_TLS, ...client, caFile: foreign.caFile }, /ca_file/);
      await fails({ ...NO_TLS, caFile: "/does/not/exist.pem" }, /cannot read ca_file \/does\/not\/exist\.pem/);
      await fails({ ...NO_TLS, caFile: files.caFile, certFile: files.clientCertFile }, /cert_file and key_file/);
      const stranger = { certFile: foreign.clientCertFile, keyFile: foreign.clientKeyFile };
      if (subject.hangsUpOnStrangers) {
        await assert.rejects(
          TestLane.open(subject.config(uri, { ...NO_TLS, ...stranger, caFile: files.caFile }), [targetAt(uri)]),
        );
        return;
      }
      await fails({ ...NO_TLS, ...stranger, caFile: files.caFile }, /set cert_file and key_file/);
      if (clientCertificateConfig.length > 0) {
        await fails({ ...NO_TLS, caFile: files.caFile }, /set cert_file and key_file/);
      }
    } finally {
      await secure.stop();
      await files.remove();
      await foreign.remove();
    }
  });
}

function withPort(uri: string, port: number): string {
  return uri.replace(/:\d+(?=\/?$)/, `:${port}`);
}

/** Accepts connections, reads, and never says a word. */
class SilentServer {
  readonly #server: TcpServer;
  readonly #sockets = new Set<Socket>();
  accepted = 0;

  private constructor(server: TcpServer) {
    this.#server = server;
  }

  static start(): Promise<SilentServer> {
    return new Promise((resolve, reject) => {
      const server = createServer();
      const silent = new SilentServer(server);
      server.on("connection", (socket) => silent.#add(socket));
      server.once("error", reject);
      server.listen(0, "127.0.0.1", () => resolve(silent));
    });
  }

  get port(): number {
    const address = this.#server.address();
    assert.ok(typeof address === "object" && address !== null);
    return address.port;
  }
  get open(): number {
    return this.#sockets.size;
  }

  close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    return new Promise((resolve) => this.#server.close(() => resolve()));
  }

  #add(socket: Socket): void {
    this.accepted++;
    this.#sockets.add(socket);
    socket.on("error", () => {});
    socket.on("close", () => this.#sockets.delete(socket));
    socket.resume();
  }
}
