/** One event as a line for people. */

import type { Colour, Paint } from "../cli/colours.ts";
import { harmlessText } from "../cli/colours.ts";
import { type Event, WAL_CHANNEL } from "../core/event.ts";
import { parseRawJson, type RawJson, textOf } from "./raw_json.ts";

/** wal2json README, "Format version 2". */
const ACTIONS: Readonly<Record<string, readonly [word: string, colour: Colour]>> = {
  I: ["INSERT", "green"],
  U: ["UPDATE", "yellow"],
  D: ["DELETE", "red"],
  T: ["TRUNCATE", "red"],
  M: ["MESSAGE", "cyan"],
};
/** The longest word. */
const WORD_WIDTH = 8;

/** `12:34:56.789 INSERT   public.items  id=1 name="pen"` with its line end; nothing in it that a terminal would obey. */
export function terminalLine(event: Event, paint: Paint): string {
  const time = paint("dim", timeText(event.receivedAtMs));
  const text = Buffer.from(event.payload).toString();
  const change = event.channel === WAL_CHANNEL ? changeText(text, paint) : undefined;
  if (change !== undefined) return `${time} ${change}\n`;
  const key = event.routingKey === "" ? "" : `${paint("bold", harmlessText(event.routingKey))}  `;
  return `${time} ${word("NOTIFY", "blue", paint)} ${paint("cyan", harmlessText(event.channel))}  ${key}${
    harmlessText(text)
  }\n`;
}

/** Local time, as a person at a terminal has it. */
function timeText(atMs: number): string {
  const at = new Date(atMs);
  const pad = (value: number, width: number) => String(value).padStart(width, "0");
  return `${pad(at.getHours(), 2)}:${pad(at.getMinutes(), 2)}:${pad(at.getSeconds(), 2)}.${
    pad(at.getMilliseconds(), 3)
  }`;
}

function word(text: string, colour: Colour, paint: Paint): string {
  return paint(colour, text.padEnd(WORD_WIDTH));
}

function changeText(text: string, paint: Paint): string | undefined {
  const record = parseRawJson(text);
  if (!(record instanceof Map)) return undefined;
  const action = ACTIONS[textOf(record.get("action"))];
  if (action === undefined) return undefined;
  const [name, colour] = action;
  const table = [record.get("schema"), record.get("table")].map(textOf).filter((part) => part !== "").join(".");
  const values = fieldsOf(record.get("columns"));
  const old = fieldsOf(record.get("identity"));
  // Of an update what differs is told; of a delete there is nothing else.
  const changed = [...old].filter(([column, value]) => values.get(column) !== value);
  const details = name === "MESSAGE"
    ? `${paint("bold", harmlessText(textOf(record.get("prefix"))))}  ${harmlessText(textOf(record.get("content")))}`
    : [
      paint("bold", harmlessText(table)),
      ...values.size === 0 ? [] : [fieldsText(values, paint)],
      ...changed.length === 0 ? [] : [`${values.size === 0 ? "" : paint("dim", "was ")}${fieldsText(changed, paint)}`],
    ].join("  ");
  return `${word(name, colour, paint)} ${details}`;
}

/** `[{"name":"id","value":1},…]` */
function fieldsOf(columns: RawJson | undefined): Map<string, string> {
  const fields = new Map<string, string>();
  if (!Array.isArray(columns)) return fields;
  for (const column of columns) {
    const value = column instanceof Map ? column.get("value") : undefined;
    if (column instanceof Map && typeof value === "string") fields.set(textOf(column.get("name")), value);
  }
  return fields;
}

function fieldsText(fields: Iterable<readonly [string, string]>, paint: Paint): string {
  return [...fields].map(([name, value]) => `${paint("dim", `${harmlessText(name)}=`)}${harmlessText(value)}`).join(
    " ",
  );
}
