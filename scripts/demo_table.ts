/** The table of `scripts/demo`, as wide as the terminal. */

import process from "node:process";

/** What a consumer received: where (routing key, topic or channel), what, when. */
export interface Arrival {
  readonly place: string;
  readonly payload: string;
  readonly atMs: number;
}

const WIDTH = Math.min(Math.max(process.stdout.columns ?? 150, 100), 200);
const COLOURED = process.stdout.isTTY === true && process.env.NO_COLOR === undefined;
const BROKER_WIDTH = 9;
const PLACE_WIDTH = 21;
const TIME_WIDTH = 9;
const SENT_WIDTH = Math.floor((WIDTH - BROKER_WIDTH - PLACE_WIDTH - TIME_WIDTH - 8) * 0.42);
const MESSAGE_WIDTH = WIDTH - SENT_WIDTH - BROKER_WIDTH - PLACE_WIDTH - TIME_WIDTH - 8;

let sentLines: string[] = [];

export function printText(text: string): void {
  process.stdout.write(`${text}\n`);
}

export function printHeading(): void {
  const cells = [
    "SENT TO POSTGRESQL".padEnd(SENT_WIDTH),
    "RECEIVED".padEnd(BROKER_WIDTH),
    "ROUTING KEY / TOPIC".padEnd(PLACE_WIDTH),
    "MESSAGE".padEnd(MESSAGE_WIDTH),
    "AFTER".padStart(TIME_WIDTH),
  ];
  printText(`\n${bold(cells.join("  "))}`);
}

/** Begins the rows of one statement; its text stands beside what was received. */
export function printRow(statement: string): void {
  printText(dim("─".repeat(WIDTH)));
  sentLines = wrap(statement, SENT_WIDTH);
}

export function printReceived(broker: string, arrivals: readonly Arrival[], sentAtMs: number): void {
  if (arrivals.length === 0) printLine(broker, "", "(nothing)", "");
  arrivals.forEach(({ place, payload, atMs }, index) => {
    const time = `${(atMs - sentAtMs).toFixed(1)} ms`;
    printLine(index === 0 ? broker : "", place === "" ? '""' : place, payload, time);
  });
}

/** Cuts the text to `width` characters and shows that it did. */
export function shorten(text: string, width: number): string {
  return text.length <= width ? text : `${text.slice(0, width - 1)}…`;
}

function printLine(broker: string, place: string, payload: string, time: string): void {
  const cells = [
    (sentLines.shift() ?? "").padEnd(SENT_WIDTH),
    bold(broker.padEnd(BROKER_WIDTH)),
    shorten(place, PLACE_WIDTH).padEnd(PLACE_WIDTH),
    shorten(withoutTableName(payload), MESSAGE_WIDTH).padEnd(MESSAGE_WIDTH),
    dim(time.padStart(TIME_WIDTH)),
  ];
  printText(cells.join("  "));
}

/** Every record names its table; leaving that out of the picture makes room for the values. */
function withoutTableName(payload: string): string {
  return payload.replace(/^(\{"action":"[IUD]",)"schema":"[^"]*","table":"[^"]*"/, "$1…");
}

function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(" ")) {
    if (line !== "" && line.length + 1 + word.length > width) {
      lines.push(line);
      line = `  ${word}`;
    } else {
      line = line === "" ? word : `${line} ${word}`;
    }
  }
  return [...lines, line];
}

function bold(text: string): string {
  return COLOURED ? `\x1b[1m${text}\x1b[0m` : text;
}

function dim(text: string): string {
  return COLOURED ? `\x1b[2m${text}\x1b[0m` : text;
}
