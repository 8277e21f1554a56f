/** The program's log: JSON lines, or a readable form on a terminal, always on stderr since stdout may carry events. */

import process from "node:process";
import { configureSync, getAnsiColorFormatter, getLogger, type Logger, type LogRecord } from "@logtape/logtape";
import type { LogConfig, LogFormat, LogLevel } from "./config/config.ts";

export type { Logger };

/** Whether lines of level debug are written; changes at run time. */
export interface DebugSwitch {
  readonly enabled: boolean;
  /** Turns debug on, or back to the configured level. */
  toggle(): void;
}

export function configureLog(config: LogConfig): DebugSwitch {
  const debug = {
    enabled: config.level === "debug",
    toggle() {
      this.enabled = !this.enabled;
      applyLog(config.format, this.enabled ? "debug" : config.level === "debug" ? "info" : config.level);
    },
  };
  applyLog(config.format, config.level);
  return debug;
}

function applyLog(form: LogFormat, level: LogLevel): void {
  const pretty = form === "pretty" || (form === "auto" && process.stderr.isTTY === true);
  const format = pretty ? prettyFormatter() : jsonLine;
  configureSync({
    reset: true,
    sinks: { stderr: (record) => process.stderr.write(format(record)) },
    loggers: [
      { category: ["pg-event-proxy"], lowestLevel: level, sinks: ["stderr"] },
      { category: ["logtape", "meta"], lowestLevel: "warning", sinks: ["stderr"] },
    ],
  });
}

/** The logger of one part of the program: `logger("local", "amqp")`. */
export function logger(...path: string[]): Logger {
  return getLogger(["pg-event-proxy", ...path]);
}

function prettyFormatter() {
  return getAnsiColorFormatter({
    timestamp: "time",
    category: (names) => names.slice(1).join(" ") || "main",
    value: (value) => String(value),
  });
}

/** One object a line: time, level, part of the program, the message, and the values in it under their own names. */
function jsonLine(record: LogRecord): string {
  const line = {
    time: new Date(record.timestamp).toISOString(),
    level: record.level,
    part: record.category.slice(1).join(" "),
    message: record.message.map(String).join(""),
    ...record.properties,
  };
  return `${JSON.stringify(line)}\n`;
}
