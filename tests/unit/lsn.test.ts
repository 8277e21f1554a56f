import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { formatLsn, parseLsn, readLsn, readLsnText } from "../../src/core/lsn.ts";

const KNOWN: Array<[text: string, lsn: bigint]> = [
  ["0/0", 0n],
  ["0/1", 1n],
  ["16/B374D848", 0x16b374d848n],
  ["1/0", 0x100000000n],
  ["FFFFFFFF/FFFFFFFF", 0xffffffffffffffffn],
];

for (const [text, lsn] of KNOWN) {
  test(`the LSN ${text} is read and written`, () => {
    assert.equal(parseLsn(text), lsn);
    assert.equal(parseLsn(text.toLowerCase()), lsn);
    assert.equal(formatLsn(lsn), text);
  });
}

for (
  const text of [
    "",
    "0",
    "/",
    "0/",
    "/0",
    "0/0/0",
    "0x1/0",
    "123456789/0",
    "0/123456789",
    " 0/0",
    "0/0\n",
    "-1/0",
    "g/0",
  ]
) {
  test(`${JSON.stringify(text)} is no LSN`, () => {
    assert.throws(
      () => parseLsn(text),
      (error) => error instanceof RangeError && error.message.includes("is not an LSN"),
    );
  });
}

test("text, number and bytes of any LSN agree, and order is kept", () => {
  fc.assert(fc.property(fc.bigInt(0n, 2n ** 64n - 1n), fc.nat(9), (lsn, offset) => {
    const buffer = Buffer.alloc(offset + 8);
    buffer.writeBigUInt64BE(lsn, offset);
    assert.equal(readLsn(buffer, offset), lsn);
    assert.equal(readLsnText(buffer, offset), formatLsn(lsn));
    assert.equal(parseLsn(formatLsn(lsn)), lsn);
  }));
});

test("an LSN beyond the buffer is a RangeError", () => {
  assert.throws(() => readLsn(Buffer.alloc(8), 1), RangeError);
});
