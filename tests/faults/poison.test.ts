/** Events that a broker refuses for good: too large for RabbitMQ, not allowed to be published by Mosquitto. */

import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { after } from "node:test";
import type { BrokerKind } from "../support/broker_frames.ts";
import type { ProxyOptions } from "../support/proxy.ts";
import { scenario } from "../support/scenario.ts";
import { until } from "../support/wait.ts";
import { Plant } from "./plant.ts";
import { report, Trial } from "./trial.ts";

const MAX_MESSAGE_BYTES = 20_000;

const dir = mkdtempSync(join(tmpdir(), "pg-event-proxy-test-acl-"));
const aclFile = join(dir, "acl");
allowTopics();
const plant = Plant.start({
  kinds: ["amqp", "mqtt"],
  brokerConfig: {
    amqp: [`max_message_size = ${MAX_MESSAGE_BYTES}`],
    mqtt: [`acl_file ${aclFile}`],
  },
});
after(async () => {
  await (await plant).stop();
  rmSync(dir, { recursive: true, force: true });
});

/** Everybody may read all, and write all but the topic "forbidden", unless that is allowed too. */
function allowTopics(forbiddenToo = false): void {
  const lines = ["topic read #", "topic write +", ...forbiddenToo ? [] : ["topic deny forbidden"]];
  writeFileSync(aclFile, lines.join("\n") + "\n", { mode: 0o644 });
}

interface Poison {
  readonly kind: BrokerKind;
  plant(trial: Trial): Promise<unknown>;
  /** In the log line about it. */
  readonly reason: RegExp;
}

const POISONS: readonly Poison[] = [
  {
    kind: "amqp",
    plant: ({ sql }) => sql`insert into orders values (-8, 1, ${"x".repeat(2 * MAX_MESSAGE_BYTES)})`,
    reason: /message size \d+ is larger than configured max size 20000/,
  },
  {
    kind: "mqtt",
    plant: ({ sql }) => sql`select pg_logical_emit_message(true, 'forbidden', 'nobody may say this')`,
    reason: /refused it: 0x87/,
  },
];

/** As `trial` has it, with a further binding to the topic that may not be written to. */
function proxyOptions(trial: Trial, { kind }: Poison): ProxyOptions {
  const { env = {} } = trial.proxyOptions();
  if (kind === "amqp") return { env };
  const key = "PGPROXY_UPSTREAM-mqtt-BRIDGE_CHANNELS";
  return { env: { ...env, [key]: `${env[key]}, forbidden->topic:forbidden` } };
}

async function insertRow({ sql }: Trial, number: number): Promise<string> {
  await sql`insert into ledger values (-8, ${number})`;
  return `{"action":"I","schema":"public","table":"ledger","columns":[{"name":"writer","value":-8},` +
    `{"name":"number","value":${number}}]}`;
}

async function arrived(trial: Trial, kind: BrokerKind, message: string): Promise<void> {
  await until(() => trial.deliveries(kind, message) > 0, { what: `${message} to arrive`, timeoutMs: 30_000 });
}

for (const poison of POISONS) {
  const { kind } = poison;

  scenario(
    `${kind}, on_reject=drop: the refused event is dropped and told of, all others pass in order`,
    async (scope) => {
      const trial = await Trial.start(scope, await plant, { kinds: [kind], upstream: { on_reject: "drop" } });
      const proxy = await scope.readyProxy(proxyOptions(trial, poison));
      trial.startWriters();
      await trial.flows(kind);
      await poison.plant(trial);
      await trial.flows(kind);
      const verdicts = await trial.finish(40_000, 1);
      report("drop", verdicts);
      const { text } = await proxy.waitForLog(/refused event .* dropped, as on_reject=drop says/);
      assert.match(text, poison.reason);
      assert.match(text, /refused event [0-9A-F]+\/[0-9A-F]+-\d+ for (exchange|topic):/);
    },
    { timeoutMs: 240_000 },
  );

  scenario(
    `${kind}, on_reject=stop: the refused event is held, nothing overtakes it, nothing is lost`,
    async (scope) => {
      const trial = await Trial.start(scope, await plant, { kinds: [kind] });
      const proxy = await scope.readyProxy(proxyOptions(trial, poison));
      await arrived(trial, kind, await insertRow(trial, 1));
      await trial.confirmed();
      const confirmedLsn = await trial.confirmedLsn();
      await poison.plant(trial);
      const { text } = await proxy.waitForLog(/delivery to .* was refused: .*it is held and tried again/);
      assert.match(text, poison.reason);
      const later = await insertRow(trial, 2);
      // It is tried again, and refused again: RabbitMQ closes the channel each time.
      const { relay } = trial.ways.to(kind);
      const attempts = relay.accepted;
      if (kind === "amqp") {
        await until(() => relay.accepted >= attempts + 2, { what: "further attempts", timeoutMs: 40_000 });
      }
      assert.equal(trial.deliveries(kind, later), 0, "a later event has overtaken the refused one");
      assert.equal(await trial.confirmedLsn(), confirmedLsn, "what is held was confirmed");
      if (kind === "mqtt") {
        // What the operator does about it.
        allowTopics(true);
        scope.defer(() => allowTopics());
        process.kill(trial.plant.broker(kind).pid, "SIGHUP");
        await proxy.waitForLog(/delivery to .* is back after/, 40_000);
      } else {
        await proxy.stop();
        await scope.readyProxy(trial.proxyOptions({ "PGPROXY_UPSTREAM-amqp-ON_REJECT": "drop" }));
      }
      await arrived(trial, kind, later);
      await trial.confirmed();
    },
    { timeoutMs: 120_000 },
  );
}
