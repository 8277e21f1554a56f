/** Rewrites the configuration reference in README.md from the key table: `deno task reference`. */

import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { REFERENCE_BEGIN, REFERENCE_END, withReference } from "../src/config/example.ts";

const path = fileURLToPath(new URL("../README.md", import.meta.url));
const readme = existsSync(path) ? withReference(readFileSync(path, "utf8")) : undefined;
if (readme === undefined) {
  console.error(
    `${path} lacks the lines "${REFERENCE_BEGIN}" and "${REFERENCE_END}": add them where the reference belongs`,
  );
  process.exitCode = 1;
} else {
  writeFileSync(path, readme);
  console.log(`${path}: configuration reference written`);
}
