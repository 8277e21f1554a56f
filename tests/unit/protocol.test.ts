import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
  COPY_DONE,
  cString,
  parseDataRow,
  parseErrorFields,
  parseSaslMechanisms,
  passwordMessage,
  query,
  quoteIdentifier,
  quoteLiteral,
  saslInitialResponse,
  saslResponse,
  SSL_REQUEST,
  standbyStatusUpdate,
  startupMessage,
  TERMINATE,
} from "../../src/postgres/protocol.ts";

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");

const GOLDEN: Array<[what: string, bytes: Uint8Array, expected: string]> = [
  ["SSLRequest", SSL_REQUEST, "0000000804d2162f"],
  ["Terminate", TERMINATE, "5800000004"],
  ["CopyDone", COPY_DONE, "6300000004"],
  [
    "StartupMessage",
    startupMessage({ user: "u", database: "d" }),
    "0000001b00030000" + "7573657200" + "7500" + "646174616261736500" + "6400" + "00",
  ],
  ["StartupMessage with UTF-8", startupMessage({ user: "ü" }), "0000001100030000" + "7573657200" + "c3bc00" + "00"],
  ["Query", query("select 1"), "510000000d" + "73656c656374203100"],
  ["Query with UTF-8", query("é"), "5100000007" + "c3a900"],
  ["empty Query", query(""), "510000000500"],
  ["PasswordMessage", passwordMessage("pw"), "7000000007" + "707700"],
  [
    "SASLInitialResponse",
    saslInitialResponse("SCRAM-SHA-256", "n,,n=,r=x"),
    "700000001f" + "534352414d2d5348412d32353600" + "00000009" + "6e2c2c6e3d2c723d78",
  ],
  ["SASLResponse", saslResponse("c=biws"), "700000000a" + "633d62697773"],
  [
    "StandbyStatusUpdate",
    standbyStatusUpdate(
      { writtenLsn: 0x16b374d848n, flushedLsn: 1n, appliedLsn: 0xffffffffffffffffn, replyRequested: true },
      946_684_800_000,
    ),
    "6400000026" + "72" + "00000016b374d848" + "0000000000000001" + "ffffffffffffffff" + "0000000000000000" + "01",
  ],
  [
    "StandbyStatusUpdate before 2000 and without a request",
    standbyStatusUpdate({ writtenLsn: 0n, flushedLsn: 0n, appliedLsn: 0n, replyRequested: false }, 946_684_799_999.7),
    "6400000026" + "72" + "00".repeat(24) + "fffffffffffffc18" + "00",
  ],
];

for (const [what, bytes, expected] of GOLDEN) {
  test(`${what} has the bytes of the documentation`, () => {
    assert.equal(hex(bytes), expected);
    const lengthAt = what.startsWith("Startup") || what === "SSLRequest" ? 0 : 1;
    assert.equal(Buffer.from(bytes).readInt32BE(lengthAt), bytes.length - lengthAt, "its length field is right");
  });
}

/** The body between other messages' bytes, which no parser may read. */
function within(body: Buffer): [buffer: Buffer, start: number, end: number] {
  const before = Buffer.from("ZZZ");
  const after = Buffer.from("\0\0\0\x01A\0\0\0", "latin1");
  return [Buffer.concat([before, body, after]), before.length, before.length + body.length];
}

test("error fields are read up to the zero byte", () => {
  const body = Buffer.from('SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed for user "ü"\0\0');
  assert.deepEqual(parseErrorFields(...within(body)), {
    S: "FATAL",
    V: "FATAL",
    C: "28P01",
    M: 'password authentication failed for user "ü"',
  });
});

test("error fields of hostile messages end where the message ends", () => {
  assert.deepEqual(parseErrorFields(...within(Buffer.alloc(0))), {});
  assert.deepEqual(parseErrorFields(...within(Buffer.from("M"))), { M: "" });
  assert.deepEqual(parseErrorFields(...within(Buffer.from("Mno end"))), { M: "no end" });
  assert.deepEqual(parseErrorFields(...within(Buffer.from("M\0C\0"))), { M: "", C: "" });
  assert.deepEqual(parseErrorFields(...within(Buffer.from("\0Mignored\0"))), {});
});

test("a string is read up to its zero byte or the end", () => {
  assert.deepEqual(cString(Buffer.from("ab\0cd"), 0, 5), { value: "ab", next: 3 });
  assert.deepEqual(cString(Buffer.from("ab\0cd"), 3, 5), { value: "cd", next: 6 });
  assert.deepEqual(cString(Buffer.from("ab\0cd"), 0, 1), { value: "a", next: 2 });
});

function dataRow(columns: readonly (string | null)[]): Buffer {
  const parts = [Buffer.alloc(2)];
  parts[0]!.writeInt16BE(columns.length);
  for (const column of columns) {
    const length = Buffer.alloc(4);
    length.writeInt32BE(column === null ? -1 : Buffer.byteLength(column));
    parts.push(length);
    if (column !== null) parts.push(Buffer.from(column));
  }
  return Buffer.concat(parts);
}

test("data rows are read back as they were written", () => {
  const column = fc.option(fc.string({ unit: "grapheme", maxLength: 20 }));
  fc.assert(fc.property(fc.array(column, { maxLength: 20 }), (columns) => {
    assert.deepEqual(parseDataRow(...within(dataRow(columns))), columns);
  }));
});

test("NULL, the empty string and no columns at all are told apart", () => {
  assert.deepEqual(parseDataRow(...within(dataRow([null, "", "a"]))), [null, "", "a"]);
  assert.deepEqual(parseDataRow(...within(dataRow([]))), []);
});

test("a data row that is cut off anywhere is a RangeError", () => {
  const body = dataRow([null, "abc", "", "é"]);
  for (let size = 0; size < body.length; size++) {
    assert.throws(() => parseDataRow(...within(body.subarray(0, size))), RangeError, `${size} of ${body.length} bytes`);
  }
});

test("a data row with impossible lengths is a RangeError", () => {
  for (const length of [-2, -(2 ** 31), 4, 2 ** 31 - 1]) {
    const body = dataRow(["abc"]);
    body.writeInt32BE(length, 2);
    assert.throws(() => parseDataRow(...within(body)), RangeError, `length ${length}`);
  }
  const manyColumns = dataRow(["abc"]);
  manyColumns.writeInt16BE(32767);
  assert.throws(() => parseDataRow(...within(manyColumns)), RangeError);
});

test("random bytes as data row, error or mechanisms give a value or a RangeError, and never read beyond their end", () => {
  fc.assert(fc.property(fc.uint8Array({ maxLength: 60 }), (bytes) => {
    const [buffer, start, end] = within(Buffer.from(bytes));
    const alone = Buffer.from(bytes);
    for (const parse of [parseDataRow, parseErrorFields, parseSaslMechanisms]) {
      const outcome = (buffer: Buffer, start: number, end: number) => {
        try {
          return parse(buffer, start, end);
        } catch (error) {
          assert.ok(error instanceof RangeError, String(error));
          return "RangeError";
        }
      };
      assert.deepEqual(outcome(buffer, start, end), outcome(alone, 0, alone.length));
    }
  }));
});

test("SASL mechanisms are read up to the empty one", () => {
  const read = (text: string) => parseSaslMechanisms(...within(Buffer.from(text)));
  assert.deepEqual(read("SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"), ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]);
  assert.deepEqual(read("\0"), []);
  assert.deepEqual(read(""), []);
  assert.deepEqual(read("SCRAM-SHA-256"), ["SCRAM-SHA-256"]);
});

test("identifiers are quoted", () => {
  assert.equal(quoteIdentifier("plain"), '"plain"');
  assert.equal(quoteIdentifier('a"b""c'), '"a""b""""c"');
  assert.equal(quoteIdentifier("a; drop table x --"), '"a; drop table x --"');
});

test("literals are quoted so that standard_conforming_strings makes no difference", () => {
  assert.equal(quoteLiteral("it's"), "'it''s'");
  assert.equal(quoteLiteral("a\\'b"), " E'a\\\\''b'");
  assert.equal(quoteLiteral(""), "''");
});
