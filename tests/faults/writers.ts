/** Sessions that write at the same time, number what they write, and come back when the server does. */

import { setTimeout as delay } from "node:timers/promises";
import postgres from "postgres";
import { MESSAGE_CHANNEL } from "./history.ts";
import { between, pick, type Random, randomFrom } from "./random.ts";

export interface WriterOptions {
  /** Default 4. */
  readonly sessions?: number;
  /** Mean pause of a session between two transactions; default 60. */
  readonly pauseMs?: number;
  readonly seed?: number;
}

/** Tables of which the WAL tells everything, deletes included. */
const TABLES_SQL = `
  create table ledger (writer int, number int, primary key (writer, number));
  create table orders (writer int, number int, filler text, primary key (writer, number));
  create table items (writer int, number int, filler text);
  alter table items replica identity full;
`;

const TRANSACTION_ROWS = [1, 1, 1, 1, 1, 2, 2, 5, 20, 200] as const;

export async function createTables(sql: postgres.Sql): Promise<void> {
  await sql.unsafe(TABLES_SQL);
}

/** How the row that opens each transaction looks in the WAL. */
export function ledgerLabel(writer: number, number: number): string {
  return `{"action":"I","schema":"public","table":"ledger","columns":[{"name":"writer","value":${writer}},` +
    `{"name":"number","value":${number}}]}`;
}

export class Writers {
  /** Labels of the ledger rows of the transactions whose commit the server confirmed. */
  readonly committed: string[] = [];
  /** Rows in those transactions. */
  rows = 0;
  /** Transactions whose end the writer did not learn. */
  doubtful = 0;
  readonly #stop = new AbortController();
  readonly #sessions: Promise<void>[];

  private constructor(uri: string, { sessions = 4, pauseMs = 60, seed = 1 }: WriterOptions) {
    this.#sessions = Array.from(
      { length: sessions },
      (_, writer) => this.#write(uri, writer, pauseMs, randomFrom(seed * 1_000 + writer)),
    );
  }

  static start(uri: string, options: WriterOptions = {}): Writers {
    return new Writers(uri, options);
  }

  /** Resolves when the last transaction has ended. */
  async stop(): Promise<void> {
    this.#stop.abort();
    await Promise.all(this.#sessions);
  }

  async #write(uri: string, writer: number, pauseMs: number, random: Random): Promise<void> {
    // A whole second without an answer to `connect` is long here; by default the library waits up to 15 s between two.
    const sql = postgres(uri, {
      max: 1,
      onnotice: () => {},
      connect_timeout: 5,
      backoff: () => 0.1,
      fetch_types: false,
    });
    for (let number = 1; !this.#stop.signal.aborted; number++) {
      try {
        const rows = await writeTransaction(sql, writer, number, random);
        if (rows > 0) this.committed.push(ledgerLabel(writer, number));
        this.rows += rows;
      } catch (error) {
        if (!isOutage(error)) throw error;
        this.doubtful++;
        await delay(50);
      }
      await delay(between(random, 0, 2 * pauseMs));
    }
    await sql.end({ timeout: 1 });
  }
}

/**
 * Returns the rows that were committed. One message with all statements: the library's own transactions end the process
 * with an uncaught error when the connection goes at the wrong moment (postgres 3.4.9).
 */
async function writeTransaction(sql: postgres.Sql, writer: number, number: number, random: Random): Promise<number> {
  const count = pick(random, TRANSACTION_ROWS);
  // Numbers of different transactions are apart, so that no two messages are alike.
  const first = number * 1_000;
  const filler = "f".repeat(Math.floor(between(random, 1, 300)));
  const more = furtherStatement(writer, number, filler, random);
  const end = random() < 0.06 ? "rollback" : "commit";
  await sql.unsafe(`
    begin;
    insert into ledger values (${writer}, ${number});
    insert into orders select ${writer}, ${first} + i, '${filler}' from generate_series(1, ${count}) i;
    ${more};
    ${end}`);
  return end === "commit" ? count + 1 : 0;
}

function furtherStatement(writer: number, number: number, filler: string, random: Random): string {
  const first = number * 1_000;
  const anItem = `ctid = (select ctid from items where writer = ${writer} limit 1)`;
  const action = random();
  const isTransactional = random() < 0.7;
  const channel = pick(random, [MESSAGE_CHANNEL, "elsewhere"]);
  if (action < 0.1) return `insert into items values (${writer}, ${first}, '${filler}')`;
  if (action < 0.2) return `update items set number = ${first}, filler = '${filler}' where ${anItem}`;
  if (action < 0.25) return `delete from items where ${anItem}`;
  if (action < 0.35) {
    return `select pg_logical_emit_message(${isTransactional}, '${channel}', 'message ${writer}:${number}')`;
  }
  if (action > 0.4) return "";
  return `savepoint a;
    insert into orders select ${writer}, ${first} + i, 'never committed' from generate_series(600, 700) i;
    rollback to a`;
}

/** The server is away, goes away or comes back: SQLSTATE class 57, or no connection at all. */
function isOutage(error: unknown): boolean {
  const code = String((error as { code?: unknown } | null)?.code ?? "");
  return code.startsWith("57") || code.startsWith("08") || /^(CONNECTION_|CONNECT_|ECONN|EPIPE|ENOTCONN)/.test(code);
}
