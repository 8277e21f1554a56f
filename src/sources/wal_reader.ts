/** Turns the replication stream into events and tells the tracker where transactions begin and end. */

import type { AckTracker, Transaction } from "../core/ack_tracker.ts";
import { type Event, type EventType, WAL_CHANNEL } from "../core/event.ts";
import { type Lsn, NO_LSN, readLsn, readLsnText } from "../core/lsn.ts";
import { parseNotification } from "../core/notification.ts";
import type { Sink } from "../core/source.ts";
import { KEEPALIVE_BYTES, Replication, REPLICATION_LSN_OFFSET, XLOG_DATA_HEADER_BYTES } from "../postgres/protocol.ts";
import { actionOf, commitTimeOf, contentOf, messageHeadOf, RoutingKeys } from "../postgres/wal2json.ts";

const BEGIN = 0x42; // B
const COMMIT = 0x43; // C
const MESSAGE = 0x4d; // M

class WalEvent implements Event {
  readonly channel: string;
  readonly routingKey: string;
  readonly payload: Uint8Array;
  readonly json: boolean;
  readonly receivedAtMs: number;
  readonly #transactionLsn: string;
  readonly #ordinal: number | string;

  constructor(
    transactionLsn: string,
    ordinal: number | string,
    channel: string,
    routingKey: string,
    payload: Uint8Array,
    json: boolean,
    receivedAtMs: number,
  ) {
    this.#transactionLsn = transactionLsn;
    this.#ordinal = ordinal;
    this.channel = channel;
    this.routingKey = routingKey;
    this.payload = payload;
    this.json = json;
    this.receivedAtMs = receivedAtMs;
  }

  get type(): EventType {
    return this.channel === WAL_CHANNEL ? "wal" : "notify";
  }

  /** Made when an upstream asks for it: most protocols carry it, Redis does not. */
  get id(): string {
    return `${this.#transactionLsn}-${this.#ordinal}`;
  }
}

export interface WalReaderOptions {
  readonly sink: Sink;
  readonly tracker: AckTracker;
  /** Whether BEGIN and COMMIT records are events; they are always read, since only COMMIT tells what to confirm. */
  readonly transactionRecords: boolean;
  /** Whether BEGIN records are searched for the time of the commit. */
  readonly commitTimes: boolean;
  /** A keepalive arrived. `replyRequested`: the server wants a status at once. */
  onKeepalive(walEnd: Lsn, replyRequested: boolean): void;
  /** Something was received out of PostgreSQL's order: the connection must be given up. */
  onFault(reason: string): void;
}

export class WalReader {
  readonly #options: WalReaderOptions;
  #transaction: Transaction | undefined;
  #transactionLsn = "";
  #ordinal = 0;
  #receivedLsn: Lsn = NO_LSN;
  #stopping = false;
  #faulty = false;
  #boundary = Promise.withResolvers<void>();
  #nowMs = Date.now();
  readonly #routingKeys = new RoutingKeys();
  /** Counts for the log and metrics. */
  events = 0;

  constructor(options: WalReaderOptions) {
    this.#options = options;
  }

  /** The last position received, for the standby status; never a reason to confirm. */
  get receivedLsn(): Lsn {
    return this.#receivedLsn;
  }

  /**
   * Reads on to the end of the current transaction, then discards. Resolves there: at once outside a transaction.
   * Stopping inside one would deliver its first part again at the next start.
   */
  stop(): Promise<void> {
    this.#stopping = true;
    if (this.#transaction === undefined) this.#boundary.resolve();
    return this.#boundary.promise;
  }

  /** Call before the records of a chunk: they all get this time. */
  startChunk(nowMs: number): void {
    this.#nowMs = nowMs;
  }

  /** Takes the body of one CopyData message. */
  receive(buffer: Buffer, start: number, end: number): void {
    if (this.#faulty || (this.#stopping && this.#transaction === undefined)) return;
    if (buffer[start] === Replication.XLogData) this.#record(buffer, start, end);
    else if (buffer[start] === Replication.PrimaryKeepalive && end - start >= KEEPALIVE_BYTES) {
      const walEnd = readLsn(buffer, start + REPLICATION_LSN_OFFSET);
      if (walEnd > this.#receivedLsn) this.#receivedLsn = walEnd;
      this.#options.onKeepalive(walEnd, buffer[start + KEEPALIVE_BYTES - 1] === 1);
    }
  }

  /** What follows in the stream would be counted to the wrong transaction. */
  #fault(reason: string): void {
    this.#faulty = true;
    this.#options.onFault(reason);
  }

  #record(buffer: Buffer, start: number, end: number): void {
    const payloadStart = start + XLOG_DATA_HEADER_BYTES;
    if (payloadStart > end) return this.#fault("an XLogData message is shorter than its header");
    switch (actionOf(buffer, payloadStart, end)) {
      case BEGIN:
        this.#begin(buffer, start, end);
        return;
      case COMMIT:
        this.#commit(buffer, start, end);
        return;
      case MESSAGE:
        this.#message(buffer, start, end);
        return;
      default:
        this.#change(buffer, payloadStart, end);
    }
  }

  #begin(buffer: Buffer, start: number, end: number): void {
    if (this.#transaction !== undefined) return this.#fault("a transaction began inside another");
    this.#transaction = this.#options.tracker.begin(
      this.#options.commitTimes ? commitTimeOf(buffer, start + XLOG_DATA_HEADER_BYTES, end) : undefined,
    );
    this.#transactionLsn = readLsnText(buffer, start + REPLICATION_LSN_OFFSET);
    this.#ordinal = 0;
    if (this.#options.transactionRecords) this.#emit("begin", buffer.subarray(start + XLOG_DATA_HEADER_BYTES, end));
  }

  #commit(buffer: Buffer, start: number, end: number): void {
    const transaction = this.#transaction;
    if (transaction === undefined) return this.#fault("a transaction ended that had not begun");
    this.#ordinal++;
    if (this.#options.transactionRecords) this.#emit("commit", buffer.subarray(start + XLOG_DATA_HEADER_BYTES, end));
    const endLsn = readLsn(buffer, start + REPLICATION_LSN_OFFSET);
    if (endLsn > this.#receivedLsn) this.#receivedLsn = endLsn;
    this.#transaction = undefined;
    this.#options.tracker.commit(transaction, endLsn);
    if (this.#stopping) this.#boundary.resolve();
  }

  #change(buffer: Buffer, payloadStart: number, end: number): void {
    if (this.#transaction === undefined) return this.#fault("a change arrived outside any transaction");
    this.#ordinal++;
    this.#emit(this.#routingKeys.of(buffer, payloadStart, end), buffer.subarray(payloadStart, end));
  }

  #emit(routingKey: string, payload: Uint8Array): void {
    const event = new WalEvent(
      this.#transactionLsn,
      this.#ordinal,
      WAL_CHANNEL,
      routingKey,
      payload,
      true,
      this.#nowMs,
    );
    this.events++;
    this.#options.sink.emit(event, this.#transaction!);
  }

  /** A logical message: an event of the channel that its prefix names, where one is bound; otherwise a WAL event. */
  #message(buffer: Buffer, start: number, end: number): void {
    const payloadStart = start + XLOG_DATA_HEADER_BYTES;
    const head = messageHeadOf(buffer, payloadStart, end);
    const inTransaction = this.#transaction !== undefined;
    if (head?.transactional !== false && !inTransaction) {
      return this.#fault("a transactional message arrived outside any transaction");
    }
    // A message outside a transaction has no B record, and its LSN may be that of the next transaction's first record:
    // the letter keeps their ids apart.
    const lsn = inTransaction ? this.#transactionLsn : readLsnText(buffer, start + REPLICATION_LSN_OFFSET);
    const ordinal = inTransaction ? ++this.#ordinal : "m";
    const completion = this.#transaction ?? this.#options.tracker.standalone();
    let event: Event;
    if (head !== undefined && head.prefix !== WAL_CHANNEL && this.#options.sink.accepts(head.prefix)) {
      const { routingKey, message, json } = parseNotification(contentOf(buffer, head));
      event = new WalEvent(lsn, ordinal, head.prefix, routingKey, Buffer.from(message), json, this.#nowMs);
    } else {
      event = new WalEvent(lsn, ordinal, WAL_CHANNEL, "message", buffer.subarray(payloadStart, end), true, this.#nowMs);
    }
    this.events++;
    this.#options.sink.emit(event, completion);
  }
}
