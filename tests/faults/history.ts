/** What was committed, in commit order, as PostgreSQL itself tells it through a slot that only the test reads. */

import { hash } from "node:crypto";
import type postgres from "postgres";
import type { ExpectedEvent } from "./verdict.ts";

/** The channel that logical messages are bound by. */
export const MESSAGE_CHANNEL = "events";

/** Read at once, to keep the answer of a long run out of memory. */
const CHANGES_AT_ONCE = 20_000;
const LABEL_LENGTH = 200;

/** In place of the message, so that long runs fit into memory. */
export function digest(message: string | Uint8Array): string {
  return hash("sha1", message, "base64url");
}

/** True of BEGIN and COMMIT records, which are all alike: without an id they cannot be told apart. */
export function isTransactionRecord(text: string): boolean {
  return text === BEGIN || text === COMMIT;
}

const BEGIN = digest('{"action":"B"}');
const COMMIT = digest('{"action":"C"}');

export class History {
  readonly #sql: postgres.Sql;
  readonly #slot: string;
  readonly #events: ExpectedEvent[] = [];
  #transactionLsn = "";
  #ordinal = 0;

  private constructor(sql: postgres.Sql, slot: string) {
    this.#sql = sql;
    this.#slot = slot;
  }

  /** From now on. */
  static async begin(sql: postgres.Sql, slot: string): Promise<History> {
    await sql`select pg_create_logical_replication_slot(${slot}, 'wal2json')`;
    return new History(sql, slot);
  }

  /** Everything committed so far. */
  async read(): Promise<readonly ExpectedEvent[]> {
    for (;;) {
      const rows = await this.#sql<{ lsn: string; data: string }[]>`
        select lsn::text, data from pg_logical_slot_get_changes(${this.#slot}, null, ${CHANGES_AT_ONCE},
          'format-version', '2', 'include-types', '0', 'include-transaction', '1')`;
      if (rows.length === 0) return this.#events;
      for (const { lsn, data } of rows) this.#add(lsn, data);
    }
  }

  /** The id by the manual's rule: the first LSN of the transaction, and the number of the record in it. */
  #add(lsn: string, data: string): void {
    const record = data.startsWith('{"action":"M"') ? readMessage(data) : undefined;
    if (data.startsWith('{"action":"B"')) {
      this.#transactionLsn = lsn;
      this.#ordinal = 0;
    } else if (record?.transactional !== false) {
      this.#ordinal++;
    }
    const id = record?.transactional === false ? `${lsn}-m` : `${this.#transactionLsn}-${this.#ordinal}`;
    const message = record?.prefix === MESSAGE_CHANNEL ? record.content : data;
    this.#events.push({ id, text: digest(message), label: message.slice(0, LABEL_LENGTH) });
  }
}

function readMessage(data: string): { transactional: boolean; prefix: string; content: string } {
  return JSON.parse(data);
}
