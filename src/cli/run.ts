/** `pg-event-proxy run`: every bridge of the configuration, until a signal. */

import process from "node:process";
import type { BridgeConfig } from "../config/config.ts";
import { loadConfig, type LoadOptions } from "../config/load.ts";
import { Bridge } from "../core/bridge.ts";
import { ConfigError, errorText } from "../core/errors.ts";
import { OutboxRoutes } from "../core/outbox_routes.ts";
import { configureLog, type Logger, logger, RecentLines } from "../log.ts";
import { type ConnectionParams, ConnectionUriError, parseConnectionUri } from "../postgres/connection_uri.ts";
import { uriEnvironment } from "../runtime.ts";
import { versionText } from "../version.ts";

/** Returns the exit code. Throws ConfigError, and PermanentError for a fault at the first start that no retry mends. */
export async function runCommand(options: LoadOptions): Promise<number> {
  const { config } = loadConfig(options);
  const connections = parseConnections(config.bridges);
  const recentLines = config.http.listen === undefined ? undefined : new RecentLines();
  const eventLog = configureLog(config.log, recentLines);
  process.on("SIGHUP", () => {
    eventLog.toggle();
    logger().info("SIGHUP: every event is now {told} (level debug)", {
      told: eventLog.enabled ? "logged" : "left out",
    });
  });
  const log = logger();
  exitOnUnexpected(log);
  const stop = stopOnSignals(log, Math.max(...config.bridges.map((bridge) => bridge.shutdownTimeoutMs)));
  log.info("pg-event-proxy {version} starts with {bridges}", {
    version: versionText(),
    bridges: config.bridges.map((bridge) => bridge.name).join(", "),
  });
  let bridges: readonly Bridge[] = [];
  let announced = false;
  const onChange = () => {
    if (announced || bridges.length === 0 || !bridges.every((bridge) => bridge.ready)) return;
    announced = true;
    log.info("ready: every source and upstream is connected");
  };
  const observe = () => ({ bridges: bridges.map((bridge) => bridge.status), stopping: stop.stopping.aborted });
  const { listen } = config.http;
  const http = listen === undefined || recentLines === undefined
    ? undefined
    : await (await import("../http/mod.ts")).startHttp({ config: config.http, listen, observe, recentLines, log });
  const telling = { metered: http !== undefined, eventLog };
  const outboxRoutes = new OutboxRoutes();
  bridges = await Promise.all(
    config.bridges.map((bridge, i) => Bridge.create(bridge, connections[i]!, onChange, outboxRoutes, telling)),
  );
  try {
    await Promise.all(bridges.map((bridge) => bridge.run(stop.stopping, stop.deadline)));
  } catch (error) {
    await Promise.all(bridges.map((bridge) => bridge.abort()));
    throw error;
  } finally {
    http?.close();
  }
  log.info("stopped");
  return 0;
}

/** Of each bridge, in their order. Throws ConfigError. */
export function parseConnections(bridges: readonly BridgeConfig[]): ConnectionParams[] {
  const outside = uriEnvironment();
  const problems: string[] = [];
  const connections = bridges.map((bridge) => {
    try {
      return parseConnectionUri(bridge.postgresqlUri, outside);
    } catch (error) {
      if (!(error instanceof ConnectionUriError)) throw error;
      problems.push(`[${bridge.name}] ${bridge.name === "database" ? "uri" : "postgresql_uri"}: ${error.message}`);
      return undefined;
    }
  });
  if (problems.length > 0) throw new ConfigError(problems);
  return connections as ConnectionParams[];
}

/** What remains after the shutdown timeout (status, farewells) gets this long, in milliseconds, before the program is cut off. */
const FAREWELL_MS = 5_000;

/** The first signal drains, the second ends at once. */
function stopOnSignals(log: Logger, timeoutMs: number): { stopping: AbortSignal; deadline: AbortSignal } {
  const stopping = new AbortController();
  const deadline = new AbortController();
  const onSignal = (signal: "SIGTERM" | "SIGINT") => {
    if (stopping.signal.aborted) {
      log.warn("{signal} again: ending at once", { signal });
      process.exit(signal === "SIGINT" ? 130 : 143);
    }
    log.info("{signal}: stopping, waiting up to {seconds} s for acknowledgements (shutdown_timeout)", {
      signal,
      seconds: timeoutMs / 1000,
    });
    stopping.abort(new Error("stopping"));
    setTimeout(() => deadline.abort(new Error("shutdown timeout")), timeoutMs);
    setTimeout(() => {
      log.error("stopping takes too long: ending at once; what is not acknowledged is sent again at the next start");
      process.exit(1);
    }, timeoutMs + FAREWELL_MS);
  };
  process.on("SIGTERM", () => onSignal("SIGTERM"));
  process.on("SIGINT", () => onSignal("SIGINT"));
  return { stopping: stopping.signal, deadline: deadline.signal };
}

/** A fault in a library's callback must not leave a program that looks alive: what is not acknowledged is sent again. */
function exitOnUnexpected(log: Logger): void {
  const onError = (error: unknown) => {
    log.fatal("unexpected error, ending: {reason}", {
      reason: errorText(error),
      stack: error instanceof Error ? error.stack ?? "" : "",
    });
    process.exit(1);
  };
  process.on("uncaughtException", onError);
  process.on("unhandledRejection", onError);
}
