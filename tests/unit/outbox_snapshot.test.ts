import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { OutboxPosition, type PageExtent, type PageRequest, parseSnapshot } from "../../src/sources/outbox_snapshot.ts";

test("a snapshot is read as txid_current_snapshot prints it", () => {
  const snapshot = (xmax: string, ...inProgress: string[]) => ({ xmax, inProgress: new Set(inProgress) });
  assert.deepEqual(parseSnapshot("10:20:10,14,15"), snapshot("20", "10", "14", "15"));
  assert.deepEqual(parseSnapshot("10:10:"), snapshot("10"));
  assert.deepEqual(parseSnapshot("9223372036854775806:9223372036854775807:9223372036854775806"), {
    xmax: "9223372036854775807",
    inProgress: new Set(["9223372036854775806"]),
  });
  for (const text of ["", "10:20", "10:20:,", "a:b:c", "10:20:1,", " 10:20:"]) {
    assert.throws(() => parseSnapshot(text), /is not a snapshot/, text);
  }
});

interface Row {
  readonly id: number;
  readonly xid: number;
}

interface Transaction {
  readonly rows: number[];
  /** Ids are taken from the sequence before the transaction has a number, as an INSERT with a default does. */
  xid: number | undefined;
}

/** A table of which rows become visible as transactions commit, and the statement that looks at it. */
class Model {
  nextId = 1;
  nextXid = 100;
  readonly running: Transaction[] = [];
  committed: Row[] = [];
  readonly sent: number[] = [];

  begin(withXid: boolean): void {
    this.running.push({ rows: [], xid: withXid ? this.nextXid++ : undefined });
  }

  insert(at: number): void {
    this.running[at % this.running.length]?.rows.push(this.nextId++);
  }

  /** Gives the transaction its number, at the latest now, and ends it. */
  end(at: number, commits: boolean): void {
    const [transaction] = this.running.splice(at % Math.max(1, this.running.length), 1);
    if (transaction === undefined) return;
    const xid = transaction.xid ?? this.nextXid++;
    if (!commits) return;
    this.committed.push(...transaction.rows.map((id) => ({ id, xid })));
    this.sent.push(...transaction.rows);
  }

  look(request: PageRequest, limit: number): PageExtent & { readonly ids: readonly number[] } {
    const after = Number(request.afterId);
    const isLate = ({ id, xid }: Row) =>
      id <= after && id > Number(request.lateAfterId) &&
      (request.xids.includes(String(xid)) || xid >= Number(request.fromXid));
    const ids = this.committed.filter((row) => row.id > after || isLate(row)).map(({ id }) => id)
      .sort((a, b) => a - b);
    const page = ids.slice(0, limit);
    return {
      ids: page,
      snapshot: {
        xmax: String(this.nextXid),
        inProgress: new Set(this.running.flatMap(({ xid }) => xid === undefined ? [] : [String(xid)])),
      },
      lastId: page.length === 0 ? undefined : String(page.at(-1)),
      cut: page.length === limit,
    };
  }
}

type Step =
  | { readonly do: "begin"; readonly withXid: boolean }
  | { readonly do: "insert"; readonly at: number }
  | { readonly do: "commit" | "abort"; readonly at: number }
  | { readonly do: "look" }
  | { readonly do: "delete" };

const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 2, arbitrary: fc.record({ do: fc.constant("begin" as const), withXid: fc.boolean() }) },
  { weight: 5, arbitrary: fc.record({ do: fc.constant("insert" as const), at: fc.nat(50) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constantFrom("commit" as const, "abort" as const), at: fc.nat(50) }) },
  { weight: 3, arbitrary: fc.constant({ do: "look" as const }) },
  { weight: 1, arbitrary: fc.constant({ do: "delete" as const }) },
);

function play(steps: readonly Step[], limit: number): { sent: readonly number[]; seen: ReadonlySet<number> } {
  const model = new Model();
  const position = new OutboxPosition();
  const seen = new Set<number>();
  const look = () => {
    const page = model.look(position.request(), limit);
    position.advance(page);
    for (const id of page.ids) seen.add(id);
    return page.cut;
  };
  for (const current of steps) {
    switch (current.do) {
      case "begin":
        model.begin(current.withXid);
        break;
      case "insert":
        model.insert(current.at);
        break;
      case "commit":
      case "abort":
        model.end(current.at, current.do === "commit");
        break;
      case "look":
        look();
        break;
      case "delete":
        model.committed = model.committed.filter(({ id }) => !seen.has(id));
    }
  }
  while (model.running.length > 0) model.end(0, true);
  // Two rounds: a series of late pages may end with one that moves nothing on.
  let quiet = 0;
  while (quiet < 2) quiet = look() ? 0 : quiet + 1;
  return { sent: model.sent, seen };
}

test("every committed row is seen, whatever the order of commits, in pages of any size", () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 100, size: "max" }), fc.integer({ min: 1, max: 6 }), (steps, limit) => {
      const { sent, seen } = play(steps, limit);
      assert.deepEqual(sent.filter((id) => !seen.has(id)), []);
    }),
    { numRuns: 1_000 },
  );
});

test("a row that commits late is asked for by its transaction, and what was seen is not asked for again", () => {
  const position = new OutboxPosition();
  const snapshot = parseSnapshot("100:103:100");
  position.advance({ snapshot, lastId: "7", cut: false });
  assert.deepEqual(position.request(), {
    afterId: "7",
    lateAfterId: String(-(2n ** 63n)),
    xids: ["100"],
    fromXid: "103",
  });
  position.advance({ snapshot: parseSnapshot("105:105:"), lastId: "5", cut: false });
  assert.equal(position.request().afterId, "7", "a late row does not take the position back");
  assert.deepEqual(position.request().xids, []);
  assert.equal(position.request().fromXid, "105");
  position.restart();
  assert.equal(position.request().afterId, String(-(2n ** 63n)));
  assert.equal(position.request().fromXid, "0");
});

test("late rows beyond a page are read on before the look counts as done", () => {
  const position = new OutboxPosition();
  position.advance({ snapshot: parseSnapshot("100:101:100"), lastId: "5000", cut: false });
  position.advance({ snapshot: parseSnapshot("101:101:"), lastId: "1000", cut: true });
  assert.deepEqual(position.request(), { afterId: "5000", lateAfterId: "1000", xids: ["100"], fromXid: "101" });
  position.advance({ snapshot: parseSnapshot("109:110:109"), lastId: "5200", cut: false });
  const { afterId, xids, fromXid } = position.request();
  assert.deepEqual({ afterId, xids, fromXid }, { afterId: "5200", xids: [], fromXid: "101" }, "of the first page");
});
