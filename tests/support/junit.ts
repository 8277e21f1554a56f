/** Counts the tests in the JUnit reports of `deno test` and `bun test`. */

export interface TestCounts {
  readonly passed: number;
  readonly failed: number;
  readonly skipped: number;
}

interface Case {
  readonly name: string;
  outcome: "passed" | "failed" | "skipped";
}

/**
 * Deno reports a suite, or a test with subtests, as a case beside its members (`suite > member`): it counts only if it
 * failed and none of its members did, as when a hook fails.
 */
export function countJunit(xml: string): TestCounts {
  const cases = readCases(xml);
  const counts = { passed: 0, failed: 0, skipped: 0 };
  for (const { name, outcome } of cases) {
    const members = cases.filter((other) => other.name.startsWith(`${name} &gt; `));
    const counted = members.length === 0 || (outcome === "failed" && members.every((m) => m.outcome !== "failed"));
    if (counted) counts[outcome]++;
  }
  return counts;
}

function readCases(xml: string): Case[] {
  const cases: Case[] = [];
  // Both write `<` in texts and attributes as an entity, so that tags can be found without a parser.
  for (const [, tag, attributes = ""] of xml.replace(/<!\[CDATA\[.*?\]\]>/gs, "").matchAll(/<([a-z]+)\b([^<>]*)>/g)) {
    const current = cases.at(-1);
    if (tag === "testcase") {
      cases.push({ name: /\bname="([^"]*)"/.exec(attributes)?.[1] ?? "", outcome: "passed" });
    } else if (current !== undefined && (tag === "failure" || tag === "error")) {
      current.outcome = "failed";
    } else if (current !== undefined && tag === "skipped") {
      current.outcome = "skipped";
    }
  }
  return cases;
}
