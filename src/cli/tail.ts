/** `pg-event-proxy tail`: events in the terminal, with no broker and no slot that outlives the command. */

import { randomUUID } from "node:crypto";
import process from "node:process";
import { ConfigError, errorText } from "../core/errors.ts";
import { WAL_CHANNEL } from "../core/event.ts";
import type { Sink, Source } from "../core/source.ts";
import { configureLog, logger } from "../log.ts";
import { type ConnectionParams, ConnectionUriError, parseConnectionUri } from "../postgres/connection_uri.ts";
import { QuerySession } from "../postgres/query_session.ts";
import { hostText } from "../postgres/socket.ts";
import { uriEnvironment } from "../runtime.ts";
import { NotifySource } from "../sources/notify.ts";
import { WalSource } from "../sources/wal.ts";
import { publishedTables } from "../check/table_filter.ts";
import { Printer } from "../tail/printer.ts";
import { terminalLine } from "../tail/terminal_line.ts";
import { Writer } from "../upstreams/stdout.ts";
import { painter } from "./colours.ts";

export interface TailOptions {
  readonly uri: string;
  readonly channels: readonly string[];
  readonly wal: boolean;
  /** `schema.table`, or `table` in any schema. Empty: all of them. */
  readonly tables: readonly string[];
}

const STDOUT_FD = 1;
/** How long writing what was read may take after a signal. */
const DRAIN_MS = 2_000;
/** Notifications that wait for a slow reader of the pipe; beyond that they are dropped, counted and logged. */
const NOTIFY_BUFFER_BYTES = 64 * 2 ** 20;

/** Returns the exit code. Throws ConfigError, and PermanentError or TransientError where the server cannot be watched. */
export async function tailCommand(options: TailOptions): Promise<number> {
  const params = parseUri(options.uri);
  configureLog({ level: "warning", format: "auto" });
  const stop = new Stop();
  const wal = options.wal || options.tables.length > 0 || options.channels.length === 0;
  const printer = makePrinter(options, (error) => stop.atOnce(error));
  const sources: Source[] = [];
  if (options.channels.length > 0) sources.push(notifySource(params, options, printer));
  if (wal) {
    await tellOfMissingTables(params, options.tables);
    sources.push(walSource(params, options, printer));
  }
  stop.onSignals();
  let open = 0;
  const onOpen = () => {
    if (++open === sources.length) {
      process.stderr.write(`watching ${subjectText(options, wal)} of ${whereText(params)}\n`);
    }
  };
  const { stopping, deadline } = stop;
  try {
    await Promise.all(sources.map((source) => source.run({ onOpen, stopping, deadline })));
  } catch (error) {
    if (stop.failure === undefined && !stopping.aborted) throw error;
  }
  if (stop.failure === undefined || stop.failure.code === "EPIPE") return 0;
  process.stderr.write(`pg-event-proxy: cannot write to standard output: ${errorText(stop.failure)}\n`);
  return 1;
}

function parseUri(uri: string): ConnectionParams {
  try {
    return parseConnectionUri(uri, uriEnvironment());
  } catch (error) {
    if (error instanceof ConnectionUriError) throw new ConfigError([error.message]);
    throw error;
  }
}

function makePrinter({ channels, tables }: TailOptions, onEnd: (error: NodeJS.ErrnoException) => void): Printer {
  const paint = painter();
  return new Printer({
    writer: new Writer(STDOUT_FD),
    channels,
    line: process.stdout.isTTY ? (event) => terminalLine(event, paint) : undefined,
    // Logical messages are of no table.
    wants: (event) => tables.length === 0 || event.channel !== WAL_CHANNEL || event.routingKey !== "message",
    onEnd,
  });
}

function notifySource(params: ConnectionParams, { channels }: TailOptions, sink: Sink): Source {
  return new NotifySource({
    params,
    channels,
    sink,
    log: logger("notify"),
    // Its own, so that it neither waits for an instance that runs nor keeps one waiting.
    identity: randomUUID(),
    maxBufferBytes: NOTIFY_BUFFER_BYTES,
  });
}

function walSource(params: ConnectionParams, { tables }: TailOptions, sink: Sink): Source {
  return new WalSource({
    params,
    slot: {
      name: `pg_event_proxy_tail_${randomUUID().replaceAll("-", "").slice(0, 12)}`,
      wal2jsonParams: [
        ["format-version", "2"],
        ["include-types", "0"],
        ["include-transaction", "0"],
        ...tables.length === 0 ? [] : [["add-tables", tablePatterns(tables)] as const],
      ],
    },
    failover: false,
    temporary: true,
    sink,
    log: logger("wal"),
  });
}

/** A name without a schema means that table in every schema. */
function tablePatterns(tables: readonly string[]): string {
  return tables.map((table) => /(?<!\\)\./.test(table) ? table : `*.${table}`).join(",");
}

/** A name that is spelt wrong would otherwise be waited for in silence. */
async function tellOfMissingTables(params: ConnectionParams, tables: readonly string[]): Promise<void> {
  if (tables.length === 0) return;
  const session = await QuerySession.open(params, "looking for the tables", new AbortController().signal);
  try {
    const rows = await session.query(
      "select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relkind in ('r', 'p')",
    );
    for (const table of tables) {
      const wanted = publishedTables({ name: "", wal2jsonParams: [["add-tables", tablePatterns([table])]] });
      if (rows.some(([schema, name]) => wanted.includes(schema!, name!))) continue;
      process.stderr.write(`there is no table "${table}" in database "${params.database}" yet\n`);
    }
  } finally {
    session.close();
  }
}

function subjectText({ channels, tables }: TailOptions, wal: boolean): string {
  const changes = tables.length === 0 ? "row changes" : `row changes of ${tables.join(", ")}`;
  const parts = [...wal ? [changes] : [], ...channels.map((channel) => `channel "${channel}"`)];
  return parts.join(" and ");
}

function whereText(params: ConnectionParams): string {
  return `database "${params.database}" at ${params.hosts.map(hostText).join(", ")}; Ctrl-C ends`;
}

/** What ends the command: a signal, or a reader that is gone. */
class Stop {
  readonly #stopping = new AbortController();
  readonly #deadline = new AbortController();
  /** Why nothing more can be written. */
  failure: NodeJS.ErrnoException | undefined;

  get stopping(): AbortSignal {
    return this.#stopping.signal;
  }

  get deadline(): AbortSignal {
    return this.#deadline.signal;
  }

  atOnce(failure: NodeJS.ErrnoException): void {
    this.failure = failure;
    this.#stopping.abort(new Error("standard output was closed"));
    this.#deadline.abort(new Error("standard output was closed"));
  }

  onSignals(): void {
    const onSignal = (signal: NodeJS.Signals) => {
      if (this.#stopping.signal.aborted) process.exit(signal === "SIGINT" ? 130 : 143);
      this.#stopping.abort(new Error("stopping"));
      setTimeout(() => this.#deadline.abort(new Error("stopping")), DRAIN_MS);
    };
    process.on("SIGINT", () => onSignal("SIGINT"));
    process.on("SIGTERM", () => onSignal("SIGTERM"));
  }
}
