/** The program's log: JSON lines, or a readable form on a terminal, always on stderr since stdout may carry events. */

import process from "node:process";
import {
  compareLogLevel,
  configureSync,
  getAnsiColorFormatter,
  getLogger,
  type Logger,
  type LogRecord,
} from "@logtape/logtape";
import type { LogConfig, LogFormat, LogLevel } from "./config/config.ts";

export type { Logger };

/** Whether lines of level debug are written; changes at run time. */
export interface DebugSwitch {
  readonly enabled: boolean;
  /** Turns debug on, or back to the configured level. */
  toggle(): void;
}

export interface RecentLine {
  /** In milliseconds since the Unix epoch. */
  readonly time: number;
  readonly level: string;
  readonly part: string;
  readonly message: string;
}

/** The last warnings and errors, for the status page. */
export class RecentLines {
  readonly #lines: RecentLine[] = [];

  add(record: LogRecord): void {
    if (compareLogLevel(record.level, "warning") < 0) return;
    this.#lines.push({
      time: record.timestamp,
      level: record.level,
      part: partOf(record),
      message: messageOf(record),
    });
    if (this.#lines.length > RECENT_LINES) this.#lines.shift();
  }

  newestFirst(): readonly RecentLine[] {
    return this.#lines.toReversed();
  }
}

const RECENT_LINES = 30;

/** `recentLines` receives what is written. */
export function configureLog(config: LogConfig, recentLines?: RecentLines): DebugSwitch {
  const debug = {
    enabled: config.level === "debug",
    toggle() {
      this.enabled = !this.enabled;
      applyLog(config.format, this.enabled ? "debug" : config.level === "debug" ? "info" : config.level, recentLines);
    },
  };
  applyLog(config.format, config.level, recentLines);
  return debug;
}

function applyLog(form: LogFormat, level: LogLevel, recentLines: RecentLines | undefined): void {
  const pretty = form === "pretty" || (form === "auto" && process.stderr.isTTY === true);
  const format = pretty ? prettyFormatter() : jsonLine;
  configureSync({
    reset: true,
    sinks: {
      stderr: (record) => {
        process.stderr.write(format(record));
        recentLines?.add(record);
      },
    },
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

function partOf({ category }: LogRecord): string {
  return category.slice(1).join(" ");
}

function messageOf({ message }: LogRecord): string {
  return message.map(String).join("");
}

/** One object a line: time, level, part of the program, the message, and the values in it under their own names. */
function jsonLine(record: LogRecord): string {
  const line = {
    time: new Date(record.timestamp).toISOString(),
    level: record.level,
    part: partOf(record),
    message: messageOf(record),
    ...record.properties,
  };
  return `${JSON.stringify(line)}\n`;
}
