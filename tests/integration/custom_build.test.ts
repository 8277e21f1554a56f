/** The build by `deno compile`: what is embedded, and what is left out. Without Deno's own runtime, which is downloaded. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { KINDS } from "../../src/config/keys.ts";
import { importMapWithout, PRIVILEGES, upstreamModules } from "../../scripts/release/custom_build.ts";
import { currentRuntime, ROOT_DIR, runProxy } from "../support/proxy.ts";
import { iniText, scenario, type Scope } from "../support/scenario.ts";
import { Workspace } from "../support/server_process.ts";

const reason = currentRuntime() === "deno" ? undefined : "it is Deno's own";
const byDeno: typeof scenario = reason === undefined
  ? scenario
  : (title) => void test(title, { skip: reason }, () => {});

function folder(scope: Scope): string {
  const workspace = new Workspace("compile");
  scope.defer(() => workspace.remove());
  return workspace.dir;
}

byDeno("every kind of upstream can be left out", async () => {
  const kinds = Object.keys(KINDS).sort();
  assert.deepEqual([...upstreamModules(ROOT_DIR).keys()].sort(), kinds);
  for (const path of upstreamModules(ROOT_DIR).values()) assert.ok(statSync(path).isFile(), path);
  assert.throws(() => importMapWithout(["ampq"], ROOT_DIR), /no upstream "ampq" to leave out: the kinds are .*amqp/);
});

byDeno("deno task compile embeds the program and the SQL, and no library of an upstream left out", (scope) => {
  const dir = folder(scope);
  // Any file will do for the embedding step; a real one is needed to run what comes out.
  const runtime = join(dir, "runtime");
  writeFileSync(runtime, readFileSync("/bin/true"), { mode: 0o755 });
  const compile = (name: string, ...args: string[]) => {
    const out = join(dir, name);
    const { status, stderr } = spawnSync(process.execPath, ["task", "compile", "--out", out, ...args], {
      cwd: ROOT_DIR,
      env: { ...process.env, DENORT_BIN: runtime, NO_COLOR: "1" },
      encoding: "utf8",
    });
    assert.equal(status, 0, stderr);
    return readFileSync(out);
  };
  const sql = readFileSync(join(ROOT_DIR, "src/sql/events.sql"));
  const whole = compile("whole");
  const part = compile("part", "--without", "mqtt, redis");
  for (const file of [whole, part]) {
    assert.ok(file.includes(sql), "the script of the events schema");
    assert.ok(file.includes("class AmqpUpstream"));
    assert.ok(!file.includes("fast-check/"), "nothing that only tests need");
  }
  for (const text of ["class MqttUpstream", "class RedisUpstream", "/ioredis/"]) {
    assert.ok(whole.includes(text), text);
    assert.ok(!part.includes(text), text);
  }
  return Promise.resolve();
});

byDeno("a build without an upstream says so where it is configured, and does the rest", async (scope) => {
  const importMap = join(folder(scope), "import_map.json");
  writeFileSync(importMap, JSON.stringify(importMapWithout(["mqtt"], ROOT_DIR)));
  const command = [process.execPath, "run", "--quiet", "--no-prompt", ...PRIVILEGES, `--import-map=${importMap}`];
  const main = join(ROOT_DIR, "src/main.ts");
  const database = await scope.database();
  const text = iniText({
    local: { postgresql_uri: database.uri, upstream: "mqtt" },
    "local.upstream_config": { uri: "mqtt://127.0.0.1:1", bridge_channels: "events->topic:events" },
  });
  const run = await runProxy({ command, args: [main, "config.ini"], files: { "config.ini": text } });
  assert.equal(run.code, 1, run.stderr);
  assert.match(run.stderr, /compiled without the upstream mqtt: compile it again without --without mqtt/);
  const printed = await runProxy({ command, args: [main, "config", "config.ini"], files: { "config.ini": text } });
  assert.equal(printed.code, 0, printed.stderr);
});
