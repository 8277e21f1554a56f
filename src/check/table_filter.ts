/** Which row changes wal2json hands out, by its parameters `add-tables`, `filter-tables` and `actions` (wal2json README). */

import type { SlotConfig } from "../config/config.ts";

interface TablePattern {
  /** Undefined: every one. */
  readonly schema: string | undefined;
  readonly table: string | undefined;
}

export interface PublishedTables {
  includes(schema: string, table: string): boolean;
  /** Whether updates or deletes are handed out at all. */
  readonly withOldRows: boolean;
}

export function publishedTables({ wal2jsonParams }: SlotConfig): PublishedTables {
  const params = new Map(wal2jsonParams);
  const added = params.has("add-tables") ? parseTables(params.get("add-tables")!) : undefined;
  const filtered = parseTables(params.get("filter-tables") ?? "");
  const actions = params.get("actions")?.split(",").map((action) => action.trim());
  return {
    withOldRows: actions === undefined || actions.includes("update") || actions.includes("delete"),
    includes: (schema, table) => {
      const isMeant = (pattern: TablePattern) =>
        (pattern.schema ?? schema) === schema && (pattern.table ?? table) === table;
      return (added === undefined || added.some(isMeant)) && !filtered.some(isMeant);
    },
  };
}

/** `public.t, *.log, odd\.name.*`: a star means all, a backslash takes the next character as it is. */
function parseTables(text: string): TablePattern[] {
  return text.split(/(?<!\\),/).flatMap((item) => {
    const [schema, table] = item.trim().split(/(?<!\\)\./);
    if (schema === undefined || table === undefined) return [];
    return [{ schema: nameOf(schema), table: nameOf(table) }];
  });
}

function nameOf(text: string): string | undefined {
  return text === "*" ? undefined : text.replace(/\\(.)/g, "$1");
}
