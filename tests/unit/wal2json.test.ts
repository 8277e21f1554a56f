import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { actionOf, contentOf, messageHeadOf, routingKeyOf, RoutingKeys } from "../../src/postgres/wal2json.ts";

/** The record between other bytes, which must not be read. */
function within(text: string): [buffer: Buffer, start: number, end: number] {
  const record = Buffer.from(text);
  const before = Buffer.from('"columns":{');
  const after = Buffer.from(',"schema":"beyond","table":"beyond","content":"beyond"}');
  return [Buffer.concat([before, record, after]), before.length, before.length + record.length];
}

const ACTIONS: Array<[record: string, action: string]> = [
  ['{"action":"B"}', "B"],
  ['{"action":"C"}', "C"],
  ['{"action":"B","xid":743,"timestamp":"2024-05-01 10:00:00.000000+00"}', "B"],
  ['{"action":"I","schema":"public","table":"t","columns":[]}', "I"],
  ['{"action":"M","transactional":true,"prefix":"p","content":"c"}', "M"],
];

for (const [record, action] of ACTIONS) {
  test(`the action of ${record.slice(0, 40)} is ${action}`, () => {
    assert.equal(String.fromCharCode(actionOf(...within(record))), action);
  });
}

test("what is no record of format version 2 has no action", () => {
  for (const record of ["", "{", '{"action":"', '{"action":"I', '{"change":[{"kind":"insert"}]}', "a".repeat(20)]) {
    assert.equal(actionOf(...within(record)), 0, record);
  }
});

const COLUMNS = '"columns":[{"name":"table","value":"no"},{"name":"schema","value":"no"}]';
/** In the order in which wal2json 2.5 writes them (pg_decode_write_change). */
const HEAD = '"xid":743,"timestamp":"2024-05-01 10:00:00.000000+00","origin":0,"lsn":"0/1949F90"';

const KEYS: Array<[record: string, key: string]> = [
  [`{"action":"I","schema":"public","table":"t",${COLUMNS}}`, "public.t.insert"],
  [`{"action":"U","schema":"public","table":"t",${COLUMNS},"identity":[]}`, "public.t.update"],
  [`{"action":"D","schema":"public","table":"t","identity":[]}`, "public.t.delete"],
  [`{"action":"T","schema":"public","table":"t"}`, "public.t.truncate"],
  [`{"action":"I",${HEAD},"schema":"s","table":"t",${COLUMNS}}`, "s.t.insert"],
  [`{"action":"I","xid":743,"schema":"s","table":"t",${COLUMNS}}`, "s.t.insert"],
  [`{"action":"I","timestamp":"2024-05-01 10:00:00+00","schema":"s","table":"t",${COLUMNS}}`, "s.t.insert"],
  [`{"action":"I","lsn":"0/1949F90","schema":"s","table":"t",${COLUMNS}}`, "s.t.insert"],
  [`{"action":"I","origin":0,"schema":"s","table":"t",${COLUMNS}}`, "s.t.insert"],
  [`{"action":"I","table":"t",${COLUMNS}}`, "t.insert"],
  [`{"action":"I",${HEAD},"table":"t",${COLUMNS}}`, "t.insert"],
  [`{"action":"I","schema":"public","table":"columns",${COLUMNS}}`, "public.columns.insert"],
  [`{"action":"I","schema":"table","table":"schema",${COLUMNS}}`, "table.schema.insert"],
  [`{"action":"I","schema":"a.b","table":"c.d",${COLUMNS}}`, "a.b.c.d.insert"],
  [`{"action":"I","schema":"","table":"",${COLUMNS}}`, "..insert"],
  [String.raw`{"action":"I","schema":"s","table":"a\"b",${COLUMNS}}`, 's.a"b.insert'],
  [String.raw`{"action":"I","schema":"s","table":"a\\",${COLUMNS}}`, "s.a\\.insert"],
  [String.raw`{"action":"I","schema":"\\\"","table":"\",\"table\":\"x",${COLUMNS}}`, '\\".","table":"x.insert'],
  [String.raw`{"action":"I","schema":"s","table":"tab\tnew\nline\u0001",${COLUMNS}}`, "s.tab\tnew\nline\u0001.insert"],
  [`{"action":"I","schema":"schéma","table":"Größe 🚀",${COLUMNS}}`, "schéma.Größe 🚀.insert"],
  [`{"action":"I","schema":"a{}[],:","table":"}",${COLUMNS}}`, "a{}[],:.}.insert"],
];

for (const [record, key] of KEYS) {
  test(`the routing key ${JSON.stringify(key)} is read from ${record.slice(0, 60)}`, () => {
    assert.equal(routingKeyOf(...within(record)), key);
  });
}

test("a record that is cut off before the end of its names has no routing key, wherever that is", () => {
  const record = KEYS[4]![0];
  const namesEnd = record.indexOf(',"columns"');
  for (let size = 0; size < namesEnd; size++) {
    assert.equal(routingKeyOf(...within(record.slice(0, size))), "", record.slice(0, size));
  }
  assert.equal(routingKeyOf(...within(record.slice(0, namesEnd))), "s.t.insert");
});

test("the names of any schema and table make the routing key, with any fields before them", () => {
  const name = fc.string({ unit: "grapheme", minLength: 1, maxLength: 63 });
  const fields = fc.subarray(HEAD.split(/,(?=")/));
  const verb = fc.constantFrom(["I", "insert"] as const, ["U", "update"] as const, ["D", "delete"] as const);
  fc.assert(fc.property(name, name, fields, verb, (schema, table, before, [letter, word]) => {
    const names = [`"schema":${JSON.stringify(schema)}`, `"table":${JSON.stringify(table)}`];
    const record = `{"action":"${letter}",${[...before, ...names, COLUMNS].join(",")}}`;
    assert.equal(routingKeyOf(...within(record)), `${schema}.${table}.${word}`);
  }));
});

const MESSAGES: Array<[record: string, transactional: boolean, prefix: string, content: string]> = [
  ['{"action":"M","transactional":true,"prefix":"p","content":"key|text"}', true, "p", "key|text"],
  ['{"action":"M","transactional":false,"prefix":"p","content":""}', false, "p", ""],
  ['{"action":"M","xid":743,"timestamp":"x","transactional":true,"prefix":"p","content":"c"}', true, "p", "c"],
  ['{"action":"M","xid":null,"lsn":"0/1","transactional":false,"prefix":"p","content":"c"}', false, "p", "c"],
  // No String.raw: Bun 1.4.5 rewrites characters beyond ASCII in it.
  [
    '{"action":"M","transactional":true,"prefix":"a\\"b\\\\","content":"\\"\\u00e9\\n🚀\\\\"}',
    true,
    'a"b\\',
    '"é\n🚀\\',
  ],
  ['{"action":"M","transactional":true,"prefix":"content","content":"prefix"}', true, "content", "prefix"],
];

for (const [record, transactional, prefix, content] of MESSAGES) {
  test(`the head of ${record} is read`, () => {
    const [buffer, start, end] = within(record);
    const head = messageHeadOf(buffer, start, end);
    assert.ok(head !== undefined);
    assert.deepEqual([head.transactional, head.prefix, contentOf(buffer, head)], [transactional, prefix, content]);
  });
}

test("a message that is cut off before the end of its content has no head", () => {
  const [record] = MESSAGES[0]!;
  for (let size = 0; size < record.length - 1; size++) {
    assert.equal(messageHeadOf(...within(record.slice(0, size))), undefined, record.slice(0, size));
  }
});

test("any content of a message is read back", () => {
  const text = fc.string({ unit: "grapheme", maxLength: 200 });
  fc.assert(fc.property(text, text, (prefix, content) => {
    const fields = `"transactional":true,"prefix":${JSON.stringify(prefix)},"content":${JSON.stringify(content)}`;
    const [buffer, start, end] = within(`{"action":"M",${fields}}`);
    const head = messageHeadOf(buffer, start, end)!;
    assert.deepEqual([head.prefix, contentOf(buffer, head)], [prefix, content]);
  }));
});

/** Records with some bytes changed: closer to the parsers' branches than random bytes. */
const mangled = fc.tuple(
  fc.constantFrom(...KEYS.map(([record]) => record), ...MESSAGES.map(([record]) => record)),
  fc.array(fc.tuple(fc.nat(), fc.constantFrom(...'"\\,:{}[]tsp\0u'), fc.nat(2)), { maxLength: 6 }),
  fc.nat(),
).map(([record, edits, cut]) => {
  let text = record;
  for (const [at, character, removed] of edits) {
    const i = at % text.length;
    text = text.slice(0, i) + character + text.slice(i + removed);
  }
  return text.slice(0, text.length - cut % 20);
});

test("mangled records and random bytes neither throw nor read beyond their end", () => {
  const random = fc.uint8Array({ maxLength: 100 }).map((bytes) => Buffer.from(bytes).toString("latin1"));
  const body = random.map((text) => `{"action":"I",${text}`);
  fc.assert(
    fc.property(fc.oneof(mangled, random, body), (record) => {
      const embedded = within(record);
      const alone: [Buffer, number, number] = [Buffer.from(record), 0, Buffer.byteLength(record)];
      assert.equal(actionOf(...embedded), actionOf(...alone));
      assert.equal(routingKeyOf(...embedded), routingKeyOf(...alone));
      const [head, aloneHead] = [messageHeadOf(...embedded), messageHeadOf(...alone)];
      assert.equal(head?.prefix, aloneHead?.prefix);
      if (head !== undefined && aloneHead !== undefined) {
        assert.equal(contentOf(embedded[0], head), contentOf(alone[0], aloneHead));
      }
    }),
    { numRuns: 2000 },
  );
});

test("the cache of routing keys gives what reading them gives, the first time and every other", () => {
  const record = fc.constantFrom(...KEYS.map(([record]) => record));
  fc.assert(
    fc.property(fc.array(fc.oneof(record, mangled), { maxLength: 30 }), (records) => {
      const keys = new RoutingKeys();
      for (const record of [...records, ...records]) {
        const embedded = within(record);
        assert.equal(keys.of(...embedded), routingKeyOf(...embedded), record);
      }
    }),
    { numRuns: 500 },
  );
});

test("the cache of routing keys tells tables apart, also more of them than it holds", () => {
  const keys = new RoutingKeys();
  const insert = (schema: string, table: string) =>
    `{"action":"I","schema":"${schema}","table":"${table}","columns":[]}`;
  for (let round = 0; round < 2; round++) {
    for (let i = 0; i < 10_000; i++) {
      const [schema, table] = [`s${i % 7}`, `t${i}`];
      assert.equal(keys.of(...within(insert(schema, table))), `${schema}.${table}.insert`);
    }
  }
  assert.equal(keys.of(...within(insert("ab", "c"))), "ab.c.insert");
  assert.equal(keys.of(...within(insert("a", "bc"))), "a.bc.insert");
  assert.equal(keys.of(...within('{"action":"U","schema":"a","table":"bc","columns":[]}')), "a.bc.update");
});
