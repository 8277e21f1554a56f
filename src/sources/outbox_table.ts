/** The statements on `events.events`; what the table must look like is in `src/sql/events.sql`. */

import type { Sql } from "../postgres/sql_session.ts";
import { type PageRequest, parseSnapshot, type Snapshot } from "./outbox_snapshot.ts";

/** The channel on which senders wake a proxy that sleeps; as in events.sql. */
export const WAKE_CHANNEL = "pg_event_proxy_outbox";

/**
 * First keys of advisory locks, "pgei" and "pgej" in ASCII; the second is `hashtext(channel)`. Who holds the first drains
 * the channel; who holds the second sleeps and has to be woken (as in events.sql).
 */
const DRAIN_LOCK = 0x70676569;
const SLEEP_LOCK = 0x7067656a;

/** Rows looked at in one statement. */
const PAGE_ROWS = 1_000;
/** Bytes of messages fetched by one statement; one message larger than that comes alone. */
const PAGE_BYTES = 4 * 2 ** 20;

export type Inspection =
  /** Nothing to drain: `reason` says why, for the log. */
  | { readonly kind: "absent"; readonly reason: string }
  /** The table is there, and this role lacks rights; `remedy` is SQL. */
  | { readonly kind: "forbidden"; readonly owner: string; readonly remedy: string }
  | { readonly kind: "present"; readonly layout: Layout };

export interface Layout {
  /** False for the older helper's table: `message` holds `routing_key|message`, and late rows are not told by `xid`. */
  readonly current: boolean;
  /** Of the table: differs when it was replaced, emptied or altered. */
  readonly fingerprint: string;
  /** Of the server's history: differs after a failover or a restored backup, when ids may come again. */
  readonly timeline: string;
}

/** A session as PostgreSQL knows it: process ids are used again. */
export interface Backend {
  readonly pid: number;
  readonly since: string;
}

export interface OutboxRow {
  readonly id: string;
  readonly channel: string;
  /** Null: `message` holds `routing_key|message`. */
  readonly routingKey: string | null;
  readonly message: string;
}

export interface OutboxPage {
  readonly rows: readonly OutboxRow[];
  readonly snapshot: Snapshot;
  readonly lastId: string | undefined;
  /** Whether rows above `lastId` were left for the next page. */
  readonly cut: boolean;
  readonly fingerprint: string;
  /** Other channels of which rows were passed over. */
  readonly otherChannels: readonly string[];
}

/**
 * `synchronous_commit` off: a deletion that a crash undoes is a repeat. The planner knows next to nothing of a table that
 * fills and empties, and must not take to reading all of it; statements are planned once. The server must notice a proxy
 * that is gone, and free its locks.
 */
const SESSION_SETTINGS = [
  "search_path = pg_catalog",
  "standard_conforming_strings = on",
  "statement_timeout = 0",
  "lock_timeout = 0",
  "default_transaction_isolation = 'read committed'",
  "synchronous_commit = off",
  "enable_seqscan = off",
  "enable_bitmapscan = off",
  "plan_cache_mode = force_generic_plan",
  "jit = off",
  "tcp_keepalives_idle = 30",
  "tcp_keepalives_interval = 10",
  "tcp_keepalives_count = 3",
];

const FINGERPRINT = `
  select c.oid || ':' || pg_relation_filenode(c.oid) || ':' || (
           select string_agg(attname, ',' order by attnum) from pg_attribute
            where attrelid = c.oid and attnum > 0 and not attisdropped)
    from pg_class c
   where c.relnamespace = (select oid from pg_namespace where nspname = 'events')
     and c.relname = 'events' and c.relkind in ('r', 'p')`;

export async function prepareSession(sql: Sql): Promise<void> {
  await sql.unsafe(SESSION_SETTINGS.map((setting) => `set ${setting}`).join(";"));
}

interface InspectionRow {
  readonly recovery: boolean;
  readonly read_only: string;
  readonly fingerprint: string | null;
  readonly timeline: string | null;
  readonly owner: string | null;
  readonly columns: string[] | null;
  readonly allowed: boolean | null;
  readonly me: string;
}

/** Looks for the table, recognises it by its columns, and checks the rights on it. */
export async function inspect(sql: Sql): Promise<Inspection> {
  const [row] = await sql.unsafe<InspectionRow[]>(`
    select pg_is_in_recovery() as recovery,
           current_setting('transaction_read_only') as read_only,
           (${FINGERPRINT}) as fingerprint,
           case when not pg_is_in_recovery() then left(pg_walfile_name(pg_current_wal_lsn()), 8) end as timeline,
           pg_get_userbyid(c.relowner)::text as owner,
           (select json_agg(a.attname::text || ' ' || format_type(a.atttypid, null)) from pg_attribute a
             where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns,
           has_schema_privilege(c.relnamespace, 'usage') and has_table_privilege(c.oid, 'select')
             and has_table_privilege(c.oid, 'delete') as allowed,
           quote_ident(current_user) as me
      from (select) nothing
      left join pg_class c on c.relname = 'events' and c.relkind in ('r', 'p')
       and c.relnamespace = (select oid from pg_namespace where nspname = 'events')`);
  if (row === undefined) throw new Error("the server returned no row");
  const has = (column: RegExp) => row.columns?.some((text) => column.test(text)) ?? false;
  if (row.fingerprint === null) return { kind: "absent", reason: "there is no table events.events" };
  if (!has(/^id (integer|bigint)$/) || !has(/^channel (text|character varying)$/) || !has(/^message (text|char.*)$/)) {
    return {
      kind: "absent",
      reason: "the table events.events is another's: it has not the columns id, channel and message",
    };
  }
  if (row.recovery || row.timeline === null || row.read_only === "on") {
    return { kind: "absent", reason: "the server is read-only, and what is delivered cannot be deleted" };
  }
  if (row.allowed !== true) {
    const remedy = `GRANT USAGE ON SCHEMA events TO ${row.me}; GRANT SELECT, DELETE ON events.events TO ${row.me}`;
    return { kind: "forbidden", owner: row.owner ?? "", remedy };
  }
  const current = has(/^routing_key /) && has(/^xid bigint$/);
  return { kind: "present", layout: { current, fingerprint: row.fingerprint, timeline: row.timeline } };
}

const COLUMNS = "e.id, e.channel, e.message";

/**
 * Rows that were not visible to the last look although their ids were passed: by their transactions. The conditions are
 * such that only the index on (xid, id) serves them, whatever the planner believes.
 */
const LATE_ROWS = `
  select late.* from unnest($4::bigint[]) as running (xid)
   cross join lateral (
     select ${COLUMNS}, e.routing_key from events.events e
      where (e.xid, e.id) > (running.xid, $3::bigint) and (e.xid, e.id) <= (running.xid, $2::bigint)
      order by e.xid, e.id limit ${PAGE_ROWS}) late
   union all
  select ${COLUMNS}, e.routing_key from events.events e
   where e.xid >= $5::bigint and e.xid < txid_snapshot_xmax(txid_current_snapshot())
     and e.id + 0 > $3::bigint and e.id + 0 <= $2::bigint
   union all`;

/** One statement, hence one snapshot: what is not in the page was not visible to the snapshot that comes with it. */
function pageQuery(current: boolean): string {
  const newRows = `
    (select ${COLUMNS}, ${current ? "e.routing_key" : "null::text as routing_key"} from events.events e
      where e.id > $2::bigint order by e.id limit ${PAGE_ROWS})`;
  return `
    with scanned as materialized (
      select id, channel, routing_key, channel = any($1::text[]) as ours,
             case when channel = any($1::text[]) then message end as message
        from (${current ? LATE_ROWS : ""} ${newRows}) rows
       order by id limit ${PAGE_ROWS}
    ), sized as (
      select *, coalesce(sum(octet_length(message)) over (
                  order by id rows between unbounded preceding and 1 preceding), 0) as bytes_before
        from scanned
    ), taken as (
      select * from sized where bytes_before < ${PAGE_BYTES}
    )
    select null::bigint as position, null as id, null as routing_key, null as message,
           json_build_object(
             'snapshot', txid_current_snapshot()::text,
             'fingerprint', (${FINGERPRINT}),
             'lastId', (select max(id)::text from taken),
             'cut', (select count(*) from scanned) = ${PAGE_ROWS}
                    or (select count(*) from scanned) > (select count(*) from taken),
             'others', (select coalesce(json_agg(distinct channel), '[]') from taken where not ours)
           )::text as channel
     union all
    select id, id::text, routing_key, message, channel from taken where ours
     order by position nulls first`;
}

interface PageHead {
  readonly snapshot: string;
  readonly fingerprint: string | null;
  readonly lastId: string | null;
  readonly cut: boolean;
  readonly others: readonly string[];
}

export interface PageRow {
  readonly id: string;
  readonly channel: string;
  readonly routing_key: string | null;
  readonly message: string;
}

/** Reads the next rows of some channels, at most 1,000 or 4 MiB of them, deletes rows, and takes locks. */
export class OutboxTable {
  readonly #sql: Sql;
  readonly #current: boolean;

  private constructor(sql: Sql, layout: Layout) {
    this.#sql = sql;
    this.#current = layout.current;
  }

  /** Prepares the statements in the session. */
  static async open(sql: Sql, layout: Layout): Promise<OutboxTable> {
    await sql.unsafe(`prepare outbox_page as ${pageQuery(layout.current)}`);
    await sql.unsafe("prepare outbox_delete as delete from events.events where id = any($1::bigint[])");
    return new OutboxTable(sql, layout);
  }

  async page(channels: readonly string[], request: PageRequest): Promise<OutboxPage> {
    const late = [request.lateAfterId, `'{${request.xids.join()}}'`, request.fromXid];
    const values = [textArray(channels), request.afterId, ...this.#current ? late : []];
    const [first, ...rows] = await this.#sql.unsafe<PageRow[]>(`execute outbox_page(${values.join()})`);
    if (first === undefined) throw new Error("the server returned no row");
    const head = JSON.parse(first.channel) as PageHead;
    return {
      rows: rows.map(({ id, channel, routing_key, message }) => ({ id, channel, routingKey: routing_key, message })),
      snapshot: parseSnapshot(head.snapshot),
      lastId: head.lastId ?? undefined,
      cut: head.cut,
      fingerprint: head.fingerprint ?? "",
      otherChannels: head.others,
    };
  }

  async delete(ids: readonly string[]): Promise<void> {
    await this.#sql.unsafe(`execute outbox_delete('{${ids.join()}}')`);
  }

  async count(channel: string): Promise<string> {
    const [row] = await this.#sql<{ count: string }[]>`
      select count(*)::text as count from events.events where channel = ${channel}`;
    return row?.count ?? "0";
  }

  /** This session. */
  async backend(): Promise<Backend> {
    const [row] = await this.#sql.unsafe<Backend[]>(
      "select pid, backend_start::text as since from pg_stat_activity where pid = pg_backend_pid()",
    );
    if (row === undefined) throw new Error("the server does not know this session");
    return row;
  }

  /** Ends a session of this role; false where it is gone already. */
  async terminate({ pid, since }: Backend): Promise<boolean> {
    const rows = await this.#sql`
      select pg_terminate_backend(pid) from pg_stat_activity where pid = ${pid} and backend_start::text = ${since}`;
    return rows.length > 0;
  }

  /** Which of the channels are now ours to drain: those that no other session has. */
  claim(channels: readonly string[]): Promise<string[]> {
    return this.#lock(`pg_try_advisory_lock(${DRAIN_LOCK}, hashtext(channel))`, channels);
  }

  /** Asks the senders to wake us. All or none; false where a sender is just looking at the lock. */
  async lieDown(channels: readonly string[]): Promise<boolean> {
    const locked = await this.#lock(`pg_try_advisory_lock(${SLEEP_LOCK}, hashtext(channel))`, channels);
    if (locked.length === channels.length) return true;
    await this.getUp(locked);
    return false;
  }

  /** The senders need not wake us any more. */
  async getUp(channels: readonly string[]): Promise<void> {
    await this.#lock(`pg_advisory_unlock(${SLEEP_LOCK}, hashtext(channel))`, channels);
  }

  async #lock(call: string, channels: readonly string[]): Promise<string[]> {
    if (channels.length === 0) return [];
    const rows = await this.#sql.unsafe<{ channel: string; done: boolean }[]>(
      `select channel, ${call} as done from unnest(${textArray(channels)}::text[]) as channel`,
    );
    return rows.filter(({ done }) => done).map(({ channel }) => channel);
  }
}

/** An array of texts as a literal, where standard_conforming_strings is on. */
function textArray(texts: readonly string[]): string {
  const elements = texts.map((text) => `"${text.replace(/["\\]/g, "\\$&")}"`).join();
  return `'{${elements.replaceAll("'", "''")}}'`;
}
