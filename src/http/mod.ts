/** Health, metrics and the status page. Loaded only where `listen` is set in `[http]`. */

import type { HttpConfig, ListenAddress } from "../config/config.ts";
import type { Logger, RecentLines } from "../log.ts";
import { Recorder } from "./recorder.ts";
import { makeHandler, type Observed } from "./routes.ts";
import { HttpServer, isLoopback } from "./server.ts";

export interface HttpOptions {
  readonly config: HttpConfig;
  readonly listen: ListenAddress;
  readonly observe: () => Observed;
  readonly recentLines: RecentLines;
  readonly log: Logger;
}

/** Answers until `close`. Throws PermanentError where the address cannot be had. */
export async function startHttp(options: HttpOptions): Promise<{ close(): void }> {
  const { config, listen, observe, recentLines, log } = options;
  const recorder = new Recorder(() => observe().bridges);
  let server: HttpServer;
  try {
    server = await HttpServer.listen(listen, makeHandler({ config, observe, recorder, recentLines }));
  } catch (error) {
    recorder.close();
    throw error;
  }
  const { host, port } = server.address;
  log.info("answering HTTP at {host} port {port}{guard}", { host, port, guard: guardText(config, host) });
  return {
    close() {
      recorder.close();
      server.close();
    },
  };
}

function guardText({ token }: HttpConfig, host: string): string {
  if (token !== undefined) return ", guarded by the token";
  return isLoopback(host) ? "" : ", without a token: whoever can reach it sees metrics and errors (token in [http])";
}
