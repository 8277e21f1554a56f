/** Which path answers what. */

import type { HttpConfig } from "../config/config.ts";
import type { BridgeStatus } from "../core/status.ts";
import type { RecentLines } from "../log.ts";
import { VERSION, versionText } from "../version.ts";
import { type HealthReport, healthReport } from "./health.ts";
import { METRICS_TYPE, metricsText } from "./metrics.ts";
import { PAGE_HTML, PAGE_POLICY } from "./page/page.ts";
import type { Recorder } from "./recorder.ts";
import { type Handler, isLoopback } from "./server.ts";
import { MAX_STREAMS, statusStream } from "./stream.ts";
import { TokenGuard } from "./token.ts";

/** What the answers are made of; asked for at each request. */
export interface Observed {
  readonly bridges: readonly BridgeStatus[];
  /** Whether the program was told to stop. */
  readonly stopping: boolean;
}

export interface HandlerOptions {
  readonly config: HttpConfig;
  readonly observe: () => Observed;
  readonly recorder: Recorder;
  readonly recentLines: RecentLines;
}

export function makeHandler(options: HandlerOptions): Handler {
  const { config: { token }, observe } = options;
  const guard = token === undefined ? undefined : new TokenGuard(token);
  const isLocal = token === undefined && isLoopback(options.config.listen?.host ?? "");
  return (request) => {
    if (request.method !== "GET" && request.method !== "HEAD") {
      return text(405, "only GET and HEAD are answered here", { allow: "GET, HEAD" });
    }
    const url = new URL(request.url);
    if (url.pathname === "/health/live" || url.pathname === "/health/ready") return health(url, observe());
    if (guard !== undefined && !guard.admits(request.headers.get("authorization"))) return unauthorized(request);
    if (isLocal && !isLocalName(request.headers.get("host") ?? "")) {
      return text(403, "this address is for this machine only: call it localhost, or set a token in [http]");
    }
    switch (url.pathname) {
      case "/":
        return body(PAGE_HTML, "text/html; charset=utf-8", { "content-security-policy": PAGE_POLICY });
      case "/metrics":
        return body(metricsText(observe().bridges, VERSION, Date.now()), METRICS_TYPE);
      case "/stream":
        return stream(request, options);
      default:
        return text(404, "there is no such page here: /, /metrics, /health/live, /health/ready");
    }
  };
}

/**
 * A page of some other site may have its own name resolved to 127.0.0.1, and a browser of this machine then lets it read
 * the answers. It cannot have itself called by an address or by `localhost`.
 */
function isLocalName(host: string): boolean {
  return /^(?:localhost|[\d.]+|\[[\da-f:.]+\])(?::\d+)?$/i.test(host);
}

/** An instance that answers at all is live, whatever it waits for. */
function health(url: URL, { bridges, stopping }: Observed): Response {
  const report = healthReport(bridges, stopping);
  const isLive = url.pathname === "/health/live";
  const code = isLive || isReady(report, url) ? 200 : 503;
  return body(`${JSON.stringify(isLive ? { live: true, ...report } : report)}\n`, "application/json", {}, code);
}

/** A roll-out that waits for new instances while the old one does the work asks with `?standby=ok`. */
function isReady({ status }: HealthReport, url: URL): boolean {
  return status === "ready" || (status === "standing by" && url.searchParams.get("standby") === "ok");
}

function stream(request: Request, { config, observe, recorder, recentLines }: HandlerOptions): Response {
  if (recorder.listeners >= MAX_STREAMS) return text(503, `${MAX_STREAMS} pages are open already`);
  // Who asks for the head only must not leave a stream behind.
  if (request.method === "HEAD") return body("", "text/event-stream");
  const options = { observe, recorder, recentLines, version: versionText(), showPayloads: config.showPayloads };
  return new Response(statusStream(options), { headers: headersOf("text/event-stream") });
}

/** A browser, which asks for the page and then for its stream, is asked for a password; any other client for the token. */
function unauthorized(request: Request): Response {
  const isBrowser = /text\/(?:html|event-stream)/.test(request.headers.get("accept") ?? "");
  const challenge = isBrowser ? 'Basic realm="pg-event-proxy", charset="UTF-8"' : 'Bearer realm="pg-event-proxy"';
  return text(401, "the token is missing or wrong: Authorization: Bearer TOKEN, as token in [http] says", {
    "www-authenticate": challenge,
  });
}

type Headers = Readonly<Record<string, string>>;

function text(code: number, message: string, headers: Headers = {}): Response {
  return body(`${message}\n`, "text/plain; charset=utf-8", headers, code);
}

function body(content: string, type: string, headers: Headers = {}, code = 200): Response {
  return new Response(content, { status: code, headers: { ...headersOf(type), ...headers } });
}

function headersOf(type: string): Headers {
  return {
    "content-type": type,
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
  };
}
