import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { formatWal2jsonParams, parseWal2jsonParams } from "../../src/config/wal2json_params.ts";

const READ: Array<[text: string, params: Array<[string, string]>]> = [
  [String.raw`\"format-version\" '2' , \"include-types\" '1'`, [["format-version", "2"], ["include-types", "1"]]],
  [`"format-version" '2' , "include-types" '0'`, [["format-version", "2"], ["include-types", "0"]]],
  [`"format-version" '2',"include-types" '0'`, [["format-version", "2"], ["include-types", "0"]]],
  [`format-version 2, include-xids true`, [["format-version", "2"], ["include-xids", "true"]]],
  [`"format-version" "2"`, [["format-version", "2"]]],
  [`"format-version" '2', "add-msg-prefixes" 'it''s, a # ; test'`, [
    ["format-version", "2"],
    ["add-msg-prefixes", "it's, a # ; test"],
  ]],
  [String.raw`"format-version" '2', "add-tables" 'public.Foo\ bar,*.\"x\"'`, [
    ["format-version", "2"],
    ["add-tables", String.raw`public.Foo\ bar,*."x"`],
  ]],
  [`"format-version" '2', "filter-tables" ''`, [["format-version", "2"], ["filter-tables", ""]]],
  [`"format-version" '2', "pretty-print" '1', "write-in-chunks" 'on'`, [
    ["format-version", "2"],
    ["pretty-print", "1"],
    ["write-in-chunks", "on"],
  ]],
  [`"format-version" '2', "actions" 'insert, truncate'`, [["format-version", "2"], ["actions", "insert, truncate"]]],
];

for (const [text, params] of READ) {
  test(`wal2json_params are read: ${text}`, () => {
    assert.deepEqual(parseWal2jsonParams(text), { params, problems: [] });
  });
}

const V2 = `"format-version" '2'`;
const REFUSED: Array<[text: string, problem: RegExp]> = [
  ["", /"format-version" '2' is missing/],
  [`"include-types" '0'`, /"format-version" '2' is missing/],
  [`"format-version" '1'`, /'1' is not supported; wanted '2'/],
  [`${V2}, "include-typs" '0'`, /"include-typs" is not known to wal2json; did you mean include-types\?/],
  [`${V2}, "include-types" 'maybe'`, /'maybe' is no boolean/],
  [`${V2}, "actions" 'insert,upsert'`, /holds 'upsert'; allowed: insert, update, delete, truncate/],
  [`${V2}, "include-unchanged-toast" '1'`, /was removed from wal2json/],
  [`${V2}, "include-xids" '1', "include-xids" '0'`, /"include-xids" is given twice/],
  [`${V2}, "include-xids"`, /"include-xids" has no value/],
  [`"include-xids", ${V2}`, /"include-xids" has no value/],
  [`${V2} "include-xids" '1'`, /a comma is missing after "format-version" '2'/],
  [`${V2},`, /missing after the last comma/],
  [`, ${V2}`, /missing before a comma/],
  [`${V2}, , "include-xids" '1'`, /missing before a comma/],
  [`format-version=2`, /cannot be read at "=2"/],
  [`"format-version '2'`, /cannot be read at/],
  [`"format-version" '2`, /cannot be read at "'2"/],
  [`${V2} # comment`, /cannot be read at "# comment"/],
];

for (const [text, problem] of REFUSED) {
  test(`wal2json_params are refused: ${text}`, () => {
    const { problems } = parseWal2jsonParams(text);
    assert.equal(problems.length, 1, JSON.stringify(problems));
    assert.match(problems[0]!, problem);
  });
}

test("wal2json_params printed are read as the same", () => {
  const value = fc.array(fc.constantFrom(`"`, `'`, "\\", ",", " ", "a", "#", "💥"), { maxLength: 12 });
  fc.assert(
    fc.property(fc.tuple(value, value), (values) => {
      const [tables = "", prefixes = ""] = values.map((parts) => parts.join(""));
      const params = [["filter-tables", tables], ["format-version", "2"], ["add-msg-prefixes", prefixes]] as const;
      assert.deepEqual(parseWal2jsonParams(formatWal2jsonParams(params)), { params, problems: [] });
    }),
    { numRuns: 1000 },
  );
});
