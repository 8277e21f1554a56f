/**
 * HTTP requests for webhooks, by `node:http`: `fetch` gives neither the addresses that a name was resolved to nor, under
 * every runtime, TLS with certificates of one's own.
 */

import type { LookupAddress, LookupOptions } from "node:dns";
import type { Agent as HttpAgent, ClientRequest, IncomingMessage } from "node:http";
import type { Agent as HttpsAgent } from "node:https";
import { isIP } from "node:net";
import type { TlsConfig } from "../config/config.ts";
import { PermanentError, TransientError } from "../core/errors.ts";
import { isPrivateAddress } from "./private_addresses.ts";
import { type TlsOptions, tlsOptions } from "./tls.ts";

/** The rest of a larger answer is not worth the connection. */
const MAX_ANSWER_BYTES = 64 * 1024;

export interface HttpRequest {
  readonly method: "POST" | "OPTIONS";
  readonly url: URL;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: Uint8Array;
}

/** Its body is not read: it could hold anything, the event among it. */
export interface HttpAnswer {
  readonly status: number;
  /** The headers `retry-after` and `location`. */
  readonly retryAfter: string | undefined;
  readonly location: string | undefined;
}

export interface HttpClientOptions {
  readonly tls: TlsConfig;
  readonly maxConnections: number;
  readonly timeoutMs: number;
  readonly allowPrivateAddresses: boolean;
}

/**
 * Loaded when a webhook is configured: in the executable, imports at the top of a module are loaded at its start, whether
 * the module is used or not.
 */
async function loadModules() {
  const [dns, http, https] = await Promise.all([import("node:dns"), import("node:http"), import("node:https")]);
  return { dns, http, https };
}
type Modules = Awaited<ReturnType<typeof loadModules>>;

type Done = (result: HttpAnswer | Error) => void;

export class HttpClient {
  readonly #options: HttpClientOptions;
  readonly #tls: TlsOptions;
  readonly #modules: Modules;
  readonly #http: HttpAgent;
  readonly #https: HttpsAgent;
  readonly #pending = new Set<ClientRequest>();

  private constructor(options: HttpClientOptions, tls: TlsOptions, modules: Modules) {
    this.#options = options;
    this.#tls = tls;
    this.#modules = modules;
    const agent = { keepAlive: true, maxSockets: options.maxConnections, noDelay: true };
    this.#http = new modules.http.Agent(agent);
    this.#https = new modules.https.Agent(agent);
  }

  /** Throws PermanentError where a file for TLS cannot be read. */
  static async create(options: HttpClientOptions): Promise<HttpClient> {
    return new HttpClient(options, await tlsOptions(options.tls, ""), await loadModules());
  }

  /**
   * Sends one request; follows no redirect. `done` is called once, unless the client is destroyed before: with the answer,
   * or with what kept it from coming.
   */
  send(request: HttpRequest, done: Done): void {
    const { url, method, headers, body } = request;
    const host = url.hostname.replace(/^\[|\]$/g, "");
    const fault = isIP(host) === 0 ? undefined : this.#addressFault(host, [host]);
    if (fault !== undefined) return queueMicrotask(() => done(fault));
    const options = {
      host,
      port: url.port,
      path: url.pathname + url.search,
      method,
      headers: { ...headers, "content-length": String(body.length) },
      lookup: (name: string, options: LookupOptions, found: Found) => this.#lookup(name, options, found),
    };
    const isSecure = url.protocol === "https:";
    const made = isSecure
      ? this.#modules.https.request({ ...options, ...this.#tls, ...serverName(host), agent: this.#https })
      : this.#modules.http.request({ ...options, agent: this.#http });
    this.#pending.add(made);
    this.#follow(made, done);
    made.end(body);
  }

  /** Ends every connection; what is pending is not answered. */
  destroy(): void {
    const pending = [...this.#pending];
    this.#pending.clear();
    for (const request of pending) request.destroy();
    this.#http.destroy();
    this.#https.destroy();
  }

  #follow(request: ClientRequest, done: Done): void {
    const finish = (result: HttpAnswer | Error) => {
      clearTimeout(timer);
      if (this.#pending.delete(request)) done(result);
    };
    const { timeoutMs } = this.#options;
    const timer = setTimeout(() => {
      finish(new TransientError(`no answer within ${timeoutMs / 1000} s`));
      request.destroy();
    }, timeoutMs);
    request.on("error", finish);
    request.on("close", () => finish(new TransientError("the connection was closed without an answer")));
    request.on("response", (response) => readAnswer(response, finish));
  }

  /** Every address of the name is checked, and one of the checked addresses is then connected to. */
  #lookup(name: string, options: LookupOptions, found: Found): void {
    this.#modules.dns.lookup(name, { ...options, all: true }, (error, addresses) => {
      if (error !== null) return found(error, []);
      const fault = this.#addressFault(name, addresses.map(({ address }) => address));
      if (fault !== undefined) return found(fault, []);
      const [first] = addresses;
      if (options.all || first === undefined) found(null, addresses);
      else found(null, first.address, first.family);
    });
  }

  #addressFault(host: string, addresses: readonly string[]): PermanentError | undefined {
    if (this.#options.allowPrivateAddresses) return undefined;
    const refused = addresses.find(isPrivateAddress);
    if (refused === undefined) return undefined;
    const what = refused === host ? `${host} is a private address` : `${host} has the private address ${refused}`;
    return new PermanentError(`${what}; set allow_private_addresses=true if it is meant to get the events`);
  }
}

type Found = (error: Error | null, address: string | LookupAddress[], family?: number) => void;

/** Server Name Indication carries host names only (RFC 6066, section 3). */
function serverName(host: string): { servername?: string } {
  return isIP(host) === 0 ? { servername: host } : {};
}

/** Reads to the end, so that the connection can be used again. The status tells all, also where the rest is cut off. */
function readAnswer(response: IncomingMessage, finish: Done): void {
  const answer: HttpAnswer = {
    status: response.statusCode ?? 0,
    retryAfter: response.headers["retry-after"],
    location: response.headers.location,
  };
  let bytes = 0;
  response.on("data", (chunk: Uint8Array) => {
    bytes += chunk.length;
    if (bytes <= MAX_ANSWER_BYTES) return;
    finish(answer);
    response.destroy();
  });
  for (const end of ["end", "error", "close"]) response.on(end, () => finish(answer));
}
