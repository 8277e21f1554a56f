/** The outbox has a benchmark of its own, with servers of its own, that also runs by itself: tests/bench/outbox.ts. */

import { join } from "node:path";
import { ROOT_DIR } from "../support/proxy.ts";
import { type Bench, say } from "./bench.ts";
import type { Section, Table } from "./report.ts";

export async function outboxSection(bench: Bench): Promise<Section> {
  const rows = bench.settings.rows ?? (bench.quick ? 20_000 : 1_000_000);
  const outputs = [await output(bench, "drain", rows)];
  if (!bench.quick) outputs.push(await output(bench, "senders", 3));
  return {
    name: "outbox",
    tables: outputs.map(({ title, text }) => asTable(title, text)),
    verdicts: [],
    raw: outputs,
  };
}

async function output(bench: Bench, what: "drain" | "senders", size: number): Promise<{ title: string; text: string }> {
  say(`outbox: ${what} ${size.toLocaleString("en-US")}`);
  const command = [join(ROOT_DIR, ".tools/node_modules/.bin/bun"), join(ROOT_DIR, "tests/bench/outbox.ts")];
  const chunks: Uint8Array[] = [];
  const program = bench.home.start([...command, what, String(size)], {
    inheritEnv: true,
    onStdout: (chunk) => chunks.push(chunk),
  });
  await program.succeeded();
  const title = what === "drain" ? "Draining the outbox" : "What a message costs its sender";
  return { title, text: Buffer.concat(chunks).toString("utf8") };
}

/** It prints a line of explanation and a Markdown table. */
function asTable(title: string, text: string): Table {
  const lines = text.split("\n").filter((line) => line !== "");
  const cells = lines.filter((line) => line.startsWith("|") && !/^\|[ |-]+$/.test(line))
    .map((line) => line.replace(/^\||\|\s*$/g, "").split("|").map((cell) => cell.trim()));
  const [head = [], ...rows] = cells;
  const width = Math.max(head.length, ...rows.map((row) => row.length));
  const columns = ["", ...Array.from({ length: width - 1 }, (_, index) => head[index + 1] ?? "")];
  return { title, note: lines.find((line) => !line.startsWith("|")) ?? "", columns, rows };
}
