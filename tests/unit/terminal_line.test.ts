import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { harmlessText } from "../../src/cli/colours.ts";
import type { Event } from "../../src/core/event.ts";
import { parseRawJson, type RawJson, textOf } from "../../src/tail/raw_json.ts";
import { terminalLine } from "../../src/tail/terminal_line.ts";

function event(channel: string, payload: string, routingKey = ""): Event {
  const type = channel === "wal2json" ? "wal" : "notify";
  return { id: "1", type, channel, routingKey, payload: Buffer.from(payload), json: true, receivedAtMs: 0 };
}

const line = (channel: string, payload: string, key?: string) =>
  terminalLine(event(channel, payload, key), (_, text) => text).replace(/^\d\d:\d\d:\d\d\.\d{3} /, "");
const record = (action: string, rest: object) => JSON.stringify({ action, schema: "public", table: "t", ...rest });
const column = (name: string, value: unknown) => ({ name, value });

const LINES: ReadonlyArray<readonly [what: string, channel: string, payload: string, line: string]> = [
  [
    "an insert",
    "wal2json",
    record("I", { columns: [column("a", 1), column("b", "x y")] }),
    'INSERT   public.t  a=1 b="x y"\n',
  ],
  [
    "an update that changes no key",
    "wal2json",
    record("U", { columns: [column("a", 1), column("b", null)], identity: [column("a", 1)] }),
    "UPDATE   public.t  a=1 b=null\n",
  ],
  [
    "an update of the key",
    "wal2json",
    record("U", { columns: [column("a", 2)], identity: [column("a", 1)] }),
    "UPDATE   public.t  a=2  was a=1\n",
  ],
  ["a delete", "wal2json", record("D", { identity: [column("a", true)] }), "DELETE   public.t  a=true\n"],
  ["a truncation", "wal2json", record("T", {}), "TRUNCATE public.t\n"],
  [
    "a logical message",
    "wal2json",
    '{"action":"M","transactional":false,"prefix":"p","content":"c\\n"}',
    "MESSAGE  p  c\\n\n",
  ],
  [
    "a number beyond doubles",
    "wal2json",
    '{"action":"I","schema":"s","table":"t","columns":[{"name":"n","value":12345678901234567890.10}]}',
    "INSERT   s.t  n=12345678901234567890.10\n",
  ],
  ["what is no JSON", "wal2json", '{"action":"I"', 'NOTIFY   wal2json  {"action":"I"\n'],
  ["an unknown action", "wal2json", '{"action":"X"}', 'NOTIFY   wal2json  {"action":"X"}\n'],
  ["a notification", "news", "hello", "NOTIFY   news  hello\n"],
  ["a notification that looks like a change", "news", record("I", {}), `NOTIFY   news  ${record("I", {})}\n`],
];

for (const [what, channel, payload, wanted] of LINES) {
  test(`a line of ${what}`, () => assert.equal(line(channel, payload), wanted));
}

test("a routing key stands before the message", () => {
  assert.equal(line("news", "hello", "key"), "NOTIFY   news  key  hello\n");
});

test("nothing reaches the terminal that it would obey", () => {
  fc.assert(fc.property(fc.string({ unit: "binary" }), fc.string({ unit: "binary" }), (a, b) => {
    for (const text of [line("news", a, b), line("wal2json", record("I", { columns: [column(a, b)] })), line(a, b)]) {
      // deno-lint-ignore no-control-regex
      assert.doesNotMatch(text.slice(0, -1), /[\x00-\x1f\x7f-\x9f]/);
      assert.ok(text.endsWith("\n"));
    }
  }));
  assert.equal(harmlessText("a\u202eb\u0007"), "a\\u202eb\\u0007");
});

function rawOf(value: unknown): RawJson {
  if (Array.isArray(value)) return value.map(rawOf);
  if (value !== null && typeof value === "object") {
    return new Map(Object.entries(value).map(([name, member]) => [name, rawOf(member)]));
  }
  return JSON.stringify(value);
}

test("raw JSON has the structure that JSON.parse finds, and its scalars as they stand there", () => {
  fc.assert(fc.property(fc.json(), fc.boolean(), (text, pretty) => {
    const value = JSON.parse(text);
    assert.deepEqual(parseRawJson(pretty ? JSON.stringify(value, undefined, 2) : text), rawOf(JSON.parse(text)));
  }));
});

test("what is no JSON is none", () => {
  for (const text of ["", "{", '{"a"}', "[1,]", "1 2", '{"a":1,}', "nul", "'a'"]) {
    assert.equal(parseRawJson(text), undefined, text);
  }
});

test("the text of a string", () => {
  assert.deepEqual([textOf('"a\\u0041"'), textOf("12"), textOf(undefined), textOf('"\\x"')], ["aA", "12", "", "\\x"]);
});
