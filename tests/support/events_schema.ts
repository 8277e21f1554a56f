/** The `events` schema on a test's database. */

import postgres from "postgres";
import { EVENTS_SQL } from "../../src/sql/events.ts";

/** Runs the script as the role of `uri`, as `psql -f` would. */
export function installEvents(uri: string): Promise<void> {
  return runScript(uri, EVENTS_SQL);
}

/** The library refuses scripts with BEGIN but on a session of its own. */
export async function runScript(uri: string, script: string): Promise<void> {
  const sql = postgres(uri, { max: 1, onnotice: () => {}, connect_timeout: 10 });
  try {
    await sql.unsafe(script).simple();
  } finally {
    await sql.end({ timeout: 1 });
  }
}

/** The schema of the older helper, with a table and functions as its users have them. */
export const OLD_HELPER_SQL = `
create schema events;
grant usage on schema events to public;
create table events.events (
  id serial primary key,
  channel text not null,
  message text not null,
  created_on timestamptz not null default now()
);
create function events.send_message(
  channel text, message text, routing_key text default '', durable boolean default false,
  skip_flush boolean default false
) returns void language plpgsql volatile as $$
begin
  if durable then
    insert into events.events (channel, message) values (channel, routing_key || '|' || message);
  else
    perform pg_notify(channel, routing_key || '|' || message);
  end if;
end $$;
create function events.flush() returns void language plpgsql volatile as $$ begin end $$;
create function events.on_row_change() returns trigger language plpgsql stable as $$
begin
  perform events.send_message(coalesce(tg_argv[0], 'events'), row_to_json(coalesce(new, old))::text,
    'row_change.table-' || tg_table_name || '.event-' || tg_op, true);
  return null;
end $$;`;
