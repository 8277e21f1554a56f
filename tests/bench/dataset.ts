/** Changes in the WAL behind a slot. The slot itself is never read: every run reads a copy of it. */

import { randomBytes } from "node:crypto";
import type postgres from "postgres";
import { until } from "../support/wait.ts";
import type { Bench } from "./bench.ts";

export interface DatasetOptions {
  readonly rows: number;
  readonly rowsPerTransaction: number | "all";
  /** Length of the text column; the message has about 190 bytes more. Default: 60. */
  readonly textBytes?: number;
  /** Also behind a slot of pgoutput, for others that read that; publications must be there already. */
  readonly pgoutput?: boolean;
}

export interface Dataset {
  readonly rows: number;
  readonly transactions: number;
  /** What wal2json makes of it: the rows, and BEGIN and COMMIT of each transaction. */
  readonly events: number;
  readonly slot: string;
  /** Undefined unless it was asked for. */
  readonly pgoutputSlot: string | undefined;
  /** End of the last commit record. */
  readonly endLsn: string;
  /** The messages of the first transactions, as wal2json writes them. */
  readonly sample: readonly string[];
  /** Their mean size in bytes. */
  readonly messageBytes: number;
}

const TABLE = "orders";
const SAMPLE_ROWS = 1_000;
const SAMPLE_BYTES = 4_000_000;

/** Writes it and waits until nothing is left to do for the server. At most one dataset at a time. */
export async function writeDataset(bench: Bench, options: DatasetOptions): Promise<Dataset> {
  const { sql } = bench;
  const perTransaction = options.rowsPerTransaction === "all" ? options.rows : options.rowsPerTransaction;
  const transactions = Math.ceil(options.rows / perTransaction);
  await sql.unsafe(`
    drop table if exists ${TABLE};
    create table ${TABLE} (
      id bigint primary key, customer integer not null, amount numeric(12,2) not null, state text not null,
      note text not null);
    alter table ${TABLE} alter column note set storage external;
    create or replace procedure write_orders(total bigint, per_transaction bigint, note_bytes integer) language plpgsql as $$
      begin
        for first_id in 1 .. total by per_transaction loop
          insert into ${TABLE}
            select id, id % 99991, (id % 100000) / 7.0, 'shipped', repeat('0123456789', note_bytes / 10)
            from generate_series(first_id, least(first_id + per_transaction - 1, total)) id;
          commit;
        end loop;
      end $$;`);
  const textBytes = options.textBytes ?? 60;
  const sampleRows = Math.max(1, Math.min(options.rows, SAMPLE_ROWS, Math.floor(SAMPLE_BYTES / textBytes)));
  const write = (rows: number) => sql`call write_orders(${rows}, ${Math.min(rows, perTransaction)}, ${textBytes})`;
  const sample = await withNewSlot(sql, async (slot) => {
    await write(sampleRows);
    const records = await sql<{ data: string }[]>`
      select data from pg_logical_slot_peek_changes(${slot}, null, null, 'format-version', '2', 'include-types', '0')`;
    return records.map(({ data }) => data);
  });
  await sql.unsafe(`truncate ${TABLE}`);
  const slot = await newSlot(sql);
  const pgoutputSlot = options.pgoutput === true ? await newSlot(sql, "pgoutput") : undefined;
  await write(options.rows);
  const [{ lsn }] = await sql<[{ lsn: string }]>`select pg_current_wal_insert_lsn()::text as lsn`;
  await sql`checkpoint`;
  const messageBytes = Math.round(Buffer.byteLength(sample.join("")) / sample.length);
  const events = options.rows + 2 * transactions;
  return { rows: options.rows, transactions, events, slot, pgoutputSlot, endLsn: lsn, sample, messageBytes };
}

/** Its WAL can go, and the next may be written. */
export async function dropDataset(bench: Bench, dataset: Dataset): Promise<void> {
  await dropSlot(bench.sql, dataset.slot);
  if (dataset.pgoutputSlot !== undefined) await dropSlot(bench.sql, dataset.pgoutputSlot);
  await bench.sql.unsafe(`drop table if exists ${TABLE}; checkpoint`);
}

/** Runs `work` with a copy of the slot, which is dropped afterwards. */
export async function withSlotCopy<T>(bench: Bench, original: string, work: (slot: string) => Promise<T>): Promise<T> {
  const copy = slotName();
  await bench.sql`select pg_copy_logical_replication_slot(${original}, ${copy})`;
  try {
    return await work(copy);
  } finally {
    await dropSlot(bench.sql, copy);
  }
}

/** Everything that is written from now on. */
export async function newSlot(sql: postgres.Sql, plugin: "wal2json" | "pgoutput" = "wal2json"): Promise<string> {
  const slot = slotName();
  await sql`select pg_create_logical_replication_slot(${slot}, ${plugin})`;
  return slot;
}

/** Waits until whoever streams from it is gone. */
export async function dropSlot(sql: postgres.Sql, slot: string): Promise<void> {
  await until(async () => {
    await sql`select pg_drop_replication_slot(slot_name) from pg_replication_slots
      where slot_name = ${slot} and not active`;
    const rows = await sql`select 1 from pg_replication_slots where slot_name = ${slot}`;
    return rows.length === 0;
  }, { what: `slot ${slot} to be let go`, timeoutMs: 60_000, intervalMs: 10 });
}

export interface SlotReading {
  readonly walsenderPid: number | null;
  readonly passed: boolean;
}

export async function readSlot(sql: postgres.Sql, slot: string, endLsn: string): Promise<SlotReading> {
  const [reading] = await sql<SlotReading[]>`
    select active_pid as "walsenderPid", confirmed_flush_lsn >= ${endLsn}::pg_lsn as passed
    from pg_replication_slots where slot_name = ${slot}`;
  if (reading === undefined) throw new Error(`slot ${slot} is gone`);
  return reading;
}

async function withNewSlot<T>(sql: postgres.Sql, work: (slot: string) => Promise<T>): Promise<T> {
  const slot = await newSlot(sql);
  try {
    return await work(slot);
  } finally {
    await dropSlot(sql, slot);
  }
}

function slotName(): string {
  return `bench_${randomBytes(5).toString("hex")}`;
}
