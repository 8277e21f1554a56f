/** The completion scripts, in the shells themselves. */

import assert from "node:assert/strict";
import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { runProxy } from "../support/proxy.ts";
import { programPaths, runProgram, Workspace } from "../support/server_process.ts";

const SHELLS = ["bash", "zsh", "fish"] as const;
type Shell = (typeof SHELLS)[number];

/** What is typed, and what completes it. */
const CASES: ReadonlyArray<readonly [typed: string, completed: string]> = [
  ["ch", "check"],
  ["tail --ch", "--channel"],
  ["completion zs", "zsh"],
  ["check --config READ", "READ.ini"],
  ["sql --ins", "--install"],
  ["--ver", "--version"],
];

/** Each prints a line for each case. */
const PROGRAMS: Readonly<Record<Shell, (script: string, lines: readonly string[]) => string>> = {
  bash: (script, lines) =>
    `source ${script}
    complete_line() {
      COMP_WORDS=(pg-event-proxy "$@"); COMP_CWORD=$#
      _pg_event_proxy 2>/dev/null; echo "\${COMPREPLY[*]}"
    }
    ${lines.map((line) => `complete_line ${line}`).join("\n")}`,
  // A real line editor, with a key to complete; then the line is printed as a word.
  zsh: (script, lines) =>
    `zmodload zsh/zpty
    zpty shell zsh -f -i
    zpty -w shell 'PS1= ; cd ${
      join(script, "..")
    }; autoload -U compinit; compinit -u -D; source ${script}; echo REA''DY'
    zpty -r -m shell junk '*READY*'
    for line in ${lines.map((line) => `'${line}'`).join(" ")}; do
      zpty -w -n shell "pg-event-proxy $line"$'\\t\\x01echo "<<"" \\x05"">>"" "\\n'
      zpty -r -m shell out '*<< *>> *'
      print -r -- "\${\${out##*<< }%%>> *}"
    done
    zpty -d shell`,
  fish: (script, lines) =>
    `cd ${join(script, "..")}; source ${script}
    ${lines.map((line) => `complete -C 'pg-event-proxy ${line}' | cut -f 1 | string join ' '`).join("\n")}
    true`,
};

for (const shell of SHELLS) {
  const program = programPaths(shell).find((path) => existsSync(path));
  const skip = program === undefined ? `${shell} is not installed` : false;
  test(`${shell} completes the command line`, { timeout: 60_000, skip }, async () => {
    const { code, stdout, stderr } = await runProxy({ args: ["completion", shell] });
    assert.equal(code, 0, stderr);
    const workspace = new Workspace("completion");
    try {
      const script = join(workspace.dir, shell);
      writeFileSync(script, stdout);
      writeFileSync(join(workspace.dir, "READ.ini"), "");
      const main = join(workspace.dir, "main");
      writeFileSync(main, PROGRAMS[shell](script, CASES.map(([typed]) => typed)));
      await runProgram(program!, ["-n", script]);
      const output = await runProgram(
        program!,
        shell === "fish" ? [main] : shell === "bash" ? ["--norc", main] : ["-f", main],
        {
          cwd: workspace.dir,
          env: { TERM: "xterm", HOME: workspace.dir },
        },
      );
      const lines = output.trimEnd().split("\n");
      for (const [i, [typed, completed]] of CASES.entries()) {
        assert.ok(lines[i]?.trim().split(/\s+/).includes(completed), `${typed}: ${JSON.stringify(lines[i])}`);
      }
      assert.equal(lines.length, CASES.length);
    } finally {
      await workspace.remove();
    }
  });
}

test("a shell that is not known ends with 2", async () => {
  const { code, stderr } = await runProxy({ args: ["completion", "tcsh"] });
  assert.equal(code, 2);
  assert.match(stderr, /tcsh/);
  assert.match(stderr, /bash, zsh, fish/);
});
