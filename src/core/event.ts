/** What happened in the database, on its way to the upstreams. */

export type EventType = "notify" | "wal";

/**
 * One event. Immutable once emitted: every lane that carries it shares the same object.
 *
 * `payload` holds the bytes as they were received; for WAL events it may be a view into the read buffer of the
 * replication connection.
 */
export interface Event {
  /**
   * The same on every replay, so that consumers can drop repeats: `<first LSN of the transaction>-<ordinal in it>` for
   * an event read from the WAL. A notification is never replayed; its id is unique to it.
   */
  readonly id: string;
  readonly type: EventType;
  /** The PostgreSQL channel of the binding: what `NOTIFY` named, or `wal2json`. */
  readonly channel: string;
  /** May be empty. For row changes `schema.table.insert|update|delete|truncate`; `begin` or `commit` for transactions. */
  readonly routingKey: string;
  readonly payload: Uint8Array;
  /** Whether the payload is JSON: content type `application/json`, otherwise `text/plain; charset=utf-8`. */
  readonly json: boolean;
  /** When the proxy received it, in milliseconds since the Unix epoch. */
  readonly receivedAtMs: number;
}

/** The channel name in `bridge_channels` that means the WAL. */
export const WAL_CHANNEL = "wal2json";

/** The application id put on messages, and the `application_name` of the sessions in PostgreSQL. */
export const APPLICATION_NAME = "pg-event-proxy";

export function contentType(event: Pick<Event, "json">): string {
  return event.json ? "application/json" : "text/plain; charset=utf-8";
}

/**
 * What must keep its order where not everything does: of row changes those of a table, so that the update of a row does
 * not overtake its insertion; of notifications those with a routing key.
 */
export function orderKey({ type, routingKey }: Event): string {
  return type === "wal" ? routingKey.slice(0, Math.max(0, routingKey.lastIndexOf("."))) : routingKey;
}
