/** An HTTP server made of one function from request to response, on node:http, which every runtime has. */

import type { IncomingMessage, Server, ServerResponse } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import type { ListenAddress } from "../config/config.ts";
import { errorText, PermanentError } from "../core/errors.ts";

/** `request.signal` aborts when the client goes away. */
export type Handler = (request: Request) => Response | Promise<Response>;

/** Requests are small and without a body; whoever takes longer or sends more is cut off. */
const MAX_HEADER_BYTES = 16_384;
const REQUEST_TIMEOUT_MS = 3_000;
const CHECK_INTERVAL_MS = 1_000;
const KEEP_ALIVE_MS = 10_000;
const MAX_CONNECTIONS = 100;
/** How long a client may leave what it was sent unread. */
const UNREAD_TIMEOUT_MS = 15_000;

export class HttpServer {
  readonly #server: Server;

  private constructor(server: Server) {
    this.#server = server;
  }

  /** Throws PermanentError where the address cannot be had. */
  static async listen({ host, port }: ListenAddress, handler: Handler): Promise<HttpServer> {
    // Not at the top of the module: the executable would load it at each start, whether `listen` is set or not.
    const { createServer } = await import("node:http");
    const server = createServer({
      maxHeaderSize: MAX_HEADER_BYTES,
      headersTimeout: REQUEST_TIMEOUT_MS,
      requestTimeout: REQUEST_TIMEOUT_MS,
      connectionsCheckingInterval: CHECK_INTERVAL_MS,
      keepAliveTimeout: KEEP_ALIVE_MS,
    }, (incoming, outgoing) => void answer(handler, incoming, outgoing));
    server.maxConnections = MAX_CONNECTIONS;
    server.on("clientError", (_error, socket) => socket.destroy());
    await new Promise<void>((resolve, reject) => {
      server.once("error", (error) => reject(cannotListen(host, port, error)));
      server.listen({ host, port }, resolve);
    });
    // One that fails later (out of file descriptors, say) must not end the program.
    server.on("error", () => {});
    return new HttpServer(server);
  }

  /** The address it listens at, with the port that was taken. */
  get address(): ListenAddress {
    const { address, port } = this.#server.address() as AddressInfo;
    return { host: address, port };
  }

  /** Ends every connection. */
  close(): void {
    this.#server.close();
    this.#server.closeAllConnections();
  }
}

/** Whether nobody but this machine can reach it. */
export function isLoopback(host: string): boolean {
  return /^(?:127\.|::1$|localhost$)/i.test(host);
}

function cannotListen(host: string, port: number, error: unknown): PermanentError {
  return new PermanentError(
    `listening at ${host} port ${port} failed: ${
      errorText(error)
    }; set listen in [http] to a free address of this machine`,
  );
}

async function answer(handler: Handler, incoming: IncomingMessage, outgoing: ServerResponse): Promise<void> {
  const gone = new AbortController();
  outgoing.on("close", () => gone.abort());
  outgoing.on("error", () => gone.abort());
  try {
    if (hasBody(incoming)) {
      return reply(outgoing, 413, "no request has a body here\n");
    }
    const response = await handler(toRequest(incoming, gone.signal));
    outgoing.writeHead(response.status, Object.fromEntries(response.headers));
    if (response.body !== null && incoming.method !== "HEAD") {
      return await send(response.body, outgoing, gone.signal);
    }
    await response.body?.cancel();
    outgoing.end();
  } catch {
    if (outgoing.headersSent) outgoing.destroy();
    else reply(outgoing, 500, "the request could not be answered\n");
  }
}

/** RFC 9112, section 6: a body is announced by one of these two. */
function hasBody({ headers }: IncomingMessage): boolean {
  return headers["transfer-encoding"] !== undefined || (headers["content-length"] ?? "0") !== "0";
}

function reply(outgoing: ServerResponse, status: number, text: string): void {
  outgoing.writeHead(status, { "content-type": "text/plain; charset=utf-8", "connection": "close" });
  outgoing.end(text);
}

function toRequest(incoming: IncomingMessage, signal: AbortSignal): Request {
  const headers = new Headers();
  for (const [name, value] of Object.entries(incoming.headers)) {
    if (value !== undefined) headers.set(name, Array.isArray(value) ? value.join(", ") : value);
  }
  // The name by which the client calls us matters to nobody but `host`, and may be nonsense.
  const path = incoming.url?.startsWith("/") ? incoming.url : "/";
  return new Request(`http://localhost${path}`, { method: incoming.method ?? "GET", headers, signal });
}

async function send(body: ReadableStream<Uint8Array>, outgoing: ServerResponse, gone: AbortSignal): Promise<void> {
  const reader = body.getReader();
  const cancel = () => void reader.cancel().catch(() => {});
  gone.addEventListener("abort", cancel);
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done || gone.aborted) break;
      if (!outgoing.write(value)) await drained(outgoing, gone);
    }
    outgoing.end();
  } finally {
    // Also where the client was gone before the first byte: nobody else would tell the stream.
    cancel();
  }
}

/** A client that does not read is cut off. */
function drained(outgoing: ServerResponse, gone: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      outgoing.off("drain", end);
      gone.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(() => {
      (outgoing.socket as Socket | null)?.destroy();
      end();
    }, UNREAD_TIMEOUT_MS);
    outgoing.on("drain", end);
    gone.addEventListener("abort", end);
    if (gone.aborted) end();
  });
}
