/**
 * SQS, SNS and Lambda under faults. The emulator and the stand-in keep what they acknowledged, also when they are killed:
 * nothing is excused, and what they hold at the end is compared with what PostgreSQL committed.
 */

import assert from "node:assert/strict";
import process from "node:process";
import { setTimeout as delay } from "node:timers/promises";
import {
  AWS_ENV,
  consumeLambda,
  consumeSqs,
  countMessages,
  createQueue,
  createTopic,
  type LambdaServer,
  startAwsEmulator,
  startLambda,
} from "../support/aws_servers.ts";
import type { Proxy } from "../support/proxy.ts";
import { scenario, type Scope, uniqueName } from "../support/scenario.ts";
import type { Server } from "../support/servers.ts";
import { until } from "../support/wait.ts";
import { digest, History, MESSAGE_CHANNEL } from "./history.ts";
import { between, randomFrom } from "./random.ts";
import { type Arrival, complaints, judge, summary } from "./verdict.ts";
import { createTables, Writers } from "./writers.ts";

const KILLS = 3;
/** Longer than what is written between two faults takes to be sent. */
const FROZEN_MS = 1_500;
const QUEUE = "from-sqs";
const TOPIC = "from-sns";

function upstreamEnv(name: string, kind: string, uri: string, target: string): Record<string, string> {
  return {
    [`PGPROXY_UPSTREAM-${name}-KIND`]: kind,
    [`PGPROXY_UPSTREAM-${name}-URI`]: uri,
    [`PGPROXY_UPSTREAM-${name}-BRIDGE_CHANNELS`]: `wal2json->${target}, ${MESSAGE_CHANNEL}->${target}`,
  };
}

class AwsTrial {
  readonly #scope: Scope;
  readonly #env: Readonly<Record<string, string>>;
  readonly #emulator: Server;

  constructor(scope: Scope, emulator: Server, env: Readonly<Record<string, string>>) {
    this.#scope = scope;
    this.#emulator = emulator;
    this.#env = env;
  }

  async start(): Promise<Proxy> {
    const proxy = this.#scope.proxy({ env: this.#env });
    await proxy.waitForReady(30_000);
    return proxy;
  }

  async flows(count = 10): Promise<void> {
    const counts = () => Promise.all([QUEUE, TOPIC].map((queue) => countMessages(this.#emulator.uri, queue)));
    const before = await counts();
    await until(async () => (await counts()).every((now, i) => now >= before[i]! + count), {
      what: "events to flow to SQS and SNS",
    });
  }
}

scenario("awssqs, awssns, awslambda: the program killed, their servers killed and frozen", async (scope) => {
  const [emulator, lambda] = await Promise.all([startAwsEmulator(), startLambda()]);
  scope.keep(emulator);
  scope.keep(lambda);
  await createQueue(emulator.uri, QUEUE);
  const arn = await createTopic(emulator.uri, TOPIC);
  const { uri, sql } = await scope.database();
  await createTables(sql);
  const slot = uniqueName("slot");
  const history = await History.begin(sql, `${slot}_history`);
  const trial = new AwsTrial(scope, emulator, {
    ...AWS_ENV,
    "PGPROXY_DATABASE-URI": uri,
    "PGPROXY_DATABASE-REPLICATION_SLOT": slot,
    ...upstreamEnv("SQS", "awssqs", emulator.uri, `queue:${QUEUE}`),
    ...upstreamEnv("SNS", "awssns", emulator.uri, `topic:${arn}`),
    ...upstreamEnv("LAMBDA", "awslambda", lambda.uri, "function:on-event"),
  });
  let proxy = await trial.start();
  const writers = Writers.start(uri, { sessions: 1, pauseMs: 800 });
  scope.defer(() => writers.stop());
  await trial.flows();
  const random = randomFrom(11);
  for (let kill = 0; kill < KILLS; kill++) {
    await delay(between(random, 0, 400));
    await proxy.kill("SIGKILL");
    proxy = await trial.start();
  }
  await trial.flows();
  for (const server of [emulator, lambda]) {
    await server.kill();
    await proxy.waitForLog(new RegExp(`aws${server === lambda ? "lambda" : "sqs"} upstream .* is not available`));
    await server.start();
  }
  await trial.flows();
  for (const server of [emulator, lambda]) server.freeze();
  await delay(FROZEN_MS);
  for (const server of [emulator, lambda]) server.thaw();
  await trial.flows();
  await until(async () => (await history.read()).length > 100, { what: "enough to be written", intervalMs: 100 });
  await writers.stop();
  const [{ lsn } = { lsn: "" }] = await sql<{ lsn: string }[]>`select pg_current_wal_lsn()::text as lsn`;
  await until(async () => {
    const [row] = await sql<{ done: boolean }[]>`
      select confirmed_flush_lsn >= ${lsn}::pg_lsn as done from pg_replication_slots where slot_name = ${slot}`;
    return row?.done;
  }, { what: `slot ${slot} to be confirmed up to ${lsn}`, timeoutMs: 90_000 });
  const expected = await history.read();
  const ends = [
    ["awssqs", await queueArrivals(emulator, QUEUE)],
    ["awssns", await queueArrivals(emulator, TOPIC)],
    ["awslambda", await lambdaArrivals(lambda)],
  ] as const;
  for (const [kind, arrivals] of ends) {
    const verdict = judge(expected, arrivals);
    process.stderr.write(`  ${summary(kind, verdict)}\n`);
    const faults = complaints(kind, verdict);
    assert.deepEqual(faults, [], faults.join("\n"));
  }
}, { timeoutMs: 180_000 });

/** Everything that the queue holds. */
async function queueArrivals({ uri }: Server, queue: string): Promise<readonly Arrival[]> {
  const count = await countMessages(uri, queue);
  const consumer = await consumeSqs(uri, queue);
  const messages = await consumer.waitFor(count);
  await consumer.close();
  return messages.map(({ attributes, payload }) => ({ id: attributes["id"], text: digest(payload) }));
}

/** What it was invoked with is in a file, which was written before each answer. */
async function lambdaArrivals(lambda: LambdaServer): Promise<readonly Arrival[]> {
  const consumer = await consumeLambda(lambda, { fromStart: true });
  const invocations = await consumer.waitFor(1);
  await consumer.close();
  return invocations.map(({ id, payload }) => ({ id, text: digest(payload) }));
}
