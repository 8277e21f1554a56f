/**
 * Reads what routing needs from the first bytes of a wal2json record of format version 2, without parsing it:
 * `{"action":"I",["xid":…,"timestamp":…,"origin":…,"lsn":…,"nextlsn":…,]"schema":"public","table":"t","columns":…`
 * (wal2json README, "Format version 2").
 */

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const COMMA = 0x2c;
const COLON = 0x3a;

/** `{"action":"` has eleven bytes; the letter follows. */
const ACTION_OFFSET = 11;
/** After the letter, its closing quote and the comma. */
const FIELDS_OFFSET = 14;

/** The letter of the action as a byte: I, U, D, T, B, C, M; 0 where the record does not begin as wal2json's do. */
export function actionOf(buffer: Buffer, start: number, end: number): number {
  if (end - start <= ACTION_OFFSET + 1 || buffer[start] !== 0x7b || buffer[start + ACTION_OFFSET - 1] !== QUOTE) {
    return 0;
  }
  return buffer[start + ACTION_OFFSET]!;
}

const VERBS: Readonly<Record<number, string>> = {
  0x49: ".insert",
  0x55: ".update",
  0x44: ".delete",
  0x54: ".truncate",
};

/** `schema.table.insert` and so on for a row change or a truncation; empty where the names are not found. */
export function routingKeyOf(buffer: Buffer, start: number, end: number): string {
  const verb = VERBS[actionOf(buffer, start, end)] ?? "";
  let schema = "";
  let offset = start + FIELDS_OFFSET;
  while (offset < end && buffer[offset] === QUOTE) {
    const nameEnd = closingQuote(buffer, offset + 1, end);
    const valueStart = nameEnd + 2;
    if (valueStart >= end || buffer[nameEnd + 1] !== COLON) return "";
    const valueEnd = endOfScalar(buffer, valueStart, end);
    if (valueEnd > end) return "";
    // "schema" has six letters and "table" five; no other field before them begins alike and is as long.
    if (nameEnd - offset === 7 && buffer[offset + 1] === 0x73) schema = `${stringAt(buffer, valueStart, valueEnd)}.`;
    else if (nameEnd - offset === 6 && buffer[offset + 1] === 0x74) {
      return `${schema}${stringAt(buffer, valueStart, valueEnd)}${verb}`;
    }
    if (buffer[valueEnd] !== COMMA) return "";
    offset = valueEnd + 1;
  }
  return "";
}

/** More tables than this and the cache starts anew. */
const MAX_ROUTING_KEYS = 4096;

interface KnownRoutingKey {
  /** The JSON strings of schema and table as they stand in the record; the schema's is empty where there is none. */
  readonly schema: Buffer;
  readonly table: Buffer;
  readonly action: number;
  readonly routingKey: string;
}

/**
 * Routing keys of the tables seen, found by their bytes: a bulk change of one table then makes no string at all, where
 * `routingKeyOf` makes four.
 */
export class RoutingKeys {
  readonly #known = new Map<number, KnownRoutingKey>();

  /** The same as `routingKeyOf`. */
  of(buffer: Buffer, start: number, end: number): string {
    const action = actionOf(buffer, start, end);
    let hash = action;
    let schemaStart = 0;
    let schemaEnd = 0;
    let offset = start + FIELDS_OFFSET;
    while (offset < end && buffer[offset] === QUOTE) {
      const nameEnd = closingQuote(buffer, offset + 1, end);
      const valueStart = nameEnd + 2;
      if (valueStart >= end || buffer[nameEnd + 1] !== COLON) return "";
      const valueEnd = endOfScalar(buffer, valueStart, end);
      if (valueEnd > end) return "";
      const nameLength = nameEnd - offset - 1;
      if (nameLength === 6 && buffer[offset + 1] === 0x73) {
        schemaStart = valueStart;
        schemaEnd = valueEnd;
        hash = hashOf(hash, buffer, valueStart, valueEnd);
      } else if (nameLength === 5 && buffer[offset + 1] === 0x74) {
        hash = hashOf(hash, buffer, valueStart, valueEnd);
        const known = this.#known.get(hash);
        if (
          known !== undefined && known.action === action && equals(known.schema, buffer, schemaStart, schemaEnd) &&
          equals(known.table, buffer, valueStart, valueEnd)
        ) return known.routingKey;
        const routingKey = routingKeyOf(buffer, start, end);
        if (this.#known.size >= MAX_ROUTING_KEYS) this.#known.clear();
        this.#known.set(hash, {
          action,
          routingKey,
          schema: Buffer.from(buffer.subarray(schemaStart, schemaEnd)),
          table: Buffer.from(buffer.subarray(valueStart, valueEnd)),
        });
        return routingKey;
      }
      if (buffer[valueEnd] !== COMMA) return "";
      offset = valueEnd + 1;
    }
    return "";
  }
}

/** FNV-1a, going on from `hash`. */
function hashOf(hash: number, buffer: Buffer, start: number, end: number): number {
  let value = hash ^ 0x811c9dc5;
  for (let i = start; i < end; i++) value = Math.imul(value ^ buffer[i]!, 0x01000193);
  return value;
}

function equals(known: Buffer, buffer: Buffer, start: number, end: number): boolean {
  if (known.length !== end - start) return false;
  for (let i = 0; i < known.length; i++) if (known[i] !== buffer[start + i]) return false;
  return true;
}

/** The head of a logical message, written by `pg_logical_emit_message`. */
export interface MessageHead {
  readonly transactional: boolean;
  readonly prefix: string;
  /** Where its content stands, a JSON string with its quotes. */
  readonly contentStart: number;
  readonly contentEnd: number;
}

/** Reads the head of a record of action M. Undefined where it is not one. */
export function messageHeadOf(buffer: Buffer, start: number, end: number): MessageHead | undefined {
  let transactional = false;
  let prefix = "";
  let offset = start + FIELDS_OFFSET;
  while (offset < end && buffer[offset] === QUOTE) {
    const nameEnd = closingQuote(buffer, offset + 1, end);
    const valueStart = nameEnd + 2;
    if (valueStart >= end || buffer[nameEnd + 1] !== COLON) return undefined;
    const valueEnd = endOfScalar(buffer, valueStart, end);
    if (valueEnd > end) return undefined;
    const name = buffer.toString("latin1", offset + 1, nameEnd);
    if (name === "transactional") transactional = buffer[valueStart] === 0x74;
    else if (name === "prefix") prefix = stringAt(buffer, valueStart, valueEnd);
    else if (name === "content") return { transactional, prefix, contentStart: valueStart, contentEnd: valueEnd };
    if (buffer[valueEnd] !== COMMA) return undefined;
    offset = valueEnd + 1;
  }
  return undefined;
}

/** The text of the JSON string at `start`, quotes included. */
export function contentOf(buffer: Buffer, head: MessageHead): string {
  return stringAt(buffer, head.contentStart, head.contentEnd);
}

/** The offset of the quote that ends the string whose first character is at `offset`. */
function closingQuote(buffer: Buffer, offset: number, end: number): number {
  let i = offset;
  while (i < end && buffer[i] !== QUOTE) i += buffer[i] === BACKSLASH ? 2 : 1;
  return i;
}

/** The offset just behind a string, number or literal. */
function endOfScalar(buffer: Buffer, offset: number, end: number): number {
  if (buffer[offset] === QUOTE) return closingQuote(buffer, offset + 1, end) + 1;
  let i = offset;
  while (i < end && buffer[i] !== COMMA && buffer[i] !== 0x7d) i++;
  return i;
}

/** The text of a JSON string; where its escapes are none of JSON's, the characters between its quotes as they are. */
function stringAt(buffer: Buffer, start: number, end: number): string {
  const text = buffer.toString("utf8", start, end);
  if (!text.includes("\\")) return text.slice(1, -1);
  try {
    return String(JSON.parse(text));
  } catch {
    return text.slice(1, -1);
  }
}
