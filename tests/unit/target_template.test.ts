import assert from "node:assert/strict";
import { test } from "node:test";
import { TARGET_RULES } from "../../src/config/target_rules.ts";
import type { UpstreamKind } from "../../src/config/config.ts";
import type { Event } from "../../src/core/event.ts";
import { Routes } from "../../src/core/routes.ts";
import { compileTarget, sampleTargetName } from "../../src/core/target_template.ts";
import { CountedCompletion, LaneHarness, makeEvent } from "./scripted_upstream.ts";

const ALL = "{schema}/{table}/{action}/{key}/{channel}";

function change(schema: string, table: string, action = "insert"): Event {
  const head = `"schema":${JSON.stringify(schema)},"table":${JSON.stringify(table)}`;
  return {
    ...makeEvent("1"),
    type: "wal",
    channel: "wal2json",
    routingKey: `${schema}.${table}.${action}`,
    payload: Buffer.from(
      `{"action":"I",${head},"columns":[{"name":"t","type":"text","value":"\\"schema\\":\\"x\\""}]}`,
    ),
  };
}

function filled(name: string, event: Event, kind: UpstreamKind = "stdout"): string | undefined {
  return compileTarget({ type: "topic", name }, TARGET_RULES[kind].clean)?.of(event).name;
}

test("placeholders are filled in from a row change, a record of a transaction, and a notification", () => {
  assert.equal(filled(ALL, change("public", "orders")), "public/orders/insert/public.orders.insert/wal2json");
  const begin = { ...change("", ""), routingKey: "begin" };
  assert.equal(filled(ALL, begin), "_/_/begin/begin/wal2json");
  const notification: Event = { ...makeEvent("1"), channel: "events", routingKey: "sign.up.now.please" };
  assert.equal(filled("a/{key}/{channel}", notification), "a/sign.up.now.please/events");
  assert.equal(filled("a/{key}", { ...notification, routingKey: "" }), "a/_");
  assert.equal(filled("{schema}-{constructor}-{}-{ table }", change("s", "t")), "s-{constructor}-{}-{ table }");
});

test("names with dots are taken apart as PostgreSQL has them, also where two tables have one routing key", () => {
  const template = compileTarget({ type: "topic", name: "{schema}/{table}" }, TARGET_RULES.stdout.clean);
  const of = (schema: string, table: string) => template?.of(change(schema, table)).name;
  assert.deepEqual([of("a.b", "c"), of("a", "b.c"), of("a.b", "c")], ["a.b/c", "a/b.c", "a.b/c"]);
  assert.deepEqual([of('q"uo\\te.d', "t.é"), of("..", ".")], ['q"uo\\te.d/t.é', "../."]);
});

test("what a protocol forbids is replaced in values, and only there", () => {
  const hostile = change("a+b#c", "d\u0000e\u001f/f");
  assert.equal(filled("t/{schema}/{table}", hostile, "mqtt"), "t/a_b_c/d_e_/f");
  assert.equal(filled("t.{table}", hostile, "amqp"), "t.d_e_/f");
  assert.equal(filled("t:{schema}", hostile, "redis"), "t:a+b#c");
});

test("events of one routing key share a target, and no more keys are remembered than a few hundred", () => {
  const template = compileTarget({ type: "topic", name: "{key}" }, (value) => value);
  const first = template?.of({ ...makeEvent("1"), routingKey: "k0" });
  assert.equal(template?.of({ ...makeEvent("2"), routingKey: "k0" }), first);
  assert.deepEqual(first, { type: "topic", name: "k0", filledIn: true });
  for (let i = 1; i <= 256; i++) template?.of({ ...makeEvent("3"), routingKey: `k${i}` });
  assert.notEqual(template?.of({ ...makeEvent("4"), routingKey: "k0" }), first);
});

test("a target without placeholders is not compiled and goes on as the same object", () => {
  const target = { type: "topic", name: "plain.{other}" };
  assert.equal(compileTarget(target, (value) => value), undefined);
  assert.equal(sampleTargetName(target, "wal2json", (value) => value), "plain.{other}");
  assert.equal(sampleTargetName({ type: "topic", name: ALL }, "wal2json", (value) => value).split("/")[1], "sample");
});

test("routes fill in the target for each lane", async () => {
  const harness = new LaneHarness();
  const routes = new Routes();
  const target = { type: "topic", name: "{table}" };
  routes.add("wal2json", harness.lane, target, { template: compileTarget(target, (value) => value) });
  routes.add("wal2json", harness.lane, { type: "topic", name: "fixed" });
  routes.emit(change("public", "orders"), new CountedCompletion());
  void harness.run();
  const session = await harness.session(1);
  await harness.unanswered(session, "1", "1");
  assert.deepEqual(session.published.map((delivery) => delivery.target.name), ["orders", "fixed"]);
  await harness.stop();
});
