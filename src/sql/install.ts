/** Installs the `events` schema and tells what that changed. */

import { PermanentError } from "../core/errors.ts";
import { quoteIdentifier } from "../postgres/protocol.ts";
import type { Sql, SqlSession } from "../postgres/sql_session.ts";
import { EVENTS_SQL, EVENTS_VERSION } from "./events.ts";

export interface InstallReport {
  /** `installed version 1`, and the like. */
  readonly outcome: string;
  /** One line for each object that was added, changed or removed: `added index events.events_xid_id_idx`. */
  readonly changes: readonly string[];
}

/** The script, with the rights for a proxy that logs in as `role` where one is named. */
export function installScript(role?: string): string {
  if (role === undefined) return EVENTS_SQL;
  const name = quoteIdentifier(role);
  return `${EVENTS_SQL}
-- The proxy logs in as this role.
grant usage on schema events to ${name};
grant select, delete on events.events to ${name};
`;
}

const ACTION = "installing the schema events";

/** Runs the script in one transaction; `user` is whose session it is. Throws PermanentError or TransientError. */
export async function install(session: SqlSession, user: string, role?: string): Promise<InstallReport> {
  try {
    const before = await describe(session.sql);
    if (before.version !== undefined && before.version > EVENTS_VERSION) {
      throw new PermanentError(
        `${ACTION} at ${session.where}: version ${before.version} is there, newer than this program's ${EVENTS_VERSION}; ` +
          "nothing was changed; use a newer pg-event-proxy",
      );
    }
    await session.sql.unsafe(installScript(role));
    const after = await describe(session.sql);
    const changes = compare(before.objects, after.objects);
    return { outcome: outcomeOf(before, changes.length > 0), changes };
  } catch (error) {
    if (error instanceof PermanentError) throw error;
    throw isForbidden(error) ? forbidden(error, session.where, user) : session.explain(error, ACTION);
  }
}

/** SQLSTATE insufficient_privilege. */
function isForbidden(error: unknown): error is Error {
  return error instanceof Error && (error as { code?: unknown }).code === "42501";
}

function forbidden(error: Error, where: string, user: string): PermanentError {
  const forRole = `--role '${user.replaceAll("'", "'\\''")}'`;
  return new PermanentError(
    `${ACTION} at ${where} as user "${user}" failed: ${error.message}; have it run by the owner of the schema, or by a role ` +
      `that may create one: pg-event-proxy sql ${forRole} | psql …`,
  );
}

interface Description {
  /** Of the schema that is there; undefined for none, and for the older helper's. */
  readonly version: number | undefined;
  /** Messages stored; undefined where there is no table. */
  readonly stored: number | undefined;
  /** Definition by name. */
  readonly objects: ReadonlyMap<string, string>;
}

const OBJECTS = `
  select 'schema events' as name, coalesce(nspacl::text, '') as definition from pg_namespace where nspname = 'events'
   union all
  select 'column events.events.' || a.attname,
         concat_ws(' ', format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
                   pg_get_expr(d.adbin, d.adrelid), col_description(a.attrelid, a.attnum))
    from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
   where a.attrelid = to_regclass('events.events') and a.attnum > 0 and not a.attisdropped
   union all
  select 'index ' || indexrelid::regclass, pg_get_indexdef(indexrelid)
    from pg_index where indrelid = to_regclass('events.events')
   union all
  select 'rights on table events.events', coalesce(relacl::text, '') from pg_class where oid = to_regclass('events.events')
   union all
  select 'settings of table events.events', reloptions::text
    from pg_class where oid = to_regclass('events.events') and reloptions is not null
   union all
  select 'function ' || oid::regprocedure, pg_get_functiondef(oid) || coalesce(proacl::text, '') || proowner
    from pg_proc where pronamespace = to_regnamespace('events') and prokind = 'f'`;

async function describe(sql: Sql): Promise<Description> {
  const objects = await sql.unsafe<{ name: string; definition: string }[]>(OBJECTS);
  const names = new Map(objects.map(({ name, definition }) => [name, definition]));
  const [version] = names.has("function events.version()")
    ? await sql.unsafe<{ version: number }[]>("select events.version()::int as version")
    : [];
  const isTable = names.has("column events.events.id");
  const [stored] = isTable ? await sql.unsafe<{ count: string }[]>("select count(*)::text from events.events") : [];
  return {
    version: version?.version,
    stored: stored === undefined ? undefined : Number(stored.count),
    objects: names,
  };
}

function compare(before: ReadonlyMap<string, string>, after: ReadonlyMap<string, string>): string[] {
  const changes: string[] = [];
  for (const [name, definition] of after) {
    const old = before.get(name);
    if (old === undefined) changes.push(`added ${name}`);
    else if (old !== definition) changes.push(`changed ${name}`);
  }
  for (const name of before.keys()) if (!after.has(name)) changes.push(`removed ${name}`);
  return changes;
}

function outcomeOf({ version, stored }: Description, changed: boolean): string {
  if (stored === undefined) return `installed version ${EVENTS_VERSION}`;
  const messages = `${stored} stored ${stored === 1 ? "message" : "messages"}`;
  if (version === undefined) {
    return `took over the older helper's schema with ${messages}; it has version ${EVENTS_VERSION} now`;
  }
  if (version < EVENTS_VERSION) return `upgraded from version ${version} to ${EVENTS_VERSION}; ${messages}`;
  return changed ? `version ${EVENTS_VERSION} was there and is restored; ${messages}` : `version ${version}, unchanged`;
}
