/** The same program under Deno beside the executable (Bun): alternately, on the same changes. */

import { type Bench, say } from "./bench.ts";
import { dropDataset, writeDataset } from "./dataset.ts";
import { figure, megabytes, type Section, type Verdict, verdict } from "./report.ts";
import { median, spread } from "./statistics.ts";
import { brokersOf, upstreamCase, wantedCases } from "./upstream_cases.ts";
import { type Pass, runProxy } from "./wal_run.ts";

const CASES = ["stdout", "redis", "mqtt-0", "mqtt-1", "amqp-exchange", "amqp-1"];
const TARGET = 0.8;

interface Result {
  readonly upstream: string;
  readonly label: string;
  readonly events: number;
  readonly executable: readonly Pass[];
  readonly deno: readonly Pass[];
}

export async function denoSection(bench: Bench): Promise<Section> {
  const names = wantedCases(bench, bench.quick ? ["stdout"] : CASES);
  for (const name of brokersOf(names)) void bench.broker(name).catch(() => {});
  const rows = bench.settings.rows ?? (bench.quick ? 100_000 : 500_000);
  const dataset = await writeDataset(bench, { rows, rowsPerTransaction: 100 });
  const results: Result[] = [];
  for (const name of names) {
    const upstream = await upstreamCase(bench, name);
    const executable: Pass[] = [];
    const deno: Pass[] = [];
    for (let pair = 0; pair < (bench.settings.pairs ?? (bench.quick ? 2 : 5)); pair++) {
      executable.push(await runProxy(bench, dataset, [upstream], { runtime: "executable" }));
      deno.push(await runProxy(bench, dataset, [upstream], { runtime: "deno" }));
      say(
        `${upstream.label}: executable ${figure(executable.at(-1)?.seconds ?? NaN)} s, Deno ${
          figure(deno.at(-1)?.seconds ?? NaN)
        } s`,
      );
    }
    results.push({ upstream: name, label: upstream.label, events: dataset.events, executable, deno });
  }
  await dropDataset(bench, dataset);
  return {
    name: "deno",
    tables: [{
      title: "Deno beside the executable",
      note: `${rows.toLocaleString("en-US")} rows in transactions of 100. Ratio of Deno's events per second to the ` +
        "executable's. CPU in µs per event.",
      columns: [
        "",
        "executable/s",
        "Deno/s",
        "ratio",
        "range:",
        "executable CPU",
        "Deno CPU",
        "executable MB",
        "Deno MB",
      ],
      rows: results.map(row),
    }],
    verdicts: results.map(verdictOf),
    raw: results,
  };
}

function ratios({ executable, deno }: Result): number[] {
  return executable.map(({ seconds }, index) => seconds / (deno[index]?.seconds ?? NaN));
}

function row(result: Result): string[] {
  const { label, events, executable, deno } = result;
  const ratio = spread(ratios(result));
  const rate = (passes: readonly Pass[]) => figure(median(passes.map(({ seconds }) => events / seconds)));
  const cpu = (passes: readonly Pass[]) =>
    figure((median(passes.map(({ clientCpuMs }) => clientCpuMs)) * 1000) / events);
  const peak = (passes: readonly Pass[]) => megabytes(Math.max(...passes.map(({ peakRssBytes }) => peakRssBytes)));
  return [
    label,
    rate(executable),
    rate(deno),
    figure(ratio.median),
    `${figure(ratio.min)}–${figure(ratio.max)}`,
    cpu(executable),
    cpu(deno),
    peak(executable),
    peak(deno),
  ];
}

function verdictOf(result: Result): Verdict {
  return verdict(`Deno to the executable, ${result.label}`, median(ratios(result)), { atLeast: TARGET });
}
