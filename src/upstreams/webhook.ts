/**
 * HTTP POST to URLs, signed as Standard Webhooks (www.standardwebhooks.com). HTTP knows no session: one lasts here until a
 * request fails in a way that passes. The lane then opens the next one, which begins by sending that request again.
 */

import type { WebhookConfig } from "../config/config.ts";
import { sleep } from "../core/backoff.ts";
import { ChannelRejectedError, errorText, PermanentError, TransientError } from "../core/errors.ts";
import type { Delivery, Session, Target, Upstream } from "../core/upstream.ts";
import { bracedNames } from "../core/target_template.ts";
import { connectError, type Endpoint, parseEndpoint } from "./endpoint.ts";
import { type HttpAnswer, HttpClient, type HttpRequest } from "./http_client.ts";
import { type Chain, WebhookQueue } from "./webhook_queue.ts";
import { type WebhookMessage, WebhookRequests } from "./webhook_request.ts";

const PRODUCT = "the webhook";
/** So many requests' worth of events are at hand, that a busy table does not keep other ones from their turn. */
const REQUESTS_AHEAD = 16;
const MAX_IN_FLIGHT = 10_000;
/** A server that asks for a longer pause is asked again after this. */
const MAX_RETRY_AFTER_MS = 3_600_000;
/** URLs made from placeholders that are remembered. */
const MAX_KNOWN_URLS = 1_000;
/** Client errors that pass (RFC 9110, section 15.5.9; RFC 8470, section 5.2; RFC 6585, section 4), besides all of 5xx. */
const PASSING_STATUS = new Set([408, 425, 429]);
const UNAUTHORIZED = 401;

/** What a session hands on to the next one. */
interface Unfinished {
  /** The request to begin with. */
  message: WebhookMessage | undefined;
  /** Not before this time, as the server asked. */
  notBeforeMs: number;
}

export class WebhookUpstream implements Upstream {
  readonly kind = "webhook";
  readonly name: string;
  readonly maxInFlight: number;
  readonly #config: WebhookConfig;
  readonly #requests: WebhookRequests;
  readonly #unfinished: Unfinished = { message: undefined, notBeforeMs: 0 };

  constructor(config: WebhookConfig) {
    const { name, maxInFlight, concurrency, batch } = config;
    this.name = name;
    this.maxInFlight = maxInFlight ?? Math.min(REQUESTS_AHEAD * concurrency * batch, MAX_IN_FLIGHT);
    this.#config = config;
    this.#requests = new WebhookRequests(config);
  }

  async connect(targets: readonly Target[], onLost: (cause: Error) => void, signal: AbortSignal): Promise<Session> {
    signal.throwIfAborted();
    const { tls, concurrency, requestTimeoutMs, allowPrivateAddresses } = this.#config;
    const timeouts = { timeoutMs: requestTimeoutMs };
    const client = await HttpClient.create({ ...timeouts, tls, maxConnections: concurrency, allowPrivateAddresses });
    const onAbort = () => client.destroy();
    signal.addEventListener("abort", onAbort, { once: true });
    try {
      const { message } = this.#unfinished;
      if (message === undefined) {
        for (const url of this.#urlsToProbe(targets)) await this.#probe(client, url, signal);
      } else {
        await this.#sendAgain(client, message, signal);
      }
      return new WebhookSession(client, this.#config, this.#requests, this.#unfinished, onLost);
    } catch (error) {
      client.destroy();
      throw signal.aborted ? signal.reason : error;
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
  }

  /** Of targets with placeholders the root of their server, which no placeholder can change. */
  #urlsToProbe(targets: readonly Target[]): URL[] {
    const roots = this.#config.bindings.map(({ target }) => target.name).filter((name) => bracedNames(name).length > 0);
    const urls = [
      ...targets.map(({ name }) => name),
      ...roots.map((name) => new URL("/", name.replaceAll(/[{}]/g, "")).href),
    ];
    return [...new Set(urls)].map((url) => new URL(url));
  }

  /** Any answer tells that the server is there; OPTIONS changes nothing (RFC 9110, section 9.2.1). */
  async #probe(client: HttpClient, url: URL, signal: AbortSignal): Promise<void> {
    const request: HttpRequest = { method: "OPTIONS", url, headers: this.#requests.common, body: new Uint8Array(0) };
    const answer = await answerTo(client, request, signal);
    const sendsLogin = Object.hasOwn(this.#requests.common, "authorization");
    if (answer.status === UNAUTHORIZED && sendsLogin) {
      throw new PermanentError(
        `${PRODUCT} ${shown(url)} refused a login (401) by the header Authorization; correct token or extra_headers`,
      );
    }
  }

  /** Throws as long as it meets a fault that passes. What it is refused for is found out by the session. */
  async #sendAgain(client: HttpClient, message: WebhookMessage, signal: AbortSignal): Promise<void> {
    await sleep(Math.max(0, this.#unfinished.notBeforeMs - Date.now()), signal);
    signal.throwIfAborted();
    const request = requestOf(this.#requests, message);
    const answer = await answerTo(client, request, signal);
    if (isPassing(answer.status)) {
      this.#unfinished.notBeforeMs = Date.now() + retryAfterMs(answer.retryAfter, Date.now());
      throw new TransientError(answeredText(request, answer));
    }
    if (!isAccepted(answer.status)) this.#unfinished.message = undefined;
  }
}

function endpointOf(url: URL): Endpoint {
  return parseEndpoint(url.origin, { http: 80, https: 443 });
}

/** Rejects with the fault for the operator, or with the reason of `signal`. */
function answerTo(client: HttpClient, request: HttpRequest, signal: AbortSignal): Promise<HttpAnswer> {
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(signal.reason);
    signal.addEventListener("abort", onAbort, { once: true });
    client.send(request, (result) => {
      signal.removeEventListener("abort", onAbort);
      if (result instanceof Error) reject(connectError(PRODUCT, endpointOf(request.url), result));
      else resolve(result);
    });
  });
}

function requestOf(requests: WebhookRequests, message: WebhookMessage): HttpRequest {
  return { method: "POST", url: message.url, headers: requests.headersOf(message, Date.now()), body: message.body };
}

/** Without its query, which may hold a token. */
function shown({ origin, pathname }: URL): string {
  return origin + pathname;
}

function isAccepted(status: number): boolean {
  return status >= 200 && status < 300;
}

function isPassing(status: number): boolean {
  return PASSING_STATUS.has(status) || status >= 500;
}

function answeredText({ method, url }: HttpRequest, { status, location }: HttpAnswer): string {
  const text = `${method} ${shown(url)} was answered ${status}`;
  if (status < 300 || status >= 400 || location === undefined || !URL.canParse(location, url)) return text;
  return `${text} to ${shown(new URL(location, url))}; redirects are not followed: correct the target`;
}

/** Seconds or a date (RFC 9110, section 10.2.3); 0 where there is none. */
export function retryAfterMs(text: string | undefined, nowMs: number): number {
  if (text === undefined) return 0;
  const ms = /^\d+$/.test(text.trim()) ? Number(text) * 1000 : Date.parse(text) - nowMs;
  return Number.isNaN(ms) ? 0 : Math.min(Math.max(ms, 0), MAX_RETRY_AFTER_MS);
}

class WebhookSession implements Session {
  readonly #client: HttpClient;
  readonly #config: WebhookConfig;
  readonly #requests: WebhookRequests;
  readonly #unfinished: Unfinished;
  readonly #onLost: (cause: Error) => void;
  readonly #queue: WebhookQueue;
  readonly #urls = new Map<string, URL>();
  /** What `connect` has sent already: the lane sends it again, but it need not go twice. */
  readonly #delivered: Set<string>;
  #requestsInFlight = 0;
  #unanswered = 0;
  /** Why no more requests are made; the session ends when those on their way are answered. */
  #failure: Error | undefined;
  #ended = false;

  constructor(
    client: HttpClient,
    config: WebhookConfig,
    requests: WebhookRequests,
    unfinished: Unfinished,
    onLost: (cause: Error) => void,
  ) {
    this.#client = client;
    this.#config = config;
    this.#requests = requests;
    this.#unfinished = unfinished;
    this.#onLost = onLost;
    this.#queue = new WebhookQueue(config.concurrency);
    this.#delivered = new Set(unfinished.message?.deliveries.map(deliveryKey));
    unfinished.message = undefined;
    unfinished.notBeforeMs = 0;
  }

  publish(delivery: Delivery): void {
    if (this.#ended) return;
    if (this.#delivered.size > 0 && this.#delivered.delete(deliveryKey(delivery))) {
      delivery.acknowledge(this);
      return;
    }
    if (this.#urlOf(delivery.target.name) === undefined) {
      delivery.refuse(this, "its target is no URL");
      return;
    }
    this.#unanswered++;
    this.#queue.push(delivery);
  }

  flush(): void {
    while (!this.#ended && this.#failure === undefined && this.#requestsInFlight < this.#config.concurrency) {
      const chain = this.#queue.take();
      if (chain === undefined) return;
      this.#send(chain);
    }
  }

  close(): Promise<void> {
    this.#ended = true;
    this.#client.destroy();
    return Promise.resolve();
  }

  #send(chain: Chain): void {
    const deliveries = this.#queue.takeFrom(chain, this.#config.batch);
    const message = this.#requests.message(deliveries, this.#urlOf(deliveries[0]!.target.name)!);
    this.#requestsInFlight++;
    this.#request(message, (request, result) => {
      this.#requestsInFlight--;
      if (this.#ended) return;
      this.#answered(message, request, result);
      this.#queue.release(chain);
      if (this.#failure !== undefined && this.#requestsInFlight === 0) this.#lost(this.#failure);
      else this.flush();
    });
  }

  /** A server may end an idle connection at the moment it is used again: that is no outage, and worth a second attempt. */
  #request(message: WebhookMessage, done: (request: HttpRequest, result: HttpAnswer | Error) => void): void {
    const request = requestOf(this.#requests, message);
    this.#client.send(request, (result) => {
      if (this.#ended || !isReset(result)) done(request, result);
      else this.#client.send(request, (second) => done(request, second));
    });
  }

  #answered({ deliveries, ...message }: WebhookMessage, request: HttpRequest, result: HttpAnswer | Error): void {
    if (result instanceof Error) {
      this.#fail({ deliveries, ...message }, connectError(PRODUCT, endpointOf(request.url), result));
    } else if (isAccepted(result.status)) {
      this.#unanswered -= deliveries.length;
      for (const delivery of deliveries) delivery.acknowledge(this);
    } else if (isPassing(result.status)) {
      this.#unfinished.notBeforeMs = Date.now() + retryAfterMs(result.retryAfter, Date.now());
      this.#fail({ deliveries, ...message }, new TransientError(answeredText(request, result)));
    } else {
      this.#refuse(deliveries, answeredText(request, result));
    }
  }

  #fail(message: WebhookMessage, cause: Error): void {
    this.#unfinished.message ??= message;
    this.#failure ??= cause;
  }

  /**
   * A single event is refused where nothing waits behind it, or may pass it; otherwise the session ends, and the lane sends
   * its events one at a time.
   */
  #refuse(deliveries: readonly Delivery[], reason: string): void {
    const [only] = deliveries;
    const mayBePassed = this.#config.onReject === "drop" || this.#unanswered === 1;
    if (only === undefined || deliveries.length > 1 || !mayBePassed) {
      this.#failure ??= new ChannelRejectedError(reason);
      return;
    }
    this.#unanswered--;
    only.refuse(this, reason);
  }

  #urlOf(name: string): URL | undefined {
    const known = this.#urls.get(name);
    if (known !== undefined) return known;
    if (!URL.canParse(name)) return undefined;
    const url = new URL(name);
    if (this.#urls.size >= MAX_KNOWN_URLS) this.#urls.clear();
    this.#urls.set(name, url);
    return url;
  }

  #lost(cause: Error): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#client.destroy();
    this.#onLost(cause);
  }
}

function deliveryKey({ event, target }: Delivery): string {
  return `${event.id} ${target.name}`;
}

function isReset(result: HttpAnswer | Error): boolean {
  if (!(result instanceof Error)) return false;
  const code = String((result as { code?: unknown }).code ?? "");
  return /^(ECONNRESET|EPIPE|ConnectionClosed)$/.test(code) ||
    /socket hang up|connection (closed|reset)/i.test(errorText(result));
}
