import assert from "node:assert/strict";
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { PermanentError } from "../../src/core/errors.ts";
import { StdoutUpstream } from "../../src/upstreams/stdout.ts";
import { COMMON_CONFIG, notifyEvent, TestLane, walEvent } from "../support/upstream_contract.ts";
import { until } from "../support/wait.ts";

const TARGET = { type: "topic", name: "terminal" };
const TIMEOUT = { timeout: 180_000 };

const open = (fd: number) => TestLane.open(new StdoutUpstream({ ...COMMON_CONFIG, kind: "stdout" }, fd), [TARGET]);

async function inFolder(work: (dir: string) => Promise<void>): Promise<void> {
  const dir = mkdtempSync(join(tmpdir(), "pg-event-proxy-test-stdout-"));
  try {
    await work(dir);
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

/** Lines, split at newlines only: JSON may hold U+2028. */
function lines(file: string): string[] {
  const text = readFileSync(file, "utf8");
  assert.ok(text.endsWith("\n"));
  return text.slice(0, -1).split("\n");
}

test("stdout: one line of JSON per event; wal2json's records byte for byte", TIMEOUT, () =>
  inFolder(async (dir) => {
    const file = join(dir, "out");
    const fd = openSync(file, "w");
    const lane = await open(fd);
    const exact = `{"action":"I" ,"n":9007199254740993,"f":1.10,"t":"ü🐘\\n\u2028"}`;
    lane.send(
      TARGET,
      walEvent(exact, { id: "0/16B3748-3" }),
      walEvent(`{\n  "pretty": 1\n}`),
      notifyEvent('text "quoted"\n🐘', { id: "n1", channel: `a"b`, routingKey: "sign\tup" }),
      notifyEvent(`{"json":1}`, { json: true }),
      walEvent("not JSON", { json: false }),
      notifyEvent(""),
    );
    await lane.answered();
    assert.ok(lane.sent.every(({ outcome }) => outcome === "acknowledged"));
    const written = lines(file);
    assert.equal(
      written[0],
      `{"id":"0/16B3748-3","type":"wal","channel":"wal2json","target":"terminal",` +
        `"routing_key":"public.orders.insert","payload":${exact}}`,
    );
    assert.deepEqual(JSON.parse(written[2]!), {
      id: "n1",
      type: "notify",
      channel: `a"b`,
      target: "terminal",
      routing_key: "sign\tup",
      payload: 'text "quoted"\n🐘',
    });
    const payloads = written.map((line) => JSON.parse(line).payload);
    assert.deepEqual(payloads.slice(1, 2).concat(payloads.slice(3)), [
      `{\n  "pretty": 1\n}`,
      `{"json":1}`,
      "not JSON",
      "",
    ]);
    await lane.close();
    closeSync(fd);
  }));

test("stdout: 20,000 events of all sizes keep their order", TIMEOUT, () =>
  inFolder(async (dir) => {
    const file = join(dir, "out");
    const fd = openSync(file, "w");
    const lane = await open(fd);
    const pad = "x".repeat(600_000);
    lane.send(
      TARGET,
      ...Array.from(
        { length: 20_000 },
        (_, i) => walEvent(`{"n":${i},"pad":"${i % 5_000 === 7 ? pad : pad.slice(0, i % 300)}"}`),
      ),
    );
    await lane.answered();
    assert.deepEqual(lines(file).map((line) => JSON.parse(line).payload.n), lane.sent.map((_, i) => i));
    assert.deepEqual(lane.answers, lane.sent.map(({ event }) => event.id));
    await lane.close();
    closeSync(fd);
  }));

test("stdout: a reader that pauses holds the acknowledgements back", TIMEOUT, () =>
  inFolder(async (dir) => {
    const gate = join(dir, "gate");
    execFileSync("mkfifo", [gate]);
    const script = fileURLToPath(new URL("../support/stdout_writer.ts", import.meta.url));
    const args = "deno" in process.versions ? ["run", "-A", "--no-check", script] : ["run", script];
    // The reader waits for a line from the gate before it reads.
    const pipeline = spawn("sh", ["-c", `"$@" | { read -r go < "${gate}"; wc -c; }`, "sh", process.execPath, ...args]);
    let said = "";
    let counted = "";
    pipeline.stderr.on("data", (chunk: Uint8Array) => said += chunk);
    pipeline.stdout.on("data", (chunk: Uint8Array) => counted += chunk);
    await until(() => said.includes("sending\n"), { what: "the writer to begin" });
    // Two megabytes do not fit in a pipe; a session that acknowledges what it was given does so at once.
    await delay(300);
    assert.doesNotMatch(said, /answered/);
    writeFileSync(gate, "go\n");
    await until(() => said.includes("answered\n"), { what: () => `the answers: ${said}` });
    await until(() => /\d+\n/.test(counted), { what: "the count of the bytes" });
    assert.ok(Number(counted) > 2_000 * 1_000, counted);
  }));

test("stdout: a reader that ends is a loss that no retry mends", TIMEOUT, () =>
  inFolder(async (dir) => {
    const pipe = join(dir, "pipe");
    execFileSync("mkfifo", [pipe]);
    const reader: ChildProcess = spawn("head", ["-c", "10", pipe], { stdio: "ignore" });
    const ended = new Promise((resolve) => reader.once("exit", resolve));
    const fd = openSync(pipe, "w");
    const lane = await open(fd);
    lane.send(TARGET, walEvent("{}"));
    await ended;
    lane.send(TARGET, walEvent("{}"), walEvent("{}"));
    const cause = await lane.lost();
    assert.ok(cause instanceof PermanentError);
    assert.match(cause.message, /^stdout was closed/);
    assert.ok(lane.unanswered >= 2);
    await lane.close();
    closeSync(fd);
  }));
