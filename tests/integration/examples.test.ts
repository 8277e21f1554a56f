/** What lies in examples/: the stack of compose.yaml on real servers of this machine, and the scripts that go with it. */

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { currentRuntime, ROOT_DIR, runProxy } from "../support/proxy.ts";
import { scenario, type Scope } from "../support/scenario.ts";
import { startPostgres } from "../support/servers.ts";
import { until } from "../support/wait.ts";

const TITLE = "the stack of the example carries what generate_events.sh makes to what listen_events.sh shows";
const EXAMPLES_DIR = join(ROOT_DIR, "examples");

/** Runs until the scope ends; its standard output so far. */
function startScript(scope: Scope, name: string, ...args: string[]): { readonly output: () => string } {
  const child = spawn(join(ROOT_DIR, "scripts", name), args, { stdio: ["ignore", "pipe", "pipe"] });
  let output = "";
  child.stdout.on("data", (chunk) => output += chunk);
  child.stderr.on("data", (chunk) => output += chunk);
  const ended = new Promise((resolve) => child.once("close", resolve));
  scope.defer(() => {
    child.kill("SIGKILL");
    return ended;
  });
  return { output: () => output };
}

if (currentRuntime() !== "executable") {
  test(TITLE, { skip: "it is the same under each runtime" }, () => {});
} else {
  scenario(TITLE, async (scope) => {
    const { rabbitmq, mosquitto, redis } = await scope.servers;
    // Of its own, since the script of the example makes a role.
    const server = scope.keep(await startPostgres());
    const app = await server.createDatabase("app");
    const psql = spawnSync(join(server.binDir, "psql"), [
      "--no-psqlrc",
      "--set=ON_ERROR_STOP=1",
      `--file=${join(EXAMPLES_DIR, "postgres/init.sql")}`,
      app.uri,
    ], { encoding: "utf8" });
    assert.equal(psql.status, 0, psql.stderr);

    const config = readFileSync(join(EXAMPLES_DIR, "config.ini"), "utf8");
    const asProxy = new URL(app.uri);
    asProxy.username = "proxy";
    asProxy.password = "proxy";
    const env = {
      "PGPROXY_DATABASE-URI": asProxy.href,
      "PGPROXY_UPSTREAM-RABBITMQ-URI": rabbitmq.uri,
      "PGPROXY_UPSTREAM-MOSQUITTO-URI": mosquitto.uri,
      "PGPROXY_UPSTREAM-REDIS-URI": redis.uri,
    };
    const files = { "config.ini": config };
    const installed = await runProxy({
      args: ["sql", "--install", "--role", "proxy", "config.ini"],
      files,
      env: { ...env, "PGPROXY_DATABASE-URI": app.uri },
    });
    assert.equal(installed.code, 0, installed.stderr);
    const proxy = await scope.readyProxy({ args: ["config.ini"], files, env });

    const listener = startScript(scope, "listen_events.sh", rabbitmq.uri, mosquitto.uri, redis.uri);
    await until(() => listener.output().includes("listening"), { timeoutMs: 45_000, what: listener.output });
    const generator = startScript(scope, "generate_events.sh", app.uri, "--count", "2", "--every", "0");
    const expected = [
      /^RabbitMQ greeting +Hello number 2$/m,
      /^RabbitMQ stored +Kept until delivered, number 2$/m,
      /^RabbitMQ public\.items\.insert +\{"action":"I".*"item 2"/m,
      /^RabbitMQ public\.items\.update +\{"action":"U".*"item 2"/m,
      /^MQTT +events\.greeting +Hello number 2$/m,
      /^MQTT +wal +\{"action":"I".*"item 2"/m,
      /^Redis +events +Hello number 2$/m,
      /^Redis +wal +\{"action":"I".*"item 2"/m,
    ];
    await until(() => expected.every((line) => line.test(listener.output())), {
      timeoutMs: 60_000,
      what: () => `every event\n${generator.output()}\n${listener.output()}`,
    });
    const { code } = await proxy.stop();
    assert.equal(code, 0);
  });
}
