/** WAL throughput per upstream, as a ratio to pg_recvlogical on a copy of the same slot. */

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { ROOT_DIR } from "../support/proxy.ts";
import { type Bench, say } from "./bench.ts";
import { type Dataset, dropDataset, writeDataset } from "./dataset.ts";
import { figure, megabytes, NO_FIGURE, type Section, type Table, type Verdict, verdict } from "./report.ts";
import { median, spread } from "./statistics.ts";
import { countReads } from "./system_calls.ts";
import { brokersOf, CASE_NAMES, emptyQueue, QUEUE, queueLength, upstreamCase, wantedCases } from "./upstream_cases.ts";
import type { UpstreamCase } from "./upstream_cases.ts";
import { type Pass, runProxy, runReference } from "./wal_run.ts";

/** The targets are for transactions of 100 rows; that for stdout has one of its own for single rows. */
const TARGETS: Readonly<Record<string, Readonly<Record<string, number>>>> = {
  "1": { "stdout": 2 },
  "100": { "stdout": 1.5, "redis": 1.3, "mqtt-0": 1.1, "mqtt-1": 0.85, "amqp-exchange": 0.65 },
};
const BARE_PUBLISHER_TARGET = 0.95;
const PEAK_RSS_TARGET_MB = 150;
/** Bound by what a queue of RabbitMQ takes, and compared with a publisher that does nothing else. */
const QUEUE_CASES = ["amqp-1", "amqp-2"];
const UNBOUND_CASES = ["stdout", "redis", "mqtt-0", "mqtt-1", "amqp-exchange"];

/** One upstream with one dataset. */
interface CaseResult {
  readonly upstream: string;
  readonly label: string;
  readonly transaction: string;
  readonly events: number;
  /** One more than there are passes: each pass is compared with those before and after it. */
  readonly references: readonly Pass[];
  readonly passes: readonly Pass[];
  readonly ratios: readonly number[];
  /** Seconds of the bare publisher; empty where there is none. */
  readonly bareSeconds: readonly number[];
  readonly bareRatios: readonly number[];
  /** Socket reads of one pass that was not timed; undefined where perf cannot count. */
  readonly reads: number | undefined;
}

interface Plan {
  readonly transaction: number | "all";
  readonly cases: readonly string[];
}

export async function walSection(bench: Bench): Promise<Section> {
  const plans = planned(bench);
  for (const name of brokersOf(plans.flatMap(({ cases }) => cases))) void bench.broker(name).catch(() => {});
  const rows = bench.settings.rows ?? (bench.quick ? 100_000 : 500_000);
  const results: CaseResult[] = [];
  const tables: Table[] = [];
  for (const plan of plans) {
    // A transaction of one row makes three events: a third of the rows makes as many.
    const rowsOfPlan = plan.transaction === 1 ? Math.ceil(rows / 3) : rows;
    say(`writing ${rowsOfPlan.toLocaleString("en-US")} rows in transactions of ${plan.transaction}`);
    const dataset = await writeDataset(bench, { rows: rowsOfPlan, rowsPerTransaction: plan.transaction });
    const ofPlan: CaseResult[] = [];
    for (const name of plan.cases) {
      ofPlan.push(await measureCase(bench, dataset, plan.transaction, await upstreamCase(bench, name)));
    }
    await dropDataset(bench, dataset);
    tables.push(throughputTable(dataset, plan.transaction, ofPlan));
    results.push(...ofPlan);
  }
  const bare = results.filter(({ bareRatios }) => bareRatios.length > 0);
  if (bare.length > 0) tables.push(bareTable(bare));
  return { name: "wal", tables, verdicts: results.flatMap(verdictsOf), raw: results };
}

/**
 * Everything with transactions of 100; the others where the size of a transaction tells, which it does not where a queue
 * or a stream of the broker bounds the rate. In quick mode they are fewer still.
 */
function planned(bench: Bench): Plan[] {
  const all = wantedCases(bench, CASE_NAMES);
  const unbound = all.filter((name) => UNBOUND_CASES.includes(name));
  const few = wantedCases(bench, ["stdout", "redis"]);
  const plans: Plan[] = [
    { transaction: 100, cases: all },
    { transaction: 1, cases: bench.quick ? few.slice(0, 1) : unbound },
    { transaction: "all", cases: bench.quick ? few : unbound },
  ];
  const wanted = bench.settings.transactions;
  if (wanted === undefined) return plans.filter(({ cases }) => cases.length > 0);
  return wanted.map((transaction) => ({ transaction, cases: all }));
}

async function measureCase(
  bench: Bench,
  dataset: Dataset,
  transaction: number | "all",
  upstream: UpstreamCase,
): Promise<CaseResult> {
  const comparesWithBare = QUEUE_CASES.includes(upstream.name);
  // A queue takes ten times as long as anything else.
  const pairs = bench.settings.pairs ?? (!bench.quick ? 5 : comparesWithBare ? 1 : 2);
  const references = [await runReference(bench, dataset)];
  const passes: Pass[] = [];
  const bareSeconds: number[] = [];
  const ratios: number[] = [];
  for (let pair = 0; pair < pairs; pair++) {
    const pass = await runProxy(bench, dataset, [upstream]);
    passes.push(pass);
    if (comparesWithBare) bareSeconds.push(await runBarePublisher(bench, dataset, upstream));
    references.push(await runReference(bench, dataset));
    const around = ((references.at(-2)?.seconds ?? NaN) + (references.at(-1)?.seconds ?? NaN)) / 2;
    ratios.push(around / pass.seconds);
    say(
      `${upstream.label}, transactions of ${transaction}: ${figure(pass.seconds)} s, pg_recvlogical ` +
        `${figure(around)} s, ratio ${figure(ratios.at(-1) ?? NaN)}` +
        (comparesWithBare ? `, bare publisher ${figure(bareSeconds.at(-1) ?? NaN)} s` : ""),
    );
  }
  return {
    upstream: upstream.name,
    label: upstream.label,
    transaction: String(transaction),
    events: dataset.events,
    references,
    passes,
    ratios,
    bareSeconds,
    bareRatios: bareSeconds.map((seconds, index) => seconds / (passes[index]?.seconds ?? NaN)),
    reads: bench.quick && upstream.name !== "stdout" ? undefined : await countReads(bench, dataset, upstream),
  };
}

/** From its start to its end, as the proxy is measured from its start to its last confirm. */
async function runBarePublisher(bench: Bench, dataset: Dataset, upstream: UpstreamCase): Promise<number> {
  const { uri, pid } = await bench.broker("rabbitmq");
  const sampleFile = join(bench.home.dir, "sample.json");
  writeFileSync(sampleFile, JSON.stringify(dataset.sample));
  await emptyQueue(uri, pid);
  const program = bench.home.start([
    join(ROOT_DIR, ".tools/node_modules/.bin/bun"),
    join(ROOT_DIR, "tests/bench/bare_publisher.ts"),
    ...[uri, QUEUE, upstream.config["delivery_mode"] ?? "2", String(dataset.events), sampleFile],
  ]);
  await program.succeeded();
  const seconds = (performance.now() - program.startedAtMs) / 1000;
  const arrived = await queueLength(uri);
  if (arrived !== dataset.events) {
    throw new Error(`the bare publisher sent ${dataset.events}, the queue has ${arrived}`);
  }
  await emptyQueue(uri, pid);
  return seconds;
}

function throughputTable(dataset: Dataset, transaction: number | "all", results: readonly CaseResult[]): Table {
  const size = transaction === "all" ? "one transaction" : `transactions of ${transaction}`;
  return {
    title: `WAL throughput: ${dataset.rows.toLocaleString("en-US")} rows in ${size}`,
    note:
      `${dataset.events.toLocaleString("en-US")} events (BEGIN and COMMIT included) of ${dataset.messageBytes} bytes ` +
      "in the mean. Ratio: of the times from the start of the process until confirmed_flush_lsn has passed the last " +
      "commit, pg_recvlogical before and after to the proxy; median of the pairs (lowest to highest). CPU in µs per event.",
    columns: [
      "",
      "events/s",
      "pg_recvlogical",
      "ratio",
      "range:",
      "target",
      ":",
      "proxy",
      "walsender",
      "broker",
      "peak RSS MB",
      "reads",
    ],
    rows: results.map((result) => throughputRow(result)),
  };
}

function throughputRow(result: CaseResult): string[] {
  const { events, passes, references, reads } = result;
  const ratio = spread(result.ratios);
  const target = TARGETS[result.transaction]?.[result.upstream];
  const microseconds = (pick: (pass: Pass) => number) => figure((median(passes.map(pick)) * 1000) / events);
  return [
    result.label,
    figure(median(passes.map(({ seconds }) => events / seconds))),
    figure(median(references.map(({ seconds }) => events / seconds))),
    figure(ratio.median),
    `${figure(ratio.min)}–${figure(ratio.max)}`,
    target === undefined ? "" : `≥ ${target}`,
    target === undefined ? "" : ratio.median >= target ? "met" : "missed",
    microseconds(({ clientCpuMs }) => clientCpuMs),
    microseconds(({ walsenderCpuMs }) => walsenderCpuMs),
    result.upstream === "stdout" ? NO_FIGURE : microseconds(({ brokerCpuMs }) => brokerCpuMs),
    megabytes(Math.max(...passes.map(({ peakRssBytes }) => peakRssBytes))),
    reads === undefined ? NO_FIGURE : reads.toLocaleString("en-US"),
  ];
}

function bareTable(results: readonly CaseResult[]): Table {
  return {
    title: "AMQP beside a bare publisher",
    note: "The same messages to the same queue with a confirm window of 2,000, without PostgreSQL, in the same run.",
    columns: ["", "transactions of", "events/s", "bare publisher", "ratio", "range:", "target", ":"],
    rows: results.map(({ label, transaction, events, passes, bareSeconds, bareRatios }) => {
      const ratio = spread(bareRatios);
      return [
        label,
        transaction,
        figure(median(passes.map(({ seconds }) => events / seconds))),
        figure(median(bareSeconds.map((seconds) => events / seconds))),
        figure(ratio.median),
        `${figure(ratio.min)}–${figure(ratio.max)}`,
        `≥ ${BARE_PUBLISHER_TARGET}`,
        ratio.median >= BARE_PUBLISHER_TARGET ? "met" : "missed",
      ];
    }),
  };
}

function verdictsOf(result: CaseResult): Verdict[] {
  const name = `${result.label}, transactions of ${result.transaction}`;
  const target = TARGETS[result.transaction]?.[result.upstream];
  const verdicts: Verdict[] = [];
  if (target !== undefined) {
    verdicts.push(verdict(`${name}, to pg_recvlogical`, median(result.ratios), { atLeast: target }));
  }
  if (result.bareRatios.length > 0) {
    const ratio = median(result.bareRatios);
    verdicts.push(verdict(`${name}, to a bare publisher`, ratio, { atLeast: BARE_PUBLISHER_TARGET }));
  }
  const peakMb = Math.max(...result.passes.map(({ peakRssBytes }) => peakRssBytes)) / 1e6;
  if (peakMb >= PEAK_RSS_TARGET_MB || result.transaction === "100") {
    verdicts.push(verdict(`${name}, peak RSS`, peakMb, { below: PEAK_RSS_TARGET_MB }, " MB"));
  }
  return verdicts;
}
