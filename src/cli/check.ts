/** `pg-event-proxy check`: a list of marks, what was seen and what to do about it. */

import { check, type CheckOptions } from "../check/mod.ts";
import type { Finding, Mark, Section } from "../check/finding.ts";
import { loadConfig, type LoadOptions } from "../config/load.ts";
import { type Colour, harmlessText, type Paint, painter } from "./colours.ts";
import { parseConnections } from "./run.ts";

export interface CheckCommandOptions extends LoadOptions, CheckOptions {
  /** One JSON document instead of lines. */
  readonly json: boolean;
  readonly write: (text: string) => void;
}

const MARKS: Readonly<Record<Mark, readonly [sign: string, colour: Colour]>> = {
  ok: ["✓", "green"],
  unchecked: ["–", "dim"],
  warning: ["!", "yellow"],
  failure: ["✗", "red"],
};

/** Returns the exit code: 1 if anything failed. Throws ConfigError. */
export async function checkCommand({ json, write, ...options }: CheckCommandOptions): Promise<number> {
  const { bridges } = loadConfig(options).config;
  const paint = painter();
  const sections: Section[] = [];
  for await (const section of check(bridges, parseConnections(bridges), options, new AbortController().signal)) {
    sections.push(section);
    if (!json) write(sectionText(section, paint));
  }
  const marks = sections.flatMap(({ findings }) => findings.map(({ mark }) => mark));
  const failures = marks.filter((mark) => mark === "failure").length;
  const warnings = marks.filter((mark) => mark === "warning").length;
  if (json) write(`${JSON.stringify({ ok: failures === 0, failures, warnings, sections }, undefined, 2)}\n`);
  else if (failures + warnings > 0) write(`${counted(failures, "failure")}, ${counted(warnings, "warning")}\n`);
  return failures === 0 ? 0 : 1;
}

function counted(count: number, word: string): string {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}

function sectionText({ part, server, findings }: Section, paint: Paint): string {
  const width = Math.max(...findings.map(({ subject }) => subject.length));
  const lines = findings.map((finding) => findingText(finding, Math.min(width, 32), paint));
  return `${paint("bold", harmlessText(part))}: ${harmlessText(server)}\n${lines.join("")}`;
}

function findingText({ subject, mark, seen, remedy }: Finding, width: number, paint: Paint): string {
  const [sign, colour] = MARKS[mark];
  const line = `  ${paint(colour, sign)} ${harmlessText(subject).padEnd(width)}  ${harmlessText(seen)}\n`;
  return remedy === undefined
    ? line
    : `${line}    ${"".padEnd(width)}  ${paint("cyan", `→ ${harmlessText(remedy)}`)}\n`;
}
