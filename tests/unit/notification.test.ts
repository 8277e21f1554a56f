import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { parseNotification } from "../../src/core/notification.ts";

const TABLE: Array<[payload: string, routingKey: string, message: string, json: boolean]> = [
  ["", "", "", false],
  ["My message", "", "My message", false],
  ["signup|A new user signup", "signup", "A new user signup", false],
  ["a|b|c", "a", "b|c", false],
  ["|message", "", "message", false],
  ["key|", "key", "", false],
  ["|", "", "", false],
  ["key.with.dots|m", "key.with.dots", "m", false],
  [" key |m", " key ", "m", false],
  ['{"a":"b|c"}', "", '{"a":"b|c"}', true],
  ['["a|b"]', "", '["a|b"]', true],
  ['"a|b"', "", '"a|b"', true],
  ['{"a|b', "", '{"a|b', false],
  ['key|{"a":1}', "key", '{"a":1}', true],
  ["key|[1,2]", "key", "[1,2]", true],
  ['key|"text"', "key", '"text"', true],
  ["key|{not json", "key", "{not json", false],
  ["key|12", "key", "12", false],
  [' {"a":"b|c"}', ' {"a":"b', 'c"}', false],
  ["🚀|🎉", "🚀", "🎉", false],
];

for (const [payload, routingKey, message, json] of TABLE) {
  test(`the payload ${JSON.stringify(payload)} is split`, () => {
    assert.deepEqual(parseNotification(payload), { routingKey, message, json });
  });
}

test("nothing of a payload is lost but its first bar", () => {
  fc.assert(fc.property(fc.string({ unit: "grapheme" }), (payload) => {
    const { routingKey, message } = parseNotification(payload);
    const whole = payload === message ? message : `${routingKey}|${message}`;
    assert.equal(whole, payload);
    assert.ok(!routingKey.includes("|"));
  }));
});
