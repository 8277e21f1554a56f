/** `pg-event-proxy health`: asks a running instance for its health, for health checks where there is no shell or curl. */

import type { ListenAddress } from "../config/config.ts";
import { keysOf } from "../config/keys.ts";
import type { LoadOptions } from "../config/load.ts";
import { collectSections } from "../config/sections.ts";
import { parseValue } from "../config/values.ts";
import { ConfigError, errorText, TransientError } from "../core/errors.ts";

/** Of the configuration only `listen` in `[http]` is looked at, and only where `url` is undefined. */
export interface HealthCommandOptions extends LoadOptions {
  readonly url: string | undefined;
  readonly write: (text: string) => void;
}

const DEFAULT_ADDRESS: ListenAddress = { host: "127.0.0.1", port: 8080 };
/** Shorter than the health checks' own usual limits, so that the reason gets out. */
const TIMEOUT_MS = 3_000;

/** Writes what the instance answers. Throws ConfigError for a bad URL, TransientError unless the status is 2xx. */
export async function healthCommand({ write, ...options }: HealthCommandOptions): Promise<void> {
  const url = options.url ?? liveUrl(listenAddress(options) ?? DEFAULT_ADDRESS);
  if (!/^https?:$/.test(URL.parse(url)?.protocol ?? "")) {
    throw new ConfigError([`"${url}" is no URL to ask for health; wanted http://host:port/health/live`]);
  }
  let response: Response;
  let body: string;
  try {
    response = await fetch(url, { redirect: "error", signal: AbortSignal.timeout(TIMEOUT_MS) });
    body = await response.text();
  } catch (error) {
    throw new TransientError(`asking ${url} failed: ${errorText(error)}; is listen set in [http] of the instance?`);
  }
  const answer = body.trim().replace(/\s*\n\s*/g, " ").slice(0, 2_000);
  if (!response.ok) throw new TransientError(`${url} answered ${response.status}: ${answer}; wanted status 200`);
  write(`${answer}\n`);
}

/** Faults of other keys are the running instance's affair, which may have a file that is not named here. */
function listenAddress({ file, env, readFile }: LoadOptions): ListenAddress | undefined {
  const http = collectSections(file, env, readFile, []).find((section) => section.type === "http");
  const text = http?.settings.get("listen")?.text;
  const key = keysOf("http").find(({ name }) => name === "listen");
  if (text === undefined || key === undefined) return undefined;
  const parsed = parseValue(key.spec, text);
  return "value" in parsed ? parsed.value as ListenAddress : undefined;
}

/** One that listens at every interface also listens at the loopback's. */
function liveUrl({ host, port }: ListenAddress): string {
  const reached = host === "0.0.0.0" ? "127.0.0.1" : host === "::" ? "::1" : host;
  return `http://${reached.includes(":") ? `[${reached}]` : reached}:${port}/health/live`;
}
