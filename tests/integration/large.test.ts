/** A transaction of 300,000 rows passes whole and in order, and does not make the program grow. */

import assert from "node:assert/strict";
import { consumeAmqp, consumeMqtt, consumeRedis } from "../support/consumers.ts";
import { bridgeEnv, type BridgeSettings, scenario, type Scope, uniqueName } from "../support/scenario.ts";
import { startMosquitto, startRedis } from "../support/servers.ts";
import { until } from "../support/wait.ts";

const ROWS = 300_000;
const MAX_RSS_BYTES = 250 * 1000 * 1000;
const TIMEOUT_MS = 240_000;

/** Counts the rows as they come; what comes out of order is remembered. */
class RowCounter {
  rows = 0;
  firstFault: string | undefined;

  readonly add = (text: string) => {
    const id = /^\{"action":"I".*?"value":(\d+)/.exec(text)?.[1];
    if (id === undefined) return;
    this.rows++;
    if (Number(id) !== this.rows && this.firstFault === undefined) {
      this.firstFault = `row ${id} came as number ${this.rows}`;
    }
  };
}

async function pass(scope: Scope, settings: Omit<BridgeSettings, "uri" | "slot">, counter: RowCounter): Promise<void> {
  const database = await scope.database();
  await database.sql.unsafe("create table large(id int primary key, filler text)");
  const proxy = await scope.readyProxy({
    env: bridgeEnv({ ...settings, uri: database.uri, slot: uniqueName("slot") }),
    ...(settings.kind === "stdout"
      ? { onStdoutLine: (line) => counter.add(line.slice(line.indexOf('{"action"'))) }
      : {}),
  });
  await database.sql.unsafe(
    `insert into large select n, md5(n::text) || repeat('x', 150) from generate_series(1, ${ROWS}) n`,
  );
  await until(() => counter.rows >= ROWS, {
    what: () => `${ROWS} rows; ${counter.rows} have come`,
    timeoutMs: TIMEOUT_MS - 60_000,
    intervalMs: 50,
  });
  await proxy.stop();
  const rss = proxy.peakRssBytes();
  console.log(`${settings.kind}: ${ROWS} rows in one transaction, peak RSS ${Math.round(rss / 1e6)} MB`);
  assert.deepEqual([counter.rows, counter.firstFault], [ROWS, undefined]);
  assert.ok(rss < MAX_RSS_BYTES, `the peak RSS was ${rss} bytes; ${MAX_RSS_BYTES} are allowed`);
}

scenario("300,000 rows in one transaction to RabbitMQ", async (scope) => {
  const { uri } = (await scope.servers).rabbitmq;
  const queue = await scope.queue();
  const counter = new RowCounter();
  scope.keep(await consumeAmqp(uri, { queue, onMessage: ({ text }) => counter.add(text) }));
  const bindings = `wal2json->queue:${queue}`;
  await pass(scope, { kind: "amqp", upstreamUri: uri, bindings, more: { delivery_mode: "1" } }, counter);
}, { timeoutMs: TIMEOUT_MS });

scenario("300,000 rows in one transaction over MQTT", async (scope) => {
  const { uri } = scope.keep(await startMosquitto());
  const counter = new RowCounter();
  scope.keep(await consumeMqtt(uri, "wal", { onMessage: ({ text }) => counter.add(text) }));
  await pass(scope, { kind: "mqtt", upstreamUri: uri, bindings: "wal2json->topic:wal" }, counter);
}, { timeoutMs: TIMEOUT_MS });

scenario("300,000 rows in one transaction to Redis", async (scope) => {
  // A subscriber that reads slower than Redis is written to is cut off by default.
  const { uri } = scope.keep(await startRedis({ config: ["client-output-buffer-limit pubsub 0 0 0"] }));
  const counter = new RowCounter();
  scope.keep(await consumeRedis(uri, "wal", { onMessage: ({ text }) => counter.add(text) }));
  await pass(scope, { kind: "redis", upstreamUri: uri, bindings: "wal2json->topic:wal" }, counter);
}, { timeoutMs: TIMEOUT_MS });

scenario("300,000 rows in one transaction to standard output", async (scope) => {
  await pass(scope, { kind: "stdout", bindings: "wal2json->topic:wal" }, new RowCounter());
}, { timeoutMs: TIMEOUT_MS });
