import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { formatBridgeChannels, parseBridgeChannels } from "../../src/config/bridge_channels.ts";

function binding(channel: string, type: string, name: string) {
  return { channel, target: { type, name } };
}

const READ: Array<[text: string, bindings: ReturnType<typeof binding>[]]> = [
  ["events->exchange:amq.topic, wal2json->exchange:amq.topic", [
    binding("events", "exchange", "amq.topic"),
    binding("wal2json", "exchange", "amq.topic"),
  ]],
  ["pgchannel1->exchange:topic_exchange_name, pgchannel2->queue:queue_name, pgchannel3->topic:topic_name", [
    binding("pgchannel1", "exchange", "topic_exchange_name"),
    binding("pgchannel2", "queue", "queue_name"),
    binding("pgchannel3", "topic", "topic_name"),
  ]],
  ["  a  ->  topic  :  b  ,c->topic:d", [binding("a", "topic", "b"), binding("c", "topic", "d")]],
  ["a->topic:arn:aws:sns:eu-west-1:123456789012:t", [binding("a", "topic", "arn:aws:sns:eu-west-1:123456789012:t")]],
  ["a->url:https://example.org/x?y=1#z", [binding("a", "url", "https://example.org/x?y=1#z")]],
  ["a->topic:x->y", [binding("a", "topic", "x->y")]],
  ["a:b->topic:c", [binding("a:b", "topic", "c")]],
  ["My Channel->topic:t", [binding("My Channel", "topic", "t")]],
  ["a->topic:t, a->topic:u", [binding("a", "topic", "t"), binding("a", "topic", "u")]],
  [`${"c".repeat(63)}->topic:t`, [binding("c".repeat(63), "topic", "t")]],
];

for (const [text, bindings] of READ) {
  test(`bridge_channels are read: ${text.slice(0, 60)}`, () => {
    assert.deepEqual(parseBridgeChannels(text), { bindings, problems: [] });
  });
}

const REFUSED: Array<[text: string, problem: RegExp]> = [
  ["", /^the list is empty; wanted pgchannel->type:target/],
  ["   ", /^the list is empty/],
  ["a->topic:t,", /^item 2 "": is empty; remove the comma/],
  [",a->topic:t", /^item 1 "": is empty/],
  ["a->topic:t,,b->topic:u", /^item 2 "": is empty/],
  ["a=>topic:t", /^item 1 "a=>topic:t": has no ->/],
  ["a", /^item 1 "a": has no ->/],
  ["->topic:t", /^item 1 .*has no channel/],
  ["a->topic", /^item 1 .*has no : in the target/],
  ["a->:t", /^item 1 .*has no type/],
  ["a->topic:", /^item 1 .*has no name/],
  ["a->topic: , b->topic:u", /^item 1 "a->topic:": has no name/],
  ["a->topic:t, a -> topic : t", /^item 2 .*the same as item 1/],
  [`${"c".repeat(64)}->topic:t`, /has 64 bytes; PostgreSQL allows 63$/],
  [`${"ä".repeat(32)}->topic:t`, /has 64 bytes; PostgreSQL allows 63$/],
  ["a->topic:t # my topic", /^item 1 .*comments stand on a line of their own/],
  ["a->topic:t ; my topic", /^item 1 .*comments stand on a line of their own/],
];

for (const [text, problem] of REFUSED) {
  test(`bridge_channels are refused: ${JSON.stringify(text.slice(0, 60))}`, () => {
    const { problems } = parseBridgeChannels(text);
    assert.equal(problems.length, 1);
    assert.match(problems[0]!, problem);
  });
}

test("bridge_channels name every faulty item", () => {
  const { bindings, problems } = parseBridgeChannels("a, b->topic:t, c->t, d->topic:");
  assert.deepEqual(bindings, [binding("b", "topic", "t")]);
  assert.deepEqual(problems.map((problem) => problem.slice(0, 6)), ["item 1", "item 3", "item 4"]);
});

test("bridge_channels printed are read as the same", () => {
  const part = fc.string({ unit: "grapheme", minLength: 1, maxLength: 15 }).map((text) => text.trim())
    .filter((text) => text !== "" && !/,|->|\s[#;]|^[#;]/.test(text));
  const item = fc.record({
    channel: part,
    target: fc.record({ type: part.filter((text) => !text.includes(":")), name: part }, { noNullPrototype: true }),
  }, { noNullPrototype: true }).filter(({ channel }) => new TextEncoder().encode(channel).length <= 63);
  fc.assert(fc.property(fc.uniqueArray(item, { minLength: 1, selector: (one) => JSON.stringify(one) }), (bindings) => {
    assert.deepEqual(parseBridgeChannels(formatBridgeChannels(bindings)), { bindings, problems: [] });
  }));
});

test("bridge_channels take any text without throwing", () => {
  const text = fc.array(fc.constantFrom("a", "->", ":", ",", " ", "#", "topic", "\0", "💥"), { maxLength: 30 });
  fc.assert(fc.property(text.map((parts) => parts.join("")), (list) => {
    const { bindings, problems } = parseBridgeChannels(list);
    assert.ok(bindings.length + problems.length > 0);
  }));
});
