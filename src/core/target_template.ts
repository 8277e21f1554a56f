/** Targets with placeholders, as in `topic:wal/{schema}/{table}`: compiled once, filled in for each event. */

import { Buffer } from "node:buffer";
import { type Event, WAL_CHANNEL } from "./event.ts";
import type { Target } from "./upstream.ts";

export const PLACEHOLDERS = ["schema", "table", "action", "key", "channel"] as const;
export type Placeholder = (typeof PLACEHOLDERS)[number];

/** Those that only an event of the WAL has a value for. */
export const WAL_PLACEHOLDERS: readonly Placeholder[] = ["schema", "table", "action"];

/** Stands for a value that an event does not have (`{table}` of a transaction's end), and for what a kind forbids. */
export const SUBSTITUTE = "_";

/** Makes any text fit to stand in the names of one kind of upstream. */
export type Clean = (value: string) => string;

/** Of routing keys that came last: a bulk change of a few tables then makes no name at all. */
const MAX_KNOWN_TARGETS = 256;

/** How far into a record its table is looked for, in bytes: two names of 63 bytes, escaped, and what precedes them. */
const HEADER_BYTES = 1024;

const PLACEHOLDER = /\{([^{}]*)\}/g;

/** The names in braces, in their order, whether they are placeholders or not. */
export function bracedNames(text: string): string[] {
  return [...text.matchAll(PLACEHOLDER)].map((match) => match[1] ?? "");
}

export class TargetTemplate {
  readonly #target: Target;
  readonly #clean: Clean;
  readonly #known = new Map<string, Target>();

  constructor(target: Target, clean: Clean) {
    this.#target = target;
    this.#clean = clean;
  }

  /** Where `event` goes. The same object for events of the same routing key, as long as it is remembered. */
  of(event: Event): Target {
    const { routingKey } = event;
    const known = this.#known.get(routingKey);
    if (known !== undefined) return known;
    const row = rowOf(event);
    const values = { ...row, key: routingKey, channel: event.channel };
    const name = this.#target.name.replace(PLACEHOLDER, (whole, placeholder: string) => {
      if (!Object.hasOwn(values, placeholder)) return whole;
      return this.#clean(values[placeholder as Placeholder]) || SUBSTITUTE;
    });
    const target: Target = { type: this.#target.type, name, filledIn: true };
    if (!row.isAmbiguous) {
      if (this.#known.size >= MAX_KNOWN_TARGETS) this.#known.clear();
      this.#known.set(routingKey, target);
    }
    return target;
  }
}

/** Undefined for a target without placeholders, which goes as it stands. */
export function compileTarget(target: Target, clean: Clean): TargetTemplate | undefined {
  const holdsOne = bracedNames(target.name).some((name) => (PLACEHOLDERS as readonly string[]).includes(name));
  return holdsOne ? new TargetTemplate(target, clean) : undefined;
}

/** What a target becomes for an event that might come through this channel; the target's own name without placeholders. */
export function sampleTargetName(target: Target, channel: string, clean: Clean): string {
  const isWal = channel === WAL_CHANNEL;
  return compileTarget(target, clean)?.of({
    id: "0/0-0",
    type: isWal ? "wal" : "notify",
    channel,
    routingKey: isWal ? "public.sample.insert" : "sample",
    payload: new Uint8Array(0),
    json: isWal,
    receivedAtMs: 0,
  }).name ?? target.name;
}

interface Row {
  readonly schema: string;
  readonly table: string;
  readonly action: string;
  /** Whether another table may have the same routing key. */
  readonly isAmbiguous: boolean;
}

/** From the routing key, `schema.table.insert` or a single word; names that hold dots themselves are looked up. */
function rowOf({ type, routingKey, payload }: Event): Row {
  const none = { schema: "", table: "", isAmbiguous: false };
  if (type !== "wal") return { ...none, action: "" };
  const parts = routingKey.split(".");
  const action = parts.pop() ?? "";
  const [first = "", second = ""] = parts;
  switch (parts.length) {
    case 0:
      return { ...none, action };
    case 1:
      return { ...none, table: first, action };
    case 2:
      return { schema: first, table: second, action, isAmbiguous: false };
    default:
      return { ...relationOf(parts, payload), action, isAmbiguous: true };
  }
}

/** Finds the one dot that separates schema and table: only with it do the names stand in the record. */
function relationOf(parts: readonly string[], payload: Uint8Array): { schema: string; table: string } {
  const header = Buffer.from(payload.buffer, payload.byteOffset, Math.min(payload.byteLength, HEADER_BYTES));
  for (let dot = 1; dot < parts.length; dot++) {
    const schema = parts.slice(0, dot).join(".");
    const table = parts.slice(dot).join(".");
    // Within a JSON string the quotes would be escaped: this can only be the record's own head.
    if (header.includes(`"schema":${JSON.stringify(schema)},"table":${JSON.stringify(table)}`)) {
      return { schema, table };
    }
  }
  return { schema: parts[0] ?? "", table: parts.slice(1).join(".") };
}
