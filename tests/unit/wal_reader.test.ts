import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { AckTracker } from "../../src/core/ack_tracker.ts";
import type { Event } from "../../src/core/event.ts";
import { formatLsn } from "../../src/core/lsn.ts";
import type { Completion, Sink } from "../../src/core/source.ts";
import { WalReader } from "../../src/sources/wal_reader.ts";

function xlogData(lsn: bigint, payload: string): Buffer {
  const body = Buffer.concat([Buffer.alloc(25), Buffer.from(payload)]);
  body.write("w");
  body.writeBigUInt64BE(lsn, 1);
  body.writeBigUInt64BE(lsn + 1000n, 9);
  return body;
}

function keepalive(walEnd: bigint, replyRequested = false): Buffer {
  const body = Buffer.alloc(18);
  body.write("k");
  body.writeBigUInt64BE(walEnd, 1);
  body[17] = replyRequested ? 1 : 0;
  return body;
}

const begin = (lsn: bigint) => xlogData(lsn, '{"action":"B"}');
const commit = (endLsn: bigint) => xlogData(endLsn, '{"action":"C"}');
const insert = (lsn: bigint, table = "t") => {
  return xlogData(lsn, `{"action":"I","schema":"public","table":"${table}","columns":[]}`);
};
const logical = (lsn: bigint, transactional: boolean, prefix: string, content: string) => {
  const fields = `"transactional":${transactional},"prefix":${JSON.stringify(prefix)},"content":${
    JSON.stringify(content)
  }`;
  return xlogData(lsn, `{"action":"M",${fields}}`);
};

interface Emitted {
  readonly event: Event;
  readonly completion: Completion;
}

/** A reader with a real tracker, whose sink takes one delivery of each event. */
class Harness {
  readonly emitted: Emitted[] = [];
  readonly faults: string[] = [];
  readonly replies: bigint[] = [];
  readonly tracker = new AckTracker(0n, () => {});
  readonly reader: WalReader;

  constructor({ transactionRecords = true, channels = ["wal2json", "bound"] } = {}) {
    const sink: Sink = {
      emit: (event, completion) => {
        completion.retain();
        this.emitted.push({ event, completion });
        return 1;
      },
      accepts: (channel) => channels.includes(channel),
      congested: false,
      onRelief: () => {},
    };
    this.reader = new WalReader({
      sink,
      tracker: this.tracker,
      transactionRecords,
      commitTimes: false,
      onKeepalive: (walEnd, replyRequested) => {
        this.tracker.keepalive(walEnd);
        if (replyRequested) this.replies.push(walEnd);
      },
      onFault: (reason) => this.faults.push(reason),
    });
  }

  /** Each body stands between other bytes, as it does in a chunk. */
  receive(...bodies: readonly Buffer[]): this {
    for (const body of bodies) {
      this.reader.receive(Buffer.concat([Buffer.from("d...."), body, Buffer.from('"}')]), 5, 5 + body.length);
    }
    return this;
  }

  acknowledgeAll(): this {
    for (const { completion } of this.emitted.splice(0)) completion.release();
    return this;
  }

  get keys(): string[] {
    return this.emitted.map(({ event }) => event.routingKey);
  }

  get ids(): string[] {
    return this.emitted.map(({ event }) => event.id);
  }
}

test("a transaction becomes events with ids of its first LSN, and is confirmed at its end", () => {
  const harness = new Harness();
  harness.reader.startChunk(1_700_000_000_123);
  harness.receive(begin(0x1600000010n), insert(0x1600000010n), insert(0x1600000010n, "u"), commit(0x1600000100n));
  assert.deepEqual(harness.keys, ["begin", "public.t.insert", "public.u.insert", "commit"]);
  assert.deepEqual(harness.ids, ["16/10-0", "16/10-1", "16/10-2", "16/10-3"]);
  const { event } = harness.emitted[1]!;
  assert.deepEqual(
    { type: event.type, channel: event.channel, json: event.json, receivedAtMs: event.receivedAtMs },
    { type: "wal", channel: "wal2json", json: true, receivedAtMs: 1_700_000_000_123 },
  );
  assert.equal(
    Buffer.from(event.payload).toString(),
    '{"action":"I","schema":"public","table":"t","columns":[]}',
    "the payload is wal2json's text",
  );
  assert.equal(harness.tracker.confirmedLsn, 0n);
  assert.equal(harness.reader.receivedLsn, 0x1600000100n);
  harness.acknowledgeAll();
  assert.equal(harness.tracker.confirmedLsn, 0x1600000100n);
  assert.equal(harness.reader.events, 4);
  assert.deepEqual(harness.faults, []);
});

test("without transaction records B and C are no events, keep their ordinals, and still confirm", () => {
  const harness = new Harness({ transactionRecords: false });
  harness.receive(begin(16n), insert(16n), insert(16n), commit(32n), begin(32n), commit(48n));
  assert.deepEqual(harness.ids, ["0/10-1", "0/10-2"]);
  assert.equal(harness.tracker.confirmedLsn, 0n);
  harness.acknowledgeAll();
  assert.equal(harness.tracker.confirmedLsn, 48n);
});

test("each transaction counts from 0 again, and its ids are the same on every replay", () => {
  const stream = [begin(16n), insert(16n), commit(32n), begin(40n), insert(40n), insert(40n), commit(64n)];
  const first = new Harness().receive(...stream);
  const replay = new Harness().receive(...stream);
  assert.deepEqual(first.ids, ["0/10-0", "0/10-1", "0/10-2", "0/28-0", "0/28-1", "0/28-2", "0/28-3"]);
  assert.deepEqual(replay.ids, first.ids);
});

test("the payload is a view into what was received", () => {
  const harness = new Harness();
  const body = insert(16n);
  harness.receive(begin(16n));
  harness.reader.receive(body, 0, body.length);
  assert.equal(harness.emitted[1]!.event.payload.buffer, body.buffer);
});

test("a message whose prefix is bound is an event of that channel, by the rules of NOTIFY", () => {
  const harness = new Harness();
  harness.receive(
    begin(16n),
    logical(20n, true, "bound", "key|text"),
    logical(20n, true, "bound", '{"a":1}'),
    commit(32n),
  );
  const [, first, second] = harness.emitted.map(({ event }) => event);
  assert.deepEqual(
    [first!.channel, first!.type, first!.routingKey, Buffer.from(first!.payload).toString(), first!.json, first!.id],
    ["bound", "notify", "key", "text", false, "0/10-1"],
  );
  assert.deepEqual(
    [second!.routingKey, Buffer.from(second!.payload).toString(), second!.json, second!.id],
    ["", '{"a":1}', true, "0/10-2"],
  );
});

test("any other message is a WAL event, also one that calls itself wal2json", () => {
  for (const prefix of ["unbound", "wal2json", "", "Bound"]) {
    const harness = new Harness();
    harness.receive(begin(16n), logical(20n, true, prefix, "key|text"), commit(32n));
    const { event } = harness.emitted[1]!;
    assert.deepEqual([event.channel, event.type, event.routingKey, event.json], ["wal2json", "wal", "message", true]);
    assert.match(
      Buffer.from(event.payload).toString(),
      /^\{"action":"M","transactional":true,.*"content":"key\|text"\}$/,
    );
  }
});

test("a message outside any transaction holds back what follows, and has an id that no transaction has", () => {
  const harness = new Harness();
  harness.receive(logical(16n, false, "bound", "k|m"), begin(16n), insert(16n), commit(32n), keepalive(40n));
  assert.deepEqual(harness.ids, ["0/10-m", "0/10-0", "0/10-1", "0/10-2"]);
  const [message, ...transaction] = harness.emitted;
  for (const { completion } of transaction) completion.release();
  assert.equal(harness.tracker.confirmedLsn, 0n);
  message!.completion.release();
  assert.equal(harness.tracker.confirmedLsn, 40n);
});

test("a keepalive confirms when all before it is acknowledged, and is answered when it asks", () => {
  const harness = new Harness();
  harness.receive(keepalive(10n), keepalive(12n, true));
  assert.deepEqual([harness.tracker.confirmedLsn, harness.reader.receivedLsn, harness.replies], [12n, 12n, [12n]]);
  harness.receive(begin(16n), keepalive(20n, true));
  assert.deepEqual([harness.tracker.confirmedLsn, harness.reader.receivedLsn, harness.replies], [12n, 20n, [12n, 20n]]);
  harness.receive(commit(32n));
  harness.acknowledgeAll();
  assert.equal(harness.tracker.confirmedLsn, 32n);
  harness.receive(keepalive(30n));
  assert.equal(harness.reader.receivedLsn, 32n, "never back");
});

test("stopping outside a transaction is done at once, and what follows is discarded and confirms nothing", async () => {
  const harness = new Harness();
  harness.receive(begin(16n), insert(16n), commit(32n)).acknowledgeAll();
  await harness.reader.stop();
  harness.receive(begin(40n), insert(40n), commit(48n), logical(50n, false, "bound", "x"), keepalive(60n, true));
  assert.deepEqual(harness.ids, []);
  assert.deepEqual([harness.tracker.confirmedLsn, harness.tracker.idle, harness.reader.receivedLsn], [32n, true, 32n]);
  assert.deepEqual(harness.faults, []);
});

test("stopping inside a transaction reads to its end, and discards what follows", async () => {
  const harness = new Harness();
  harness.receive(begin(16n), insert(16n));
  let stopped = false;
  const stopping = harness.reader.stop().then(() => stopped = true);
  harness.receive(insert(16n), keepalive(24n, true));
  await Promise.resolve();
  assert.equal(stopped, false);
  assert.deepEqual(harness.replies, [24n], "a keepalive is still answered");
  harness.receive(commit(32n), begin(40n), insert(40n), commit(48n), keepalive(60n));
  await stopping;
  assert.deepEqual(harness.keys, ["begin", "public.t.insert", "public.t.insert", "commit"]);
  harness.acknowledgeAll();
  assert.equal(harness.tracker.confirmedLsn, 32n);
});

const OUT_OF_ORDER: Array<[what: string, stream: Buffer[], fault: RegExp]> = [
  ["a transaction inside another", [begin(16n), begin(20n)], /began inside another/],
  ["a commit without a beginning", [commit(16n)], /ended that had not begun/],
  ["two commits", [begin(16n), commit(20n), commit(24n)], /ended that had not begun/],
  ["a change outside any transaction", [insert(16n)], /a change arrived outside/],
  ["a transactional message outside any transaction", [logical(16n, true, "p", "c")], /a transactional message/],
  ["a message that cannot be read", [xlogData(16n, '{"action":"M","transac')], /a transactional message/],
  ["a record of format version 1", [xlogData(16n, '{"change":[{"kind":"insert"}]}')], /a change arrived outside/],
  ["an empty record", [xlogData(16n, "")], /a change arrived outside/],
  ["a header cut short", [begin(16n), begin(20n).subarray(0, 24)], /shorter than its header/],
];

for (const [what, stream, fault] of OUT_OF_ORDER) {
  test(`${what} is a fault, after which nothing is counted`, () => {
    const harness = new Harness();
    harness.receive(...stream);
    assert.equal(harness.faults.length, 1);
    assert.match(harness.faults[0]!, fault);
    const { length } = harness.emitted;
    harness.receive(insert(30n), commit(40n), begin(50n), insert(50n), commit(60n), keepalive(70n, true));
    harness.acknowledgeAll();
    assert.deepEqual([harness.faults.length, length, harness.replies], [1, length, []]);
    assert.ok(harness.tracker.confirmedLsn < 30n, `${harness.tracker.confirmedLsn} was confirmed`);
  });
}

test("what is neither WAL data nor a keepalive is passed over", () => {
  const harness = new Harness();
  harness.receive(Buffer.alloc(0), Buffer.from("s"), Buffer.from("x123"), keepalive(10n).subarray(0, 17));
  assert.deepEqual([harness.faults, harness.emitted, harness.tracker.confirmedLsn], [[], [], 0n]);
});

test("for any stream the ids are distinct, the order is kept and the last commit is confirmed in the end", () => {
  const transaction = fc.record({
    changes: fc.nat(4),
    gap: fc.nat(5),
    keepaliveInside: fc.boolean(),
    after: fc.nat(2),
  });
  fc.assert(fc.property(fc.array(transaction, { maxLength: 30 }), fc.boolean(), (transactions, records) => {
    const harness = new Harness({ transactionRecords: records });
    const expected: string[] = [];
    let lsn = 1n;
    let end = 0n;
    for (const { changes, gap, keepaliveInside, after } of transactions) {
      const first = lsn;
      harness.receive(begin(first));
      if (records) expected.push(`${formatLsn(first)}-0`);
      for (let i = 1; i <= changes; i++) {
        harness.receive(insert(first));
        expected.push(`${formatLsn(first)}-${i}`);
      }
      if (keepaliveInside) harness.receive(keepalive(lsn));
      end = first + 1n + BigInt(gap);
      harness.receive(commit(end));
      if (records) expected.push(`${formatLsn(first)}-${changes + 1}`);
      if (after > 0) harness.receive(keepalive(end += BigInt(after - 1)));
      // The next transaction may start where this one ended.
      lsn = end;
    }
    assert.deepEqual(harness.ids, expected);
    assert.equal(new Set(expected).size, expected.length);
    harness.acknowledgeAll();
    assert.deepEqual([harness.tracker.confirmedLsn, harness.faults], [end, []]);
  }));
});
