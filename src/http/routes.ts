/** Which path answers what. */

import type { HttpConfig } from "../config/config.ts";
import type { BridgeStatus } from "../core/status.ts";
import { VERSION } from "../version.ts";
import { type HealthReport, healthReport } from "./health.ts";
import { METRICS_TYPE, metricsText } from "./metrics.ts";
import type { Handler } from "./server.ts";
import { TokenGuard } from "./token.ts";

/** What the answers are made of; asked for at each request. */
export interface Observed {
  readonly bridges: readonly BridgeStatus[];
  /** Whether the program was told to stop. */
  readonly stopping: boolean;
}

const COMMON_HEADERS = { "cache-control": "no-store", "x-content-type-options": "nosniff" };

export function makeHandler({ token }: HttpConfig, observe: () => Observed): Handler {
  const guard = token === undefined ? undefined : new TokenGuard(token);
  return (request) => {
    if (request.method !== "GET" && request.method !== "HEAD") {
      return text(405, "only GET and HEAD are answered here", { allow: "GET, HEAD" });
    }
    const url = new URL(request.url);
    const { bridges, stopping } = observe();
    switch (url.pathname) {
      case "/health/live":
        return health(200, healthReport(bridges, stopping), "live");
      case "/health/ready": {
        const report = healthReport(bridges, stopping);
        return health(isReady(report, url) ? 200 : 503, report);
      }
    }
    if (guard !== undefined && !guard.admits(request.headers.get("authorization"))) return unauthorized(request);
    switch (url.pathname) {
      case "/metrics":
        return new Response(metricsText(bridges, VERSION, Date.now()), {
          headers: { ...COMMON_HEADERS, "content-type": METRICS_TYPE },
        });
    }
    return text(404, "there is no such page here");
  };
}

/** A roll-out that waits for new instances while the old one does the work asks with `?standby=ok`. */
function isReady({ status }: HealthReport, url: URL): boolean {
  return status === "ready" || (status === "standing by" && url.searchParams.get("standby") === "ok");
}

/** An instance that answers at all is live, whatever it waits for: `live` stands beside the state then. */
function health(code: number, report: HealthReport, live?: "live"): Response {
  const body = live === undefined ? report : { live: true, ...report };
  return new Response(`${JSON.stringify(body)}\n`, {
    status: code,
    headers: { ...COMMON_HEADERS, "content-type": "application/json" },
  });
}

/** A browser is asked for a password, any other client for the token. */
function unauthorized(request: Request): Response {
  const isBrowser = (request.headers.get("accept") ?? "").includes("text/html");
  const challenge = isBrowser ? 'Basic realm="pg-event-proxy", charset="UTF-8"' : 'Bearer realm="pg-event-proxy"';
  return text(401, "the token is missing or wrong: Authorization: Bearer TOKEN, as token in [http] says", {
    "www-authenticate": challenge,
  });
}

function text(code: number, message: string, headers: Readonly<Record<string, string>> = {}): Response {
  return new Response(`${message}\n`, {
    status: code,
    headers: { ...COMMON_HEADERS, "content-type": "text/plain; charset=utf-8", ...headers },
  });
}
