/**
 * The messages of the frontend/backend protocol 3.0 and of streaming replication, as pure functions between bytes and
 * values. PostgreSQL documentation, "Message Formats" and "Streaming Replication Protocol".
 */

import type { Lsn } from "../core/lsn.ts";

/** Types of messages sent by the server. */
export const enum Backend {
  Authentication = 0x52, // R
  BackendKeyData = 0x4b, // K
  CommandComplete = 0x43, // C
  CopyBothResponse = 0x57, // W
  CopyData = 0x64, // d
  CopyDone = 0x63, // c
  CopyOutResponse = 0x48, // H
  DataRow = 0x44, // D
  EmptyQueryResponse = 0x49, // I
  ErrorResponse = 0x45, // E
  NegotiateProtocolVersion = 0x76, // v
  NoticeResponse = 0x4e, // N
  NotificationResponse = 0x41, // A
  ParameterStatus = 0x53, // S
  ReadyForQuery = 0x5a, // Z
  RowDescription = 0x54, // T
}

/** The first byte of a CopyData body in a replication stream. */
export const enum Replication {
  XLogData = 0x77, // w
  PrimaryKeepalive = 0x6b, // k
  StandbyStatusUpdate = 0x72, // r
}

/** XLogData: type, start of the WAL data (8), end of the WAL on the server (8), time (8), then the data. */
export const XLOG_DATA_HEADER_BYTES = 25;
/** Where the LSN of XLogData and of a keepalive stands in its body. */
export const REPLICATION_LSN_OFFSET = 1;
/** Primary keepalive: type, end of the WAL on the server (8), time (8), whether a reply is asked for (1). */
export const KEEPALIVE_BYTES = 18;

export const SSL_REQUEST: Uint8Array = Uint8Array.of(0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f);
export const TERMINATE: Uint8Array = Uint8Array.of(0x58, 0, 0, 0, 4);
export const COPY_DONE: Uint8Array = Uint8Array.of(0x63, 0, 0, 0, 4);

export function startupMessage(parameters: Readonly<Record<string, string>>): Buffer {
  const body = Object.entries(parameters).map(([name, value]) => `${name}\0${value}\0`).join("") + "\0";
  const bytes = Buffer.byteLength(body);
  const message = Buffer.alloc(8 + bytes);
  message.writeInt32BE(8 + bytes, 0);
  message.writeInt32BE(196608, 4); // protocol version 3.0
  message.write(body, 8);
  return message;
}

function message(type: string, body: Uint8Array): Buffer {
  const result = Buffer.alloc(5 + body.length);
  result.write(type, 0, "latin1");
  result.writeInt32BE(4 + body.length, 1);
  result.set(body, 5);
  return result;
}

export function query(sql: string): Buffer {
  return message("Q", Buffer.from(`${sql}\0`));
}

export function passwordMessage(password: string): Buffer {
  return message("p", Buffer.from(`${password}\0`));
}

export function saslInitialResponse(mechanism: string, response: string): Buffer {
  const data = Buffer.from(response);
  const length = Buffer.alloc(4);
  length.writeInt32BE(data.length);
  return message("p", Buffer.concat([Buffer.from(`${mechanism}\0`), length, data]));
}

export function saslResponse(response: string): Buffer {
  return message("p", Buffer.from(response));
}

/** Microseconds between the Unix epoch and PostgreSQL's, 2000-01-01. */
const POSTGRES_EPOCH_US = 946_684_800_000_000n;

export interface StandbyStatus {
  /** The last position received. */
  readonly writtenLsn: Lsn;
  /** The last position that need not be sent again: a logical slot's `confirmed_flush_lsn`. */
  readonly flushedLsn: Lsn;
  readonly appliedLsn: Lsn;
  readonly replyRequested: boolean;
}

/** CopyData with a standby status update. */
export function standbyStatusUpdate(status: StandbyStatus, nowMs: number): Buffer {
  const body = Buffer.alloc(34);
  body[0] = Replication.StandbyStatusUpdate;
  body.writeBigUInt64BE(status.writtenLsn, 1);
  body.writeBigUInt64BE(status.flushedLsn, 9);
  body.writeBigUInt64BE(status.appliedLsn, 17);
  body.writeBigInt64BE(BigInt(Math.trunc(nowMs)) * 1000n - POSTGRES_EPOCH_US, 25);
  body[33] = status.replyRequested ? 1 : 0;
  return message("d", body);
}

/** The fields of ErrorResponse and NoticeResponse by their one-letter codes: "Error and Notice Message Fields". */
export type ErrorFields = Readonly<Record<string, string>>;

export function parseErrorFields(buffer: Buffer, start: number, end: number): ErrorFields {
  const fields: Record<string, string> = {};
  let offset = start;
  while (offset < end && buffer[offset] !== 0) {
    const code = String.fromCharCode(buffer[offset]!);
    const text = cString(buffer, offset + 1, end);
    fields[code] = text.value;
    offset = text.next;
  }
  return fields;
}

/** A string up to its zero byte, or up to `end` where that is missing. */
export function cString(buffer: Buffer, start: number, end: number): { value: string; next: number } {
  const zero = buffer.indexOf(0, start);
  const stop = zero === -1 || zero >= end ? end : zero;
  return { value: buffer.toString("utf8", start, stop), next: stop + 1 };
}

/** The columns of a DataRow as text; null for NULL. Throws RangeError when the lengths do not fit the body. */
export function parseDataRow(buffer: Buffer, start: number, end: number): (string | null)[] {
  if (start + 2 > end) throw new RangeError("a DataRow message ends before its column count");
  const count = buffer.readInt16BE(start);
  const columns: (string | null)[] = [];
  let offset = start + 2;
  for (let i = 0; i < count; i++) {
    if (offset + 4 > end) throw new RangeError("a DataRow message ends before the length of a column");
    const length = buffer.readInt32BE(offset);
    offset += 4;
    if (length === -1) {
      columns.push(null);
      continue;
    }
    if (length < 0 || offset + length > end) {
      throw new RangeError("a column of a DataRow message reaches beyond its end");
    }
    columns.push(buffer.toString("utf8", offset, offset + length));
    offset += length;
  }
  return columns;
}

/** SASL mechanisms offered by AuthenticationSASL, whose body starts after the code. */
export function parseSaslMechanisms(buffer: Buffer, start: number, end: number): string[] {
  const mechanisms: string[] = [];
  let offset = start;
  while (offset < end && buffer[offset] !== 0) {
    const name = cString(buffer, offset, end);
    mechanisms.push(name.value);
    offset = name.next;
  }
  return mechanisms;
}

export function quoteIdentifier(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}

/** A string literal that means the same whatever `standard_conforming_strings` says. */
export function quoteLiteral(text: string): string {
  const quoted = `'${text.replaceAll("'", "''")}'`;
  return text.includes("\\") ? ` E${quoted.replaceAll("\\", "\\\\")}` : quoted;
}
