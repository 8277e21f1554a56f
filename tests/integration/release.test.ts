/** The files of a release: `scripts/build --all` from a clone of its own. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { cpSync, existsSync, readdirSync, readFileSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { signatureFault } from "../../scripts/release/code_signature.ts";
import { platformOf, platformText } from "../../scripts/release/executable_file.ts";
import { RELEASE_TARGETS } from "../../scripts/release/targets.ts";
import { currentRuntime, programCommand, ROOT_DIR, runProxy } from "../support/proxy.ts";
import { scenario } from "../support/scenario.ts";
import { Workspace } from "../support/server_process.ts";

const TITLE = "scripts/build --all makes an executable for each platform, their sums and a bill of materials";

const SCRIPT_TIMEOUT_MS = 300_000;

interface Bill {
  readonly metadata: { readonly component: { readonly version: string } };
  readonly components: ReadonlyArray<{
    readonly "bom-ref": string;
    readonly name: string;
    readonly hashes?: ReadonlyArray<{ readonly alg: string; readonly content: string }>;
  }>;
  readonly dependencies: ReadonlyArray<{ readonly ref: string; readonly dependsOn: readonly string[] }>;
}

function script(dir: string, name: string, ...args: string[]): string {
  const { status, stdout, stderr } = spawnSync(join(dir, "scripts", name), args, {
    encoding: "utf8",
    maxBuffer: 1 << 24,
    // A machine that fetches the runtimes of the other platforms for the first time needs a while.
    timeout: SCRIPT_TIMEOUT_MS,
  });
  assert.equal(status, 0, `${stdout}${stderr}`);
  return stdout;
}

if (currentRuntime() !== "executable") {
  test(TITLE, { skip: "it is the same under each runtime" }, () => {});
} else {
  scenario(TITLE, async (scope) => {
    const workspace = new Workspace("release");
    scope.defer(() => workspace.remove());
    const out = join(workspace.dir, "out");
    const table = script(ROOT_DIR, "build", "--all", "--out", out);
    const version: string = JSON.parse(readFileSync(join(ROOT_DIR, "deno.json"), "utf8")).version;
    const names = RELEASE_TARGETS.map(({ name, os }) =>
      `pg-event-proxy-${version}-${name}${os === "windows" ? ".exe" : ""}`
    );
    const bill = `pg-event-proxy-${version}.cdx.json`;
    assert.deepEqual(readdirSync(out).sort(), ["SHA256SUMS", bill, ...names].sort());
    const sums = readFileSync(join(out, "SHA256SUMS"), "utf8");
    for (const name of [...names, bill]) {
      const bytes = readFileSync(join(out, name));
      const sum = createHash("sha256").update(bytes).digest("hex");
      assert.ok(sums.includes(`${sum}  ${name}\n`), name);
      assert.match(table, new RegExp(`^${name.replaceAll(".", "\\.")} +[0-9.]+ [kM]B +${sum}$`, "m"));
    }
    RELEASE_TARGETS.forEach((target, i) => {
      assert.equal(platformText(platformOf(readFileSync(join(out, names[i] ?? "")))), platformText(target));
    });
    checkBill(JSON.parse(readFileSync(join(out, bill), "utf8")), version);
    checkSignature(readFileSync(join(out, names[RELEASE_TARGETS.findIndex(({ name }) => name === "macos-x64")] ?? "")));

    if (process.arch === "x64") {
      const { code, stdout } = await runProxy({ command: [join(out, names[0] ?? "")], args: ["--version"] });
      assert.deepEqual({ code, stdout }, { code: 0, stdout: versionOfTheExecutable() });
    }

    // Elsewhere, from the same sources, the same file.
    const { status, stdout: modified } = spawnSync("git", ["status", "--porcelain"], {
      cwd: ROOT_DIR,
      encoding: "utf8",
    });
    if (status !== 0 || modified !== "") return;
    const clone = join(workspace.dir, "clone");
    assert.equal(spawnSync("git", ["clone", "--quiet", ROOT_DIR, clone]).status, 0);
    symlinkSync(join(ROOT_DIR, ".tools"), join(clone, ".tools"));
    // Copied: Bun takes the modules behind a link for others, at their real path.
    cpSync(join(ROOT_DIR, "node_modules"), join(clone, "node_modules"), { recursive: true, verbatimSymlinks: true });
    const again = script(clone, "build", "--target", "macos-x64", "--target", "linux-x64-musl");
    for (const line of again.split("\n").filter((text) => /-(macos|linux)-/.test(text))) {
      assert.ok(sums.includes(line.split(/ +/).at(-1) ?? "?"), line);
    }
  }, { timeoutMs: 2 * SCRIPT_TIMEOUT_MS });
}

function versionOfTheExecutable(): string {
  const [program = "", ...args] = programCommand("executable");
  assert.ok(existsSync(program));
  return spawnSync(program, [...args, "--version"], { encoding: "utf8" }).stdout;
}

function checkBill(bill: Bill, version: string): void {
  assert.equal(bill.metadata.component.version, version);
  const references = bill.components.map((component) => component["bom-ref"]);
  assert.equal(new Set(references).size, references.length);
  for (const name of ["bun", "amqplib", "mqtt", "ioredis", "postgres"]) {
    assert.ok(bill.components.some((component) => component.name === name), name);
  }
  assert.ok(!bill.components.some(({ name }) => name === "fast-check"), "only tests need it");
  const lock: { npm: Record<string, { integrity: string }> } = JSON.parse(
    readFileSync(join(ROOT_DIR, "deno.lock"), "utf8"),
  );
  const integrities = new Set(Object.values(lock.npm).map(({ integrity }) => integrity));
  for (const { name, hashes = [] } of bill.components.filter((component) => component.name !== "bun")) {
    assert.equal(hashes.length, 1, name);
    assert.ok(integrities.has(`sha512-${Buffer.from(hashes[0]?.content ?? "", "hex").toString("base64")}`), name);
  }
  const all = new Set([...references, bill.dependencies[0]?.ref]);
  for (const { ref, dependsOn } of bill.dependencies) {
    for (const reference of [ref, ...dependsOn]) assert.ok(all.has(reference), reference);
  }
}

/** That a changed byte is noticed at all. */
function checkSignature(file: Uint8Array): void {
  assert.equal(signatureFault(file), undefined);
  const changed = new Uint8Array(file);
  changed[1_000_000] = (changed[1_000_000] ?? 0) ^ 1;
  assert.match(signatureFault(changed) ?? "", /^page 244 has another hash$/);
}
