import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { AckTracker, type Transaction } from "../../src/core/ack_tracker.ts";
import { until } from "../support/wait.ts";

function track(confirmed = 100n) {
  const moves: bigint[] = [];
  const tracker: AckTracker = new AckTracker(confirmed, () => moves.push(tracker.confirmedLsn));
  return { tracker, moves };
}

/** A transaction with that many deliveries, which the caller releases. */
function transaction(tracker: AckTracker, deliveries: number, endLsn: bigint): Transaction {
  const transaction = tracker.begin();
  for (let i = 0; i < deliveries; i++) transaction.retain();
  tracker.commit(transaction, endLsn);
  return transaction;
}

test("a transaction is confirmed when its last delivery is acknowledged, exactly at its end", () => {
  const { tracker, moves } = track();
  const it = transaction(tracker, 2, 200n);
  assert.deepEqual([tracker.idle, tracker.pending], [false, 1]);
  it.release();
  assert.equal(tracker.confirmedLsn, 100n);
  it.release();
  assert.deepEqual([tracker.confirmedLsn, moves, tracker.idle, tracker.pending], [200n, [200n], true, 0]);
});

test("a transaction that is acknowledged while it is read is confirmed at its commit, not before", () => {
  const { tracker, moves } = track();
  const it = tracker.begin();
  for (let i = 0; i < 3; i++) {
    it.retain();
    it.release();
  }
  assert.deepEqual([tracker.confirmedLsn, tracker.idle], [100n, false]);
  tracker.commit(it, 200n);
  assert.deepEqual([tracker.confirmedLsn, moves], [200n, [200n]]);
});

test("a transaction without events is confirmed at its commit, behind those before it", () => {
  const { tracker, moves } = track();
  const first = transaction(tracker, 1, 200n);
  transaction(tracker, 0, 300n);
  assert.equal(tracker.confirmedLsn, 100n);
  first.release();
  assert.deepEqual([tracker.confirmedLsn, moves], [300n, [300n]], "in one move");
});

test("acknowledgements out of order confirm a contiguous run only", () => {
  const { tracker, moves } = track();
  const [a, b, c] = [200n, 300n, 400n].map((end) => transaction(tracker, 1, end));
  c!.release();
  b!.release();
  assert.equal(tracker.confirmedLsn, 100n);
  a!.release();
  assert.deepEqual(moves, [400n]);
});

test("what ends at or before the confirmed position moves nothing back", () => {
  const { tracker, moves } = track(500n);
  transaction(tracker, 0, 300n);
  transaction(tracker, 0, 500n);
  tracker.keepalive(400n);
  assert.deepEqual([tracker.confirmedLsn, moves], [500n, []]);
});

test("a keepalive is confirmed at once when nothing is outstanding", () => {
  const { tracker, moves } = track();
  tracker.keepalive(150n);
  transaction(tracker, 0, 200n);
  tracker.keepalive(250n);
  assert.deepEqual(moves, [150n, 200n, 250n]);
});

test("a keepalive behind something outstanding is confirmed with it, and not before", () => {
  const { tracker, moves } = track();
  const first = transaction(tracker, 1, 200n);
  tracker.keepalive(250n);
  tracker.keepalive(300n);
  const second = transaction(tracker, 1, 400n);
  tracker.keepalive(450n);
  assert.deepEqual(moves, []);
  first.release();
  assert.deepEqual(moves, [300n]);
  second.release();
  assert.deepEqual([moves, tracker.idle], [[300n, 450n], true]);
});

test("a keepalive inside a transaction confirms nothing, whatever was acknowledged of it", () => {
  const { tracker, moves } = track();
  const it = tracker.begin();
  it.retain();
  tracker.keepalive(150n);
  it.release();
  tracker.keepalive(160n);
  assert.deepEqual(moves, []);
  tracker.commit(it, 200n);
  assert.deepEqual(moves, [200n]);
});

test("an event outside any transaction holds back what follows, and has no position of its own", () => {
  const { tracker, moves } = track();
  const message = tracker.standalone();
  message.retain();
  transaction(tracker, 0, 200n);
  tracker.keepalive(250n);
  assert.deepEqual(moves, []);
  message.release();
  assert.deepEqual([moves, tracker.idle], [[250n], true]);
});

test("an event that no lane took holds back nothing", async () => {
  const { tracker, moves } = track();
  tracker.standalone();
  await tracker.whenIdle();
  tracker.standalone();
  tracker.keepalive(200n);
  assert.deepEqual([tracker.idle, moves], [true, [200n]]);
});

test("whenIdle resolves at once, or with the last acknowledgement, for each who waits", async () => {
  const { tracker } = track();
  await tracker.whenIdle();
  const it = tracker.begin();
  it.retain();
  let idle = 0;
  const waiting = [tracker.whenIdle().then(() => idle++), tracker.whenIdle().then(() => idle++)];
  it.release();
  await Promise.resolve();
  assert.equal(idle, 0, "the transaction is half read");
  tracker.commit(it, 200n);
  await Promise.all(waiting);
  assert.equal(idle, 2);
});

type Step =
  | { readonly kind: "begin" | "commit" | "keepalive"; readonly gap: number }
  | { readonly kind: "event" | "standalone"; readonly lanes: number }
  | { readonly kind: "acknowledge"; readonly which: number };

const gap = fc.nat(3);
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 3, arbitrary: fc.record({ kind: fc.constant("begin" as const), gap }) },
  { weight: 4, arbitrary: fc.record({ kind: fc.constant("commit" as const), gap }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("keepalive" as const), gap }) },
  { weight: 4, arbitrary: fc.record({ kind: fc.constant("event" as const), lanes: fc.nat(3) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("standalone" as const), lanes: fc.nat(3) }) },
  { weight: 8, arbitrary: fc.record({ kind: fc.constant("acknowledge" as const), which: fc.nat(1000) }) },
);

/** What the tracker knows, told again in the plainest way: everything read, in order, and nothing forgotten. */
interface Item {
  readonly position: "transaction" | "standalone" | "keepalive";
  outstanding: number;
  /** Undefined while the transaction is open, and for what has no position. */
  endLsn: bigint | undefined;
  open: boolean;
}

class Model {
  readonly items: Item[] = [];
  readonly start: bigint;

  constructor(start: bigint) {
    this.start = start;
  }

  get confirmed(): bigint {
    let confirmed = this.start;
    for (const item of this.items) {
      if (item.open || item.outstanding > 0) break;
      if (item.endLsn !== undefined && item.endLsn > confirmed) confirmed = item.endLsn;
    }
    return confirmed;
  }

  get idle(): boolean {
    return this.items.every((item) => !item.open && item.outstanding === 0);
  }
}

test("in any interleaving exactly the newest position is confirmed below which all is acknowledged", async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 200 }), async (steps) => {
      const { tracker, moves } = track();
      const model = new Model(100n);
      const deliveries: { readonly item: Item; readonly release: () => void }[] = [];
      let lsn = 100n;
      let open: { readonly item: Item; readonly transaction: Transaction } | undefined;
      const add = (item: Item) => (model.items.push(item), item);
      const deliver = (item: Item, transaction: Transaction, lanes: number) => {
        for (let i = 0; i < lanes; i++) {
          transaction.retain();
          item.outstanding++;
          deliveries.push({ item, release: () => transaction.release() });
        }
      };
      const commit = () => {
        if (open === undefined) return;
        open.item.open = false;
        open.item.endLsn = lsn;
        tracker.commit(open.transaction, lsn);
        open = undefined;
      };
      const acknowledge = (which: number) => {
        const [delivery] = deliveries.splice(which % Math.max(1, deliveries.length), 1);
        if (delivery === undefined) return;
        delivery.item.outstanding--;
        delivery.release();
      };
      /** Events that no lane took are noticed with the next call that looks. */
      const settled = () =>
        model.items.length === 0 || model.items.at(-1)!.position !== "standalone" || deliveries.length > 0;
      for (const step of steps) {
        const before = tracker.confirmedLsn;
        if ("gap" in step) lsn += BigInt(step.gap);
        if (step.kind === "begin" && open === undefined) {
          const item = add({ position: "transaction", outstanding: 0, endLsn: undefined, open: true });
          open = { item, transaction: tracker.begin() };
        } else if (step.kind === "commit") commit();
        else if (step.kind === "event" && open !== undefined) deliver(open.item, open.transaction, step.lanes);
        else if (step.kind === "standalone" && open === undefined) {
          const item = add({ position: "standalone", outstanding: 0, endLsn: undefined, open: false });
          deliver(item, tracker.standalone(), step.lanes);
        } else if (step.kind === "keepalive") {
          if (open === undefined) add({ position: "keepalive", outstanding: 0, endLsn: lsn, open: false });
          tracker.keepalive(lsn);
        } else if (step.kind === "acknowledge") acknowledge(step.which);
        assert.ok(tracker.confirmedLsn <= model.confirmed, "it passed something unacknowledged");
        assert.ok(tracker.confirmedLsn >= before, "it went back");
        if (settled()) assert.equal(tracker.confirmedLsn, model.confirmed, "it lags behind");
      }
      const idle = tracker.whenIdle();
      commit();
      while (deliveries.length > 0) acknowledge(0);
      await idle;
      assert.equal(model.idle, true);
      assert.deepEqual([tracker.idle, tracker.pending, tracker.confirmedLsn], [true, 0, model.confirmed]);
      assert.deepEqual(moves, [...new Set(moves)].sort((a, b) => a < b ? -1 : 1), "each move is told once, upwards");
      assert.equal(moves.at(-1) ?? 100n, tracker.confirmedLsn);
    }),
    { numRuns: 500 },
  );
});

test("what is done is forgotten, also when it is never idle", async () => {
  const tracker = new AckTracker(100n, () => {});
  const window: Transaction[] = [];
  let lsn = 100n;
  const run = (transactions: number): WeakRef<Transaction>[] => {
    const done: WeakRef<Transaction>[] = [];
    for (let i = 0; i < transactions; i++) {
      window.push(transaction(tracker, 1, ++lsn));
      if (window.length <= 2000) continue;
      const oldest = window.shift()!;
      oldest.release();
      if (i % 100 === 0) done.push(new WeakRef(oldest));
    }
    return done;
  };
  const done = run(20_000);
  // The runtime collects when it sees fit: it is given reason to.
  await until(() => {
    run(50_000);
    return done.filter((reference) => reference.deref() === undefined).length > done.length / 2;
  }, { what: "done transactions to be collected", intervalMs: 1 });
  assert.equal(tracker.pending, 2000);
  assert.equal(tracker.confirmedLsn, lsn - 2000n);
});

test("keepalives during an outage are not kept one by one", () => {
  const { tracker } = track();
  const it = transaction(tracker, 1, 200n);
  for (let lsn = 201n; lsn < 100_000n; lsn++) tracker.keepalive(lsn);
  assert.equal(tracker.pending, 2);
  it.release();
  assert.equal(tracker.confirmedLsn, 99_999n);
});
