/** The script of the `events` schema, as it stands in events.sql. */

import script from "./events.sql" with { type: "text" };

export const EVENTS_SQL: string = script;

/** What `events.version()` of this script returns. */
export const EVENTS_VERSION: number = versionOf(script);

function versionOf(text: string): number {
  const match = /function events\.version\(\)[^;]*\$function\$ select (\d+) \$function\$/.exec(text);
  if (match === null) throw new Error("events.sql does not tell its version");
  return Number(match[1]);
}
