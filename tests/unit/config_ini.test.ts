import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import ini from "ini";
import { formatIniValue, parseIni } from "../../src/config/ini.ts";

/** Every value must come out as it went in. */
const VERBATIM = [
  String.raw`\"format-version\" '2' , \"include-types\" '1'`,
  `"format-version" '2' , "include-types" '0'`,
  "amqp://user:pass@rabbitmq//",
  "events->exchange:amq.topic, wal2json->exchange:amq.topic",
  "pa#ss",
  "#pass",
  ";pass",
  "pa ; ss # word",
  "a=b==c",
  "100%d%20",
  `"`,
  `'`,
  `"abc`,
  `it's`,
  `"a" and "b"`,
  `'a' and 'b'`,
  String.raw`C:\new\table`,
  String.raw`a\\b\"c\;d`,
  "true",
  "null",
  "0123",
  "[x]",
  "päss💥",
];

for (const value of VERBATIM) {
  test(`an ini value is taken as it stands: ${value}`, () => {
    assert.deepEqual(parseIni(`[s]\nkey=${value}`).entries, [{ section: "s", key: "key", value, line: 2 }]);
  });
}

const UNQUOTED: Array<[written: string, value: string]> = [
  [`" a "`, " a "],
  [`"a"`, "a"],
  [`'a'`, "a"],
  [`' a\\'`, " a\\"],
  [String.raw`"a\"b\\c\d"`, String.raw`a"b\c\d`],
  [`""`, ""],
  [`'"a"'`, `"a"`],
];

for (const [written, value] of UNQUOTED) {
  test(`an ini value loses the quotes around it: ${written}`, () => {
    assert.equal(parseIni(`[s]\nkey = ${written} `).entries[0]?.value, value);
  });
}

test("ini lines have sections, comments and numbers", () => {
  const text =
    "\uFEFF; comment\r\n# comment\r\n\r\n before = 1\r\n[ Local ] ; comment\r\nA=1\r\n [b.c]\r\n  x = y = z  \r\n";
  assert.deepEqual(parseIni(text), {
    entries: [
      { section: undefined, key: "before", value: "1", line: 4 },
      { section: "Local", key: "A", value: "1", line: 6 },
      { section: "b.c", key: "x", value: "y = z", line: 8 },
    ],
    sections: [{ name: "Local", line: 5 }, { name: "b.c", line: 7 }],
    problems: [],
  });
});

test("ini lines that mean nothing are named by number and not shown", () => {
  const { entries, problems } = parseIni("[s]\nkey\n=value\n[open\nhunter2\nfine=1");
  assert.deepEqual(entries.map(({ key }) => key), ["fine"]);
  assert.deepEqual(problems.map(({ line }) => line), [2, 3, 4, 5]);
  assert.ok(!JSON.stringify(problems).includes("hunter2"));
});

test("ini names that objects know are names like any other", () => {
  const { entries } = parseIni("[__proto__]\n__proto__=1\nconstructor=2\nkey[]=3");
  assert.deepEqual(entries.map(({ section, key }) => `${section}/${key}`), [
    "__proto__/__proto__",
    "__proto__/constructor",
    "__proto__/key[]",
  ]);
});

test("ini values printed are read as the same", () => {
  const special = fc.array(fc.constantFrom(`"`, `'`, "\\", " ", "#", ";", "=", "a", "\t", "\u2028"), { maxLength: 12 });
  const value = fc.oneof(special.map((parts) => parts.join("")), fc.string({ unit: "binary" }))
    .filter((text) => !/[\r\n]/.test(text));
  fc.assert(
    fc.property(value, (text) => {
      assert.equal(parseIni(`[s]\nkey=${formatIniValue(text)}`).entries[0]?.value, text);
    }),
    { numRuns: 2000 },
  );
});

test("the npm package ini reads plain files alike", () => {
  const word = fc.stringMatching(/^[a-z][a-z0-9_]{0,8}$/).filter((name) => !(name in Object.prototype));
  const value = fc.stringMatching(/^[a-z0-9][a-z0-9:,.>@%= /-]{0,20}$/).map((text) => `v${text}`);
  const file = fc.dictionary(word, fc.dictionary(word, value, { minKeys: 1 }), { minKeys: 1 });
  fc.assert(fc.property(file, (sections) => {
    const text = Object.entries(sections)
      .map(([name, keys]) => `[${name}]\n${Object.entries(keys).map(([key, v]) => `${key} = ${v}\n`).join("")}`)
      .join("; comment\n");
    const ours: Record<string, Record<string, string>> = {};
    for (const { section, key, value } of parseIni(text).entries) (ours[section ?? ""] ??= {})[key] = value;
    assert.deepEqual(ours, JSON.parse(JSON.stringify(ini.parse(text))));
  }));
});
