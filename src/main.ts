/** The executable: answers `--version` at once, since loading the rest takes longer, and leaves all else to the command line. */

import process from "node:process";
import { versionText } from "./version.ts";

const [first] = process.argv.slice(2);
if (first === "--version" || first === "-V") {
  process.stdout.write(`${versionText()}\n`);
} else {
  const { runCommandLine } = await import("./cli/mod.ts");
  await runCommandLine(process.argv.slice(2));
}
