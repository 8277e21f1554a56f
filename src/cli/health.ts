/** `pg-event-proxy health`: asks a running instance for its health, for health checks where there is no shell or curl. */

import { ConfigError, errorText, TransientError } from "../core/errors.ts";

export interface HealthCommandOptions {
  readonly url: string | undefined;
  readonly write: (text: string) => void;
}

const DEFAULT_URL = "http://127.0.0.1:8080/health/live";
/** Shorter than the health checks' own usual limits, so that the reason gets out. */
const TIMEOUT_MS = 3_000;

/** Writes what the instance answers. Throws ConfigError for a bad URL, TransientError unless the status is 2xx. */
export async function healthCommand({ url = DEFAULT_URL, write }: HealthCommandOptions): Promise<void> {
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
