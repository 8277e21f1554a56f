import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { test } from "node:test";
import {
  keyReferenceMarkdown,
  REFERENCE_BEGIN,
  REFERENCE_END,
  referenceIn,
  withReference,
} from "../../src/config/example.ts";

const README = new URL("../../README.md", import.meta.url);

test("the README holds the configuration reference of this version", () => {
  assert.ok(existsSync(README), "README.md is missing");
  const reference = referenceIn(readFileSync(README, "utf8"));
  assert.ok(
    reference !== undefined,
    `README.md lacks the lines "${REFERENCE_BEGIN}" and "${REFERENCE_END}"`,
  );
  assert.equal(reference, keyReferenceMarkdown(), "the reference in README.md is out of date: run deno task reference");
});

test("the reference is put between its marks and found there", () => {
  const readme =
    "# Title\n\n<!-- configuration reference: begin -->\nold\n<!-- configuration reference: end -->\n\nMore\n";
  const written = withReference(readme);
  assert.ok(written !== undefined);
  assert.ok(written.startsWith("# Title\n\n") && written.endsWith("\n\nMore\n"));
  assert.equal(referenceIn(written), keyReferenceMarkdown());
  assert.equal(withReference(written), written);
  assert.equal(referenceIn(readme), "old\n");
  assert.equal(withReference("# Title\n"), undefined);
});
