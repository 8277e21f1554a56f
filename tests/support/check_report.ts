/** The command `check`, run as its users run it. */

import assert from "node:assert/strict";
import { type ProxyOptions, runProxy } from "./proxy.ts";

export interface CheckFinding {
  readonly subject: string;
  readonly mark: "ok" | "unchecked" | "warning" | "failure";
  readonly seen: string;
  readonly remedy?: string;
}

export interface CheckReport {
  readonly code: number | null;
  readonly findings: readonly CheckFinding[];
  /** All that are not `ok`. */
  readonly faults: readonly CheckFinding[];
  /** The finding with this subject; fails with everything found if there is none. */
  of(subject: string): CheckFinding;
}

/** Runs `check --json` and compares exit code and document. */
export async function runCheck(
  env: Readonly<Record<string, string>>,
  args: readonly string[] = [],
  options: ProxyOptions = {},
): Promise<CheckReport> {
  const { code, stdout, stderr } = await runProxy({ ...options, env, args: ["check", "--json", ...args] });
  assert.equal(stderr, "");
  const document = JSON.parse(stdout) as {
    readonly ok: boolean;
    readonly failures: number;
    readonly warnings: number;
    readonly sections: ReadonlyArray<{ readonly findings: readonly CheckFinding[] }>;
  };
  const findings = document.sections.flatMap((section) => section.findings);
  const count = (mark: CheckFinding["mark"]) => findings.filter((finding) => finding.mark === mark).length;
  assert.equal(document.failures, count("failure"));
  assert.equal(document.warnings, count("warning"));
  assert.equal(document.ok, document.failures === 0);
  assert.equal(code, document.ok ? 0 : 1);
  for (const { mark, remedy, subject } of findings) {
    if (mark === "failure" || mark === "warning") assert.ok(remedy, `${subject} has a remedy`);
  }
  return {
    code,
    findings,
    faults: findings.filter(({ mark }) => mark !== "ok"),
    of(subject) {
      const found = findings.find((finding) => finding.subject === subject);
      assert.ok(found, `${subject} is not among ${JSON.stringify(findings, undefined, 1)}`);
      return found;
    },
  };
}

/** `mark seen -> remedy` of a finding has to match. */
export function assertFinding(report: CheckReport, subject: string, wanted: RegExp): void {
  const { mark, seen, remedy = "" } = report.of(subject);
  assert.match(`${mark}: ${seen} -> ${remedy}`, wanted, subject);
}
