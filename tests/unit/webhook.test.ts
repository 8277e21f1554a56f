import assert from "node:assert/strict";
import { test } from "node:test";
import { parseHeaders, splitHeaders } from "../../src/core/message_headers.ts";
import type { Event } from "../../src/core/event.ts";
import type { Delivery } from "../../src/core/upstream.ts";
import { isPrivateAddress } from "../../src/upstreams/private_addresses.ts";
import { retryAfterMs } from "../../src/upstreams/webhook.ts";
import { WebhookQueue } from "../../src/upstreams/webhook_queue.ts";
import { makeEvent } from "./scripted_upstream.ts";

test("private addresses are told from public ones, in every way to write them", () => {
  const isPrivate = [
    ...["127.0.0.1", "127.255.255.254", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254"],
    ...["0.0.0.0", "100.64.0.1", "198.18.0.1", "224.0.0.1", "255.255.255.255", "192.0.2.1"],
    ...["::1", "::", "fc00::1", "fdff::1", "fe80::1", "fe80::1%eth0", "ff02::1", "2001:db8::1", "febf::1", "fec0::1"],
    ...["::ffff:127.0.0.1", "::ffff:a00:1", "0:0:0:0:0:ffff:c0a8:0101", "64:ff9b::10.0.0.1", "2002:0a00:0001::1"],
    ...["::127.0.0.1", "2002:7f00::"],
  ];
  for (const address of isPrivate) assert.equal(isPrivateAddress(address), true, address);
  const isPublic = [
    ...["1.1.1.1", "172.15.255.255", "172.32.0.1", "100.128.0.1", "192.169.0.1", "8.8.8.8", "223.255.255.255"],
    ...["2606:4700::1111", "2a00:1450:4001::200e", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"],
  ];
  for (const address of isPublic) assert.equal(isPrivateAddress(address), false, address);
  assert.throws(() => isPrivateAddress("localhost"), /is no IP address/);
});

test("Retry-After is read as seconds and as a date, within bounds", () => {
  const nowMs = Date.UTC(2026, 0, 1);
  assert.equal(retryAfterMs("3", nowMs), 3_000);
  assert.equal(retryAfterMs(" 0 ", nowMs), 0);
  assert.equal(retryAfterMs("Thu, 01 Jan 2026 00:01:00 GMT", nowMs), 60_000);
  assert.equal(retryAfterMs("Wed, 31 Dec 2025 00:00:00 GMT", nowMs), 0);
  assert.equal(retryAfterMs("999999999999", nowMs), 3_600_000);
  for (const text of [undefined, "", "soon", "1.5s"]) assert.equal(retryAfterMs(text, nowMs), 0);
});

test("headers are split from messages only where they are headers", () => {
  assert.deepEqual(splitHeaders("A: 1; b-C:x: y ;|text|more"), {
    headers: { A: "1", "b-C": "x: y" },
    message: "text|more",
  });
  assert.deepEqual(splitHeaders("|text"), { headers: {}, message: "text" });
  for (const text of ["text", "a sentence: with|bar", "{a: b|c", "A: 1; no|text"]) {
    assert.equal(splitHeaders(text), undefined, text);
  }
  assert.deepEqual(Object.entries(parseHeaders("__proto__: x; constructor: y") ?? {}), [
    ["__proto__", "x"],
    ["constructor", "y"],
  ]);
});

function delivery(id: string, fields: Partial<Event>, name = "http://h/"): Delivery {
  const target = { type: "url", name };
  return { event: { ...makeEvent(id), ...fields }, target, acknowledge: () => {}, refuse: () => {} };
}

function ids(deliveries: readonly Delivery[]): string {
  return deliveries.map(({ event }) => event.id).join("");
}

test("the queue of a webhook keeps one chain, or one for each table and key, and mixes no targets", () => {
  const row = (table: string, action: string) => ({ type: "wal" as const, routingKey: `public.${table}.${action}` });
  const fill = (queue: WebhookQueue) => {
    queue.push(delivery("a", row("t", "insert")));
    queue.push(delivery("b", row("u", "insert")));
    queue.push(delivery("c", row("t", "update")));
    queue.push(delivery("d", row("t", "delete"), "http://other/"));
    queue.push(delivery("e", { type: "notify", routingKey: "k" }));
    return queue;
  };
  const single = fill(new WebhookQueue(1));
  const chain = single.take()!;
  assert.equal(single.take(), undefined);
  assert.equal(ids(single.takeFrom(chain, 10)), "abc");
  single.release(chain);
  assert.equal(single.take(), chain);
  assert.equal(ids(single.takeFrom(chain, 10)), "d");

  const several = fill(new WebhookQueue(4));
  const chains = [several.take()!, several.take()!, several.take()!, several.take()!];
  assert.equal(several.take(), undefined);
  assert.deepEqual(chains.map((each) => ids(several.takeFrom(each, 1))), ["a", "b", "d", "e"]);
  for (const each of chains) several.release(each);
  assert.equal(ids(several.takeFrom(several.take()!, 1)), "c");
  assert.equal(several.take(), undefined, "a chain is ready again only when it was released");
});
