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

/** So many headers are compared before a record is read in full. */
const KNOWN_HEADERS = 8;

/** A record up to the end of its table's name, which decides its routing key. */
interface KnownHeader {
  readonly bytes: Buffer;
  readonly routingKey: string;
}

/**
 * Routing keys by the first bytes of the record, for the tables that changed last: a bulk change of a few tables then
 * makes no string at all, where `routingKeyOf` makes four each time.
 */
export class RoutingKeys {
  /** The one used last comes first. */
  readonly #known: KnownHeader[] = [];

  /** The same as `routingKeyOf`. */
  of(buffer: Buffer, start: number, end: number): string {
    const known = this.#known;
    for (let i = 0; i < known.length; i++) {
      const header = known[i]!;
      if (!startsWith(buffer, start, end, header.bytes)) continue;
      if (i > 0) {
        known.splice(i, 1);
        known.unshift(header);
      }
      return header.routingKey;
    }
    const routingKey = routingKeyOf(buffer, start, end);
    const headerEnd = headerEndOf(buffer, start, end);
    if (headerEnd !== undefined) {
      known.unshift({ bytes: Buffer.from(buffer.subarray(start, headerEnd)), routingKey });
      if (known.length > KNOWN_HEADERS) known.pop();
    }
    return routingKey;
  }
}

/** Compares from the end, where the headers of different tables differ. */
function startsWith(buffer: Buffer, start: number, end: number, bytes: Buffer): boolean {
  if (end - start < bytes.length) return false;
  for (let i = bytes.length - 1; i >= 0; i--) if (buffer[start + i] !== bytes[i]) return false;
  return true;
}

/** Where the table's name ends, if nothing comes before schema and table that differs from record to record. */
function headerEndOf(buffer: Buffer, start: number, end: number): number | undefined {
  let offset = start + FIELDS_OFFSET;
  for (const name of ['"schema":', '"table":']) {
    if (offset + name.length > end || buffer.toString("latin1", offset, offset + name.length) !== name) {
      if (name === '"schema":') continue;
      return undefined;
    }
    const valueStart = offset + name.length;
    const valueEnd = endOfScalar(buffer, valueStart, end);
    if (valueEnd > end || buffer[valueStart] !== QUOTE) return undefined;
    if (name === '"table":') return valueEnd;
    offset = valueEnd + 1;
  }
  return undefined;
}

/**
 * When a transaction was committed, in milliseconds since the Unix epoch, from its record of action B; undefined without
 * `include-timestamp`. Written as `2026-11-22 11:12:13.123456+00`, in the time zone of the session, whatever DateStyle is
 * (`timestamptz_to_str` in PostgreSQL's timestamp.c).
 */
export function commitTimeOf(buffer: Buffer, start: number, end: number): number | undefined {
  const match = TIMESTAMP.exec(buffer.toString("latin1", start, end));
  if (match === null) return undefined;
  const [, date, time, hours, minutes] = match;
  const ms = Date.parse(`${date}T${time}${hours}:${minutes ?? "00"}`);
  return Number.isNaN(ms) ? undefined : ms;
}

const TIMESTAMP = /"timestamp":"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d(?:\.\d{1,6})?)([+-]\d\d)(?::(\d\d))?"/;

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
