/** `wal2json_params`: the options of the output plugin, as START_REPLICATION writes them: `"name" 'value' , …`. */

import type { SlotConfig } from "./config.ts";
import { didYouMean } from "./nearest.ts";

type Params = SlotConfig["wal2jsonParams"];

export interface ParsedParams {
  readonly params: Params;
  readonly problems: readonly string[];
}

/** Options that take a boolean, from `pg_decode_startup` in wal2json.c; the last two came with wal2json 2.6. */
const BOOLEAN_OPTIONS = [
  "include-transaction",
  "include-xids",
  "include-timestamp",
  "include-pk",
  "include-origin",
  "include-schemas",
  "include-types",
  "include-type-oids",
  "include-typmod",
  "include-domain-data-type",
  "include-column-positions",
  "include-not-null",
  "include-default",
  "include-lsn",
  // These two shape format version 1 only: the functions of version 2 write one object per message in any case, without
  // line breaks, so that both are harmless here.
  "pretty-print",
  "write-in-chunks",
  "numeric-data-types-as-string",
  "partition-root",
];
const LIST_OPTIONS = ["filter-tables", "add-tables", "filter-msg-prefixes", "add-msg-prefixes", "filter-origins"];
const OPTIONS = ["format-version", "actions", ...BOOLEAN_OPTIONS, ...LIST_OPTIONS];
const ACTIONS = ["insert", "update", "delete", "truncate"];

const WANTED = `wanted "name" 'value' , "name" 'value'`;

/**
 * Reads the list; `\"` counts as `"`, doubled quotes stand for one, plain words need no quotes. Checks that wal2json
 * knows the options and that `format-version` is 2: version 1 writes one object per transaction, which cannot be routed
 * by table.
 */
export function parseWal2jsonParams(text: string): ParsedParams {
  const tokens = tokenize(text);
  if (typeof tokens === "string") return { params: [], problems: [tokens] };
  const params: Array<readonly [string, string]> = [];
  const problems: string[] = [];
  const seen = new Set<string>();
  for (let i = 0; i < tokens.length; i += 3) {
    const [name, value, comma] = [tokens[i]!, tokens[i + 1], tokens[i + 2]];
    if (name.comma) return { params, problems: [`an option is missing before a comma; ${WANTED}`] };
    if (value === undefined || value.comma) {
      return { params, problems: [`option "${name.text}" has no value; ${WANTED}`] };
    }
    if (comma !== undefined && !comma.comma) {
      return { params, problems: [`a comma is missing after "${name.text}" '${value.text}'; ${WANTED}`] };
    }
    if (comma !== undefined && i + 3 >= tokens.length) {
      return { params, problems: [`an option is missing after the last comma; ${WANTED}`] };
    }
    if (seen.has(name.text)) problems.push(`option "${name.text}" is given twice; remove one of them`);
    seen.add(name.text);
    const problem = optionProblem(name.text, value.text);
    if (problem !== undefined) problems.push(problem);
    params.push([name.text, value.text]);
  }
  if (!seen.has("format-version")) problems.push(`"format-version" '2' is missing; wal2json's own default is 1`);
  return { params, problems };
}

function optionProblem(name: string, value: string): string | undefined {
  if (name === "format-version") {
    if (value === "2") return undefined;
    return `"format-version" '${value}' is not supported; wanted '2', since only it has one message per row`;
  }
  if (name === "include-unchanged-toast") return `option "${name}" was removed from wal2json; remove it`;
  if (name === "actions") {
    const unknown = value.split(",").map((action) => action.trim()).find((action) => !ACTIONS.includes(action));
    return unknown === undefined ? undefined : `"actions" holds '${unknown}'; allowed: ${ACTIONS.join(", ")}`;
  }
  if (BOOLEAN_OPTIONS.includes(name)) {
    // The spellings that PostgreSQL's parse_bool takes, but for its abbreviations.
    if (/^(?:true|false|t|f|yes|no|y|n|on|off|1|0)$/i.test(value)) return undefined;
    return `"${name}" '${value}' is no boolean; allowed: '1', '0', 'true', 'false'`;
  }
  if (LIST_OPTIONS.includes(name)) return undefined;
  return `option "${name}" is not known to wal2json${didYouMean(name, OPTIONS)}`;
}

interface Token {
  readonly text: string;
  readonly comma: boolean;
}

/** The tokens, or what is wrong. */
function tokenize(text: string): Token[] | string {
  const tokens: Token[] = [];
  // Names in double quotes (each possibly written \"), values in single quotes, commas, plain words.
  const token = /\s*(?:(,)|(?:\\?")((?:[^"\\]|\\(?!")|"")*)(?:\\?")|'((?:[^']|'')*)'|([\w.*-]+))/y;
  let at = 0;
  while (text.slice(at).trim() !== "") {
    token.lastIndex = at;
    const match = token.exec(text);
    if (match === null) return `cannot be read at ${JSON.stringify(text.slice(at).trim().slice(0, 40))}; ${WANTED}`;
    at = token.lastIndex;
    const [, comma, quoted, literal, word] = match;
    if (comma !== undefined) tokens.push({ text: ",", comma: true });
    else if (quoted !== undefined) tokens.push({ text: quoted.replaceAll('""', '"'), comma: false });
    else if (literal !== undefined) {
      tokens.push({ text: literal.replaceAll("''", "'").replaceAll('\\"', '"'), comma: false });
    } else tokens.push({ text: word!, comma: false });
  }
  return tokens;
}

/** Text that parseWal2jsonParams reads as the same list. */
export function formatWal2jsonParams(params: Params): string {
  return params
    .map(([name, value]) => `"${name}" '${value.replaceAll("'", "''").replaceAll('"', '\\"')}'`)
    .join(" , ");
}
