/** The program's log: JSON lines, or a readable form on a terminal, always on stderr since stdout may carry events. */

import { configureSync, getAnsiColorFormatter, getJsonLinesFormatter, getLogger, type Logger } from "@logtape/logtape";
import type { LogConfig } from "./config/config.ts";

export type { Logger };

export function configureLog(config: LogConfig): void {
  const pretty = config.format === "pretty" || (config.format === "auto" && process.stderr.isTTY === true);
  const format = pretty
    ? getAnsiColorFormatter({ timestamp: "time", category: (names) => names.slice(1).join(" ") })
    : getJsonLinesFormatter({ properties: "flatten" });
  configureSync({
    reset: true,
    sinks: { stderr: (record) => process.stderr.write(format(record)) },
    loggers: [
      { category: ["pg-event-proxy"], lowestLevel: config.level, sinks: ["stderr"] },
      { category: ["logtape", "meta"], lowestLevel: "warning", sinks: ["stderr"] },
    ],
  });
}

/** The logger of one part of the program: `logger("local", "amqp")`. */
export function logger(...path: string[]): Logger {
  return getLogger(["pg-event-proxy", ...path]);
}
