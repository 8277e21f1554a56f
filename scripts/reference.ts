/** Rewrites the configuration reference in README.md from the key table: `deno task reference`. */

import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { withReference } from "../src/config/example.ts";

const path = fileURLToPath(new URL("../README.md", import.meta.url));
const readme = withReference(readFileSync(path, "utf8"));
if (readme === undefined) {
  console.error(
    `${path} lacks the lines "<!-- configuration reference: begin -->" and "<!-- configuration reference: end -->": add them where the reference belongs`,
  );
  process.exitCode = 1;
} else {
  writeFileSync(path, readme);
  console.log(`${path}: configuration reference written`);
}
