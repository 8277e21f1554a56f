/** What becomes of it when there is more: ten times the rows, wide rows, many bindings, several upstreams on a slot. */

import { type Bench, say } from "./bench.ts";
import { type Dataset, type DatasetOptions, dropDataset, writeDataset } from "./dataset.ts";
import { figure, megabytes, type Section, type Verdict, verdict } from "./report.ts";
import { median } from "./statistics.ts";
import { brokersOf, type UpstreamCase, upstreamCase } from "./upstream_cases.ts";
import { type Pass, runProxy, runReference } from "./wal_run.ts";

const PEAK_RSS_TARGET_MB = 150;
/** One event larger than the bound passes alone: what is held then is that event. */
const WIDE_ROW_BYTES = 1_000_000;

interface Step {
  readonly label: string;
  readonly dataset: DatasetOptions;
  readonly upstreams: readonly string[];
  /** Targets that each event goes to, of one upstream. */
  readonly bindings?: number;
}

interface Result {
  readonly label: string;
  readonly rows: number;
  readonly events: number;
  readonly deliveries: number;
  readonly bytes: number;
  readonly references: readonly Pass[];
  readonly passes: readonly Pass[];
}

export async function growthSection(bench: Bench): Promise<Section> {
  for (const name of brokersOf(["redis", "mqtt", "amqp"])) void bench.broker(name).catch(() => {});
  const rows = bench.settings.rows ?? (bench.quick ? 50_000 : 500_000);
  const results: Result[] = [];
  for (const step of steps(rows, bench.quick)) {
    const dataset = await writeDataset(bench, step.dataset);
    results.push(await measureStep(bench, step, dataset));
    await dropDataset(bench, dataset);
  }
  return {
    name: "growth",
    tables: [{
      title: "Growth",
      note: "Peak RSS is the highest of the runs, CPU in µs per delivery, ratio: to pg_recvlogical.",
      columns: ["", "rows", "deliveries/s", "MB/s", "ratio", "proxy CPU", "walsender CPU", "peak RSS MB"],
      rows: results.map((result) => row(result)),
    }],
    verdicts: results.flatMap(verdictsOf),
    raw: results,
  };
}

function steps(rows: number, quick: boolean): Step[] {
  const wide = (upstream: string): Step[] => [
    {
      label: `rows of 10 kB, ${upstream}`,
      dataset: { rows: Math.ceil(rows / 25), rowsPerTransaction: 100, textBytes: 10_000 },
      upstreams: [upstream],
    },
    {
      label: `rows of 1 MB, ${upstream}`,
      dataset: { rows: Math.ceil(rows / 2_500), rowsPerTransaction: 10, textBytes: WIDE_ROW_BYTES },
      upstreams: [upstream],
    },
  ];
  const all: DatasetOptions = { rows, rowsPerTransaction: "all" };
  const tenfold: DatasetOptions = { rows: rows * 10, rowsPerTransaction: "all" };
  return [
    { label: "one transaction, stdout", dataset: all, upstreams: ["stdout"] },
    { label: "one transaction, ten times the rows, stdout", dataset: tenfold, upstreams: ["stdout"] },
    { label: "one transaction, Redis", dataset: all, upstreams: ["redis"] },
    ...(quick ? [] : [{ label: "one transaction, ten times the rows, Redis", dataset: tenfold, upstreams: ["redis"] }]),
    ...wide("stdout"),
    ...wide("redis"),
    ...wide("amqp-1"),
    ...[1, 10, 100].map((bindings): Step => ({
      label: `${bindings} ${bindings === 1 ? "binding" : "bindings"}, Redis`,
      dataset: { rows: Math.ceil(rows / Math.min(bindings * 2, 50)), rowsPerTransaction: 100 },
      upstreams: ["redis"],
      bindings,
    })),
    {
      label: "3 upstreams on one slot: stdout, Redis, MQTT QoS 1",
      dataset: { rows, rowsPerTransaction: 100 },
      upstreams: ["stdout", "redis", "mqtt-1"],
    },
  ];
}

async function measureStep(bench: Bench, step: Step, dataset: Dataset): Promise<Result> {
  const cases = await Promise.all(step.upstreams.map((name) => upstreamCase(bench, name)));
  const bindings = step.bindings ?? 1;
  const upstreams = bindings === 1 ? cases : cases.map((each) => withBindings(each, bindings));
  const references: Pass[] = [];
  const passes: Pass[] = [];
  for (let pair = 0; pair < (bench.settings.pairs ?? (bench.quick ? 1 : 3)); pair++) {
    references.push(await runReference(bench, dataset));
    passes.push(await runProxy(bench, dataset, upstreams));
    say(`${step.label}: ${figure(passes.at(-1)?.seconds ?? NaN)} s, ${figure(references.at(-1)?.seconds ?? NaN)} s`);
  }
  return {
    label: step.label,
    rows: dataset.rows,
    events: dataset.events,
    deliveries: dataset.events * bindings * upstreams.length,
    bytes: dataset.events * dataset.messageBytes * bindings * upstreams.length,
    references,
    passes,
  };
}

/** The same with every event going to `count` targets. */
function withBindings(upstream: UpstreamCase, count: number): UpstreamCase {
  const bindings = Array.from({ length: count }, (_, index) => `wal2json->topic:bench.${index}`).join(",");
  return {
    ...upstream,
    config: { ...upstream.config, bridge_channels: bindings },
    finish: (events) => upstream.finish(events * count),
  };
}

function row({ label, rows, deliveries, bytes, references, passes }: Result): string[] {
  const ratios = passes.map(({ seconds }, index) => (references[index]?.seconds ?? NaN) / seconds);
  return [
    label,
    rows.toLocaleString("en-US"),
    figure(median(passes.map(({ seconds }) => deliveries / seconds))),
    figure(median(passes.map(({ seconds }) => bytes / 1e6 / seconds))),
    figure(median(ratios)),
    figure((median(passes.map(({ clientCpuMs }) => clientCpuMs)) * 1000) / deliveries),
    figure((median(passes.map(({ walsenderCpuMs }) => walsenderCpuMs)) * 1000) / deliveries),
    megabytes(Math.max(...passes.map(({ peakRssBytes }) => peakRssBytes))),
  ];
}

function verdictsOf({ label, passes }: Result): Verdict[] {
  const peakMb = Math.max(...passes.map(({ peakRssBytes }) => peakRssBytes)) / 1e6;
  return [verdict(`${label}, peak RSS`, peakMb, { below: PEAK_RSS_TARGET_MB }, " MB")];
}
