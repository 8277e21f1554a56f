/** Tables for the terminal and for the README, and the file with every raw figure. */

import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";

export interface Table {
  readonly title: string;
  /** What one needs to know to read it. */
  readonly note?: string;
  /** The first column is text, the others are figures unless their title ends in a colon. */
  readonly columns: readonly string[];
  readonly rows: ReadonlyArray<readonly string[]>;
}

/** A target, and how it came out. */
export interface Verdict {
  readonly name: string;
  readonly target: string;
  readonly seen: string;
  readonly met: boolean;
}

export interface Section {
  readonly name: string;
  readonly tables: readonly Table[];
  readonly verdicts: readonly Verdict[];
  /** Every single measurement, in the units that its names tell. */
  readonly raw: unknown;
}

/** How a section was made. */
export interface SectionRecord extends Section {
  readonly commit: string;
  readonly mode: string;
  /** Processes that wanted a processor, in the minute before. */
  readonly loadAtStart: number;
  readonly startedAt: string;
  readonly seconds: number;
}

export interface BenchFile {
  readonly machine: Readonly<Record<string, string>>;
  readonly versions: Readonly<Record<string, string>>;
  readonly sections: Readonly<Record<string, SectionRecord>>;
}

export const NO_FIGURE = "–";
/** What `deno fmt` wraps the README at. */
const MARKDOWN_WIDTH = 120;

export function verdict(
  name: string,
  value: number,
  target: { atLeast: number } | { below: number },
  unit = "",
): Verdict {
  const atLeast = "atLeast" in target;
  const met = atLeast ? value >= target.atLeast : value < target.below;
  return {
    name,
    target: atLeast ? `≥ ${target.atLeast}${unit}` : `< ${target.below}${unit}`,
    seen: `${figure(value)}${unit}`,
    met,
  };
}

/** Three significant digits are as much as a shared machine can tell. */
export function figure(value: number): string {
  if (!Number.isFinite(value)) return NO_FIGURE;
  const size = Math.abs(value);
  if (size >= 100) return Math.round(value).toLocaleString("en-US");
  return value.toFixed(size >= 10 ? 1 : 2);
}

export function megabytes(bytes: number): string {
  return figure(bytes / 1e6);
}

export function verdictTable(verdicts: readonly Verdict[]): Table {
  return {
    title: "Targets",
    columns: ["", "target", "seen", ":"],
    rows: verdicts.map(({ name, target, seen, met }) => [name, target, seen, met ? "met" : "missed"]),
  };
}

export function terminalTable(table: Table): string {
  const { widths, cells } = layout(table);
  const line = (row: readonly string[]) =>
    row.map((cell, index) => isText(table, index) ? cell.padEnd(widths[index] ?? 0) : cell.padStart(widths[index] ?? 0))
      .join("  ").trimEnd();
  const [head = [], ...rows] = cells;
  const rule = widths.map((width) => "─".repeat(width)).join("  ");
  const note = table.note === undefined ? [] : wrap(table.note, 120);
  return [table.title, ...note, line(head), rule, ...rows.map(line)].join("\n");
}

export function markdownTable(table: Table): string {
  const { widths: narrow, cells } = layout(table);
  // The rule under a column has at least three characters.
  const widths = narrow.map((width) => Math.max(3, width));
  const pad = (cell: string, index: number) =>
    isText(table, index) ? cell.padEnd(widths[index] ?? 0) : cell.padStart(widths[index] ?? 0);
  const line = (row: readonly string[]) => `| ${row.map((cell, index) => pad(escaped(cell), index)).join(" | ")} |`;
  const rule = widths.map((width, index) => isText(table, index) ? "-".repeat(width) : `${"-".repeat(width - 1)}:`);
  const [head = [], ...rows] = cells;
  const note = table.note === undefined ? [] : [...wrap(table.note, MARKDOWN_WIDTH), ""];
  return [`**${table.title}**`, "", ...note, line(head), `| ${rule.join(" | ")} |`, ...rows.map(line)].join("\n");
}

function escaped(cell: string): string {
  return cell.replaceAll("*", "\\*");
}

/** What `--markdown` prints, and the README holds: the first table in sight, the others folded. */
export function markdownReport(file: BenchFile): string {
  const list = (entries: Readonly<Record<string, string>>) =>
    Object.entries(entries).map(([name, value]) => `${name} ${value}`).join(", ");
  const sections = Object.values(file.sections);
  const [first = "", ...others] = sections.flatMap(({ tables }) => tables).map(markdownTable);
  return [
    first,
    "<details><summary>All tables</summary>",
    wrap(
      `Machine: ${list(file.machine)}. Versions: ${list(file.versions)}. ` +
        `Commits: ${[...new Set(sections.map(({ commit }) => commit))].join(", ")}.`,
      MARKDOWN_WIDTH,
    ).join("\n"),
    ...others,
    "</details>",
  ].join("\n\n");
}

/** Adds a section to the file, in place of an earlier one of that name; the others stay as they were measured. */
export function saveSection(path: string, head: Omit<BenchFile, "sections">, record: SectionRecord): void {
  const sections = { ...loadBenchFile(path)?.sections, [record.name]: record };
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, JSON.stringify({ ...head, sections }, null, 2) + "\n");
}

export function loadBenchFile(path: string): BenchFile | undefined {
  return existsSync(path) ? JSON.parse(readFileSync(path, "utf8")) : undefined;
}

function layout(table: Table): { widths: number[]; cells: string[][] } {
  const head = table.columns.map((title) => title.replace(/:$/, ""));
  const cells = [head, ...table.rows.map((row) => [...row])];
  const widths = head.map((_, index) => Math.max(...cells.map((row) => (row[index] ?? "").length)));
  return { widths, cells };
}

function isText(table: Table, index: number): boolean {
  return index === 0 || (table.columns[index] ?? "").endsWith(":");
}

function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  for (const word of text.split(" ")) {
    const last = lines.at(-1);
    if (last === undefined || last.length + 1 + word.length > width) lines.push(word);
    else lines[lines.length - 1] = `${last} ${word}`;
  }
  return lines;
}
