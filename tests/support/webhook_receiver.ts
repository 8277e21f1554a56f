/** The other end of a webhook: a real HTTP server in a process of its own, and what it received. */

import { closeSync, existsSync, openSync, readSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Consumer, type Message, Recorder } from "./consumers.ts";
import { freePort, type Server, ServerProcess, type TlsFiles, Workspace } from "./server_process.ts";

export const CONTROL_PATH = "/-/control";

/** How requests are answered; the first rule that fits counts. Without one: 204. */
export interface Rule {
  readonly status: number;
  readonly headers?: Readonly<Record<string, string>>;
  readonly answer?: string;
  /** For how many requests; default: all. */
  readonly times?: number;
  readonly delayMs?: number;
  /** Only requests for this path, or whose body holds this text. */
  readonly path?: string;
  readonly contains?: string;
}

export interface Behaviour {
  readonly rules?: readonly Rule[];
  /** The header that requests must have, else 401. */
  readonly authorization?: string;
  /** False: only count. */
  readonly recording?: boolean;
}

export interface RecordedRequest {
  readonly method: string;
  readonly path: string;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  /** In base64. */
  readonly body: string;
  readonly status: number;
  readonly receivedAtMs: number;
}

/** The key is the header `pg-event-key`, decoded. */
export interface ReceivedRequest extends Message {
  readonly method: string;
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  /** How it was answered. */
  readonly status: number;
}

export interface WebhookReceiver extends Server {
  readonly recordFile: string;
  /** Replaces what was told before; also forgotten by `kill`. */
  behave(behaviour: Behaviour): Promise<void>;
  /** Events in the requests that were answered with 2xx since it started or was told to behave. */
  accepted(): Promise<number>;
}

export interface ReceiverOptions {
  readonly tls?: TlsFiles;
  /** `requestCert`: client certificates are required. */
  readonly config?: readonly string[];
}

const ROOT_DIR = fileURLToPath(new URL("../..", import.meta.url));

export async function startWebhookReceiver({ tls, config = [] }: ReceiverOptions = {}): Promise<WebhookReceiver> {
  const port = await freePort();
  const workspace = new Workspace("webhook");
  const recordFile = join(workspace.dir, "requests.jsonl");
  const { certFile, keyFile, caFile } = tls ?? {};
  const options = tls === undefined ? "" : JSON.stringify({
    certFile,
    keyFile,
    caFile,
    requestCert: config.includes("requestCert"),
  });
  const main = join(ROOT_DIR, "tests/support/webhook_receiver_main.ts");
  // Always the same runtime, whichever the tests run under: it is the other side.
  const bun = join(ROOT_DIR, ".tools/node_modules/.bin/bun");
  const server = new ReceiverProcess({
    name: "webhook receiver",
    port,
    uri: `${tls === undefined ? "http" : "https"}://127.0.0.1:${port}`,
    workspace,
    commands: [{ file: bun, args: ["run", main, String(port), recordFile, options], env: { HOME: "/nonexistent" } }],
    shutdownSignal: "SIGTERM",
    answers: () => accepts(port),
  }, recordFile);
  try {
    await server.start();
    return server;
  } catch (error) {
    await workspace.remove();
    throw error;
  }
}

class ReceiverProcess extends ServerProcess implements WebhookReceiver {
  readonly recordFile: string;

  constructor(spec: ConstructorParameters<typeof ServerProcess>[0], recordFile: string) {
    super(spec);
    this.recordFile = recordFile;
  }

  behave(behaviour: Behaviour): Promise<void> {
    return tellReceiver(this.uri, behaviour);
  }

  accepted(): Promise<number> {
    return acceptedBy(this.uri);
  }
}

export async function tellReceiver(uri: string, behaviour: Behaviour): Promise<void> {
  const response = await fetch(uri + CONTROL_PATH, { method: "PUT", body: JSON.stringify(behaviour) });
  await response.arrayBuffer();
}

export async function acceptedBy(uri: string): Promise<number> {
  const { accepted } = await (await fetch(uri + CONTROL_PATH)).json();
  return accepted;
}

function accepts(port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    const socket = connect(port, "127.0.0.1", () => {
      socket.destroy();
      resolve();
    });
    socket.once("error", reject);
  });
}

const POLL_MS = 10;

export interface ConsumeOptions {
  /** Of which requests; default: those of POST that were answered with 2xx. */
  readonly filter?: (request: ReceivedRequest) => boolean;
  readonly onMessage?: (request: ReceivedRequest) => void;
}

/** What is recorded from now on. */
export function consumeWebhook(receiver: WebhookReceiver, options: ConsumeOptions = {}): Consumer<ReceivedRequest> {
  const { filter = ({ method, status }) => method === "POST" && status < 300, onMessage } = options;
  const recorder = new Recorder<ReceivedRequest>("webhook", onMessage);
  const tail = new FileTail(receiver.recordFile, (line) => {
    const request = received(JSON.parse(line));
    if (filter(request)) recorder.add(request);
  });
  tail.skip();
  const timer = setInterval(() => tail.read(), POLL_MS);
  return recorder.consumer(async () => {
    clearInterval(timer);
    tail.close();
  });
}

function received({ method, path, headers, body, status, receivedAtMs }: RecordedRequest): ReceivedRequest {
  const payload = Buffer.from(body, "base64");
  const single = Object.fromEntries(Object.entries(headers).map(([name, value]) => [name, String(value)]));
  return {
    key: decodeURIComponent(single["pg-event-key"] ?? ""),
    payload,
    get text() {
      return payload.toString("utf8");
    },
    receivedAtMs,
    method,
    path,
    headers: single,
    status,
  };
}

/** Reads whole lines as they are appended. */
class FileTail {
  readonly #path: string;
  readonly #onLine: (line: string) => void;
  readonly #buffer = Buffer.alloc(1024 * 1024);
  #fd: number | undefined;
  #rest: Buffer[] = [];
  #isSkipping = false;

  constructor(path: string, onLine: (line: string) => void) {
    this.#path = path;
    this.#onLine = onLine;
  }

  skip(): void {
    this.#isSkipping = true;
    this.read();
    this.#isSkipping = false;
  }

  read(): void {
    if (this.#fd === undefined) {
      if (!existsSync(this.#path)) return;
      this.#fd = openSync(this.#path, "r");
    }
    for (;;) {
      const length = readSync(this.#fd, this.#buffer, 0, this.#buffer.length, null);
      if (length === 0) return;
      this.#take(Buffer.from(this.#buffer.subarray(0, length)));
    }
  }

  close(): void {
    if (this.#fd !== undefined) closeSync(this.#fd);
  }

  #take(chunk: Buffer): void {
    let start = 0;
    for (let end = chunk.indexOf(0x0a); end !== -1; end = chunk.indexOf(0x0a, start)) {
      const line = Buffer.concat([...this.#rest, chunk.subarray(start, end)]).toString();
      this.#rest = [];
      start = end + 1;
      if (!this.#isSkipping) this.#onLine(line);
    }
    if (start < chunk.length) this.#rest.push(chunk.subarray(start));
  }
}
