/** What reading the WAL needs: settings, free places, rights, wal2json, and slots in good state. */

import { randomUUID } from "node:crypto";
import type { SlotConfig } from "../config/config.ts";
import { sleep } from "../core/backoff.ts";
import { errorText, StandingByError } from "../core/errors.ts";
import { APPLICATION_NAME } from "../core/event.ts";
import { quoteLiteral } from "../postgres/protocol.ts";
import { encodingFault, ReplicationSession, WAL_LEVEL_REMEDY } from "../postgres/replication.ts";
import { parseSlot, type Slot, slotFault, slotQuery } from "../postgres/slot.ts";
import { readSlot } from "../sources/slot_monitor.ts";
import { streamOptions } from "../sources/wal.ts";
import type { Server } from "./database.ts";
import type { Findings } from "./finding.ts";
import { publishedTables } from "./table_filter.ts";

/** Creating a slot waits for running transactions; the plugin is loaded before. */
const SLOT_PATIENCE_MS = 5_000;
const END_PATIENCE_MS = 2_000;
/** How long a session that was ended may take to be gone. */
const GONE_PATIENCE_MS = 5_000;
const GONE_POLL_MS = 20;
/** A slot that holds back more than this share of what it may is worth a warning. */
const WARN_SHARE = 0.5;
const SHOWN_TABLES = 5;

interface KnownSlot {
  readonly config: SlotConfig;
  readonly slot: Slot | undefined;
}

/** Returns the routing key of a sample event. */
export async function checkReplication(
  server: Server,
  configs: readonly SlotConfig[],
  findings: Findings,
  signal: AbortSignal,
): Promise<string | undefined> {
  const slots: KnownSlot[] = [];
  for (const config of configs) {
    const [row] = await server.session.query(slotQuery(config.name, server.version));
    slots.push({ config, slot: parseSlot(row) });
  }
  const isLogical = server.walLevel === "logical";
  if (isLogical) findings.ok("wal_level", server.walLevel);
  else findings.fail("wal_level", `${server.walLevel}, wanted logical`, WAL_LEVEL_REMEDY);
  const places = await checkPlaces(server, slots, findings);
  // The session would fail over these, which are told already.
  if (isLogical && encodingFault(server.encoding) === undefined) {
    await checkDecoding(server, slots, places, findings, signal);
  }
  await checkKeepSize(server, findings);
  for (const known of slots) await checkSlotState(server, known, findings);
  return await checkTables(server, configs, findings);
}

interface Places {
  readonly slots: number;
  readonly senders: number;
}

/** Free replication slots and walsenders. */
async function checkPlaces({ session }: Server, slots: readonly KnownSlot[], findings: Findings): Promise<Places> {
  const [row] = await session.query(
    "select current_setting('max_replication_slots'), (select count(*) from pg_replication_slots), " +
      "current_setting('max_wal_senders'), (select count(*) from pg_stat_replication)",
  );
  const [maxSlots = 0, usedSlots = 0, maxSenders = 0, usedSenders = 0] = (row ?? []).map(Number);
  const missingSlots = slots.filter(({ slot }) => slot === undefined).length;
  const missingSenders = slots.filter(({ slot }) => slot === undefined || slot.activePid === null).length;
  const tell = (setting: string, max: number, used: number, missing: number, remedy: string) => {
    const free = Math.max(0, max - used);
    if (free >= missing) findings.ok(setting, `${max}, ${free} free`);
    else findings.fail(setting, `${max}, ${free} free, ${missing} needed`, remedy);
    return free;
  };
  return {
    slots: tell(
      "max_replication_slots",
      maxSlots,
      usedSlots,
      missingSlots,
      "drop a slot that nobody uses (select slot_name, active from pg_replication_slots), or run as a superuser: ALTER " +
        `SYSTEM SET max_replication_slots = ${maxSlots + missingSlots + 1}, and restart the server`,
    ),
    senders: tell(
      "max_wal_senders",
      maxSenders,
      usedSenders,
      missingSenders,
      `run as a superuser: ALTER SYSTEM SET max_wal_senders = ${
        maxSenders + missingSenders + 1
      }, and restart the server`,
    ),
  };
}

/** The right to replicate, wal2json, and its parameters: by a temporary slot, which is gone afterwards. */
async function checkDecoding(
  server: Server,
  slots: readonly KnownSlot[],
  places: Places,
  findings: Findings,
  signal: AbortSignal,
): Promise<void> {
  if (places.senders === 0) {
    findings.unchecked("right to replicate", "not tried: no walsender is free");
    return;
  }
  let told = false;
  for (const { config, slot } of slots) {
    let session: ReplicationSession;
    try {
      session = await ReplicationSession.open(server.params, signal);
    } catch (error) {
      signal.throwIfAborted();
      findings.failWith(
        "right to replicate",
        error,
        `run as a superuser: ALTER ROLE "${server.params.user}" REPLICATION`,
      );
      return;
    }
    if (!told) findings.ok("right to replicate", `role "${server.params.user}" may start a walsender`);
    try {
      if (places.slots === 0) {
        if (!told) findings.unchecked("wal2json", "not tried: no replication slot is free");
        return;
      }
      await tryDecoding(server, session, { config, slot }, told, findings);
      told = true;
    } finally {
      session.connection.terminate();
    }
  }
}

async function tryDecoding(
  server: Server,
  session: ReplicationSession,
  { config, slot }: KnownSlot,
  isPluginTold: boolean,
  findings: Findings,
): Promise<void> {
  const name = `pg_event_proxy_check_${randomUUID().replaceAll("-", "").slice(0, 12)}`;
  const [row] = await session.connection.query("select pg_backend_pid()");
  const pid = Number(row?.[0]);
  try {
    await session.createTemporarySlot(name, SLOT_PATIENCE_MS);
  } catch (error) {
    // A server process that waits for a transaction does not notice that its client is gone.
    await server.session.query(`select pg_terminate_backend(${pid})`);
    if (/no answer within/.test(errorText(error))) tellOfWaiting(slot === undefined, findings);
    else findings.failWith("wal2json", error, "check that this server version has wal2json, and look into its log");
    return await untilGone(server, name);
  }
  if (!isPluginTold) findings.ok("wal2json", `decodes${await allowedPlugins(server)}`);
  try {
    await session.start(name, streamOptions(config), () => {});
    await session.end(END_PATIENCE_MS);
    findings.ok("wal2json_params", config.wal2jsonParams.map(([key, value]) => `${key} ${value}`).join(", "));
  } catch (error) {
    findings.failWith("wal2json_params", error, "correct wal2json_params");
    session.connection.terminate();
  }
  await untilGone(server, name);
}

function tellOfWaiting(isNeeded: boolean, findings: Findings): void {
  const seen = "is loaded, but a new slot waits for transactions that are running on the server";
  const remedy = "let them end: select pid, xact_start, query from pg_stat_activity where xact_start is not null";
  if (isNeeded) findings.warn("wal2json", seen, remedy);
  else findings.unchecked("wal2json", seen, remedy);
}

/** The setting is that of the minor releases of August 2026 and later. */
async function allowedPlugins({ session }: Server): Promise<string> {
  const [row] = await session.query("select setting from pg_settings where name = 'output_plugin_libraries'");
  return row === undefined ? "" : `, output_plugin_libraries = ${row[0]}`;
}

/** So that nothing is left when the check has ended. */
async function untilGone({ session }: Server, slot: string): Promise<void> {
  const deadlineMs = performance.now() + GONE_PATIENCE_MS;
  while (performance.now() < deadlineMs) {
    const rows = await session.query(`select from pg_replication_slots where slot_name = ${quoteLiteral(slot)}`);
    if (rows.length === 0) return;
    await sleep(GONE_POLL_MS);
  }
}

async function checkKeepSize({ session }: Server, findings: Findings): Promise<void> {
  const [row] = await session.query(
    "select setting, pg_size_pretty(setting::bigint * 1048576) from pg_settings where name = 'max_slot_wal_keep_size'",
  );
  if (row?.[0] === "-1") {
    findings.warn(
      "max_slot_wal_keep_size",
      "-1: while nobody reads the slot, WAL piles up until the disk is full",
      "bound it, larger than the longest outage needs; run as a superuser: ALTER SYSTEM SET max_slot_wal_keep_size = " +
        "'20GB'; SELECT pg_reload_conf()",
    );
  } else findings.ok("max_slot_wal_keep_size", row?.[1] ?? "");
}

async function checkSlotState(
  server: Server,
  { config: { name }, slot }: KnownSlot,
  findings: Findings,
): Promise<void> {
  const subject = `slot "${name}"`;
  if (slot === undefined) return findings.ok(subject, "is not there yet: the first start creates it");
  const fault = slotFault(name, slot, server.params.database, server.session.where);
  if (fault !== undefined && !(fault instanceof StandingByError)) return findings.failWith(subject, fault, "drop it");
  const reading = await readSlot(server.session, name);
  if (reading === undefined) return findings.ok(subject, "was dropped just now");
  const { retainedBytes, lagBytes, safeBytes, walStatus } = reading;
  const seen = [
    fault === undefined ? "nobody reads it" : await holderText(server, slot.activePid ?? ""),
    `holds back ${sizeText(retainedBytes)} of WAL, ${sizeText(lagBytes)} not confirmed`,
    safeBytes === undefined ? `wal_status ${walStatus}` : `wal_status ${walStatus}, ${sizeText(safeBytes)} left`,
  ].join("; ");
  const isEndangered = walStatus === "unreserved" ||
    (safeBytes !== undefined && retainedBytes > WARN_SHARE * (retainedBytes + Math.max(0, safeBytes)));
  if (!isEndangered) return findings.ok(subject, seen);
  findings.warn(
    subject,
    `${seen}: it is lost when that is used up`,
    "start the proxy and bring its upstreams back, or run as a superuser: ALTER SYSTEM SET max_slot_wal_keep_size = …; " +
      "SELECT pg_reload_conf()",
  );
}

async function holderText({ session }: Server, pid: string): Promise<string> {
  const [row] = await session.query(
    `select application_name, coalesce(client_addr::text, '') from pg_stat_activity where pid = ${Number(pid)}`,
  );
  const [application, address] = row ?? [];
  // What is another role's is not shown.
  const who = application === null || application === undefined || application === "" ? "" : `, ${application}`;
  const mine = application === APPLICATION_NAME ? ": an instance is running" : "";
  return `held by server process ${pid}${who}${address ? ` from ${address}` : ""}${mine}`;
}

function sizeText(bytes: number): string {
  const mebibytes = bytes / 2 ** 20;
  return mebibytes < 1024 ? `${Math.round(mebibytes)} MiB` : `${(mebibytes / 1024).toFixed(1)} GiB`;
}

/** Ordinary tables, logged to the WAL, and whether their updates and deletes carry the old row's key. */
const TABLES = `
  select quote_ident(n.nspname) || '.' || quote_ident(c.relname), n.nspname, c.relname,
         case c.relreplident
           when 'f' then true
           when 'n' then false
           when 'i' then exists (select from pg_index i where i.indrelid = c.oid and i.indisreplident and i.indisvalid)
           else exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary and i.indimmediate and i.indisvalid)
         end
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
   where c.relkind = 'r' and c.relpersistence = 'p' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
   order by 2, 3`;

async function checkTables(
  { session }: Server,
  configs: readonly SlotConfig[],
  findings: Findings,
): Promise<string | undefined> {
  const rows = await session.query(TABLES);
  const published = configs.map(publishedTables);
  const tables = rows.filter(([, schema, table]) => published.some((one) => one.includes(schema!, table!)));
  const without = tables.filter(([, schema, table, hasIdentity]) =>
    hasIdentity !== "t" && published.some((one) => one.withOldRows && one.includes(schema!, table!))
  ).map(([name]) => name);
  if (without.length === 0) {
    findings.ok("tables", `${tables.length}, each with a replica identity where it is needed`);
  } else {
    const more = without.length > SHOWN_TABLES ? ` and ${without.length - SHOWN_TABLES} more` : "";
    findings.warn(
      "tables",
      `UPDATE and DELETE are not delivered of ${without.length} of ${tables.length} tables, which have no replica ` +
        `identity: ${without.slice(0, SHOWN_TABLES).join(", ")}${more}`,
      `give them a primary key, or run: ALTER TABLE ${without[0]} REPLICA IDENTITY FULL`,
    );
  }
  const [first] = tables;
  return first === undefined ? undefined : `${first[1]}.${first[2]}.insert`;
}
