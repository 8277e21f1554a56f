import assert from "node:assert/strict";
import { test } from "node:test";
import { publishedTables } from "../../src/check/table_filter.ts";

const TABLE: ReadonlyArray<readonly [params: Record<string, string>, name: [string, string], included: boolean]> = [
  [{}, ["public", "t"], true],
  [{ "add-tables": "public.t" }, ["public", "t"], true],
  [{ "add-tables": "public.t" }, ["public", "u"], false],
  [{ "add-tables": "shop.*, *.u" }, ["shop", "t"], true],
  [{ "add-tables": "shop.*, *.u" }, ["public", "u"], true],
  [{ "add-tables": "shop.*, *.u" }, ["public", "t"], false],
  [{ "add-tables": "*.*", "filter-tables": "public.t" }, ["public", "t"], false],
  [{ "filter-tables": "*.t" }, ["public", "u"], true],
  [{ "filter-tables": "*.t" }, ["any", "t"], false],
  [{ "add-tables": "public.with\\.dot,public.with\\,comma" }, ["public", "with.dot"], true],
  [{ "add-tables": "public.with\\.dot,public.with\\,comma" }, ["public", "with,comma"], true],
  [{ "add-tables": "public.with\\.dot" }, ["public", "dot"], false],
];

for (const [params, [schema, table], included] of TABLE) {
  test(`${JSON.stringify(params)} ${included ? "hands out" : "leaves out"} ${schema}.${table}`, () => {
    const tables = publishedTables({ name: "slot", wal2jsonParams: Object.entries(params) });
    assert.equal(tables.includes(schema, table), included);
  });
}

test("without updates and deletes nothing needs a replica identity", () => {
  const of = (actions?: string) =>
    publishedTables({ name: "slot", wal2jsonParams: actions === undefined ? [] : [["actions", actions]] }).withOldRows;
  assert.deepEqual([of(), of("insert"), of("insert, truncate"), of("insert,delete")], [true, false, false, true]);
});
