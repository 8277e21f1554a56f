import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import process from "node:process";
import { test } from "node:test";
import { until } from "../support/wait.ts";
import { ProcessMeter, rssBytesOf } from "./process_figures.ts";
import { figure, markdownTable, terminalTable, verdict } from "./report.ts";
import { median, percentile } from "./statistics.ts";
import { sentMsOf, tickMessage } from "./wall_clock.ts";

test("a median does not depend on the order, and lies between the two middle values of an even number", () => {
  assert.equal(median([9, 1, 5]), 5);
  assert.equal(median([9, 1, 5, 2]), 3.5);
  assert.ok(Number.isNaN(median([])));
});

test("a percentile is the smallest value that the share does not exceed", () => {
  const values = Array.from({ length: 100 }, (_, index) => 100 - index);
  assert.equal(percentile(values, 0.5), 50);
  assert.equal(percentile(values, 0.99), 99);
  assert.equal(percentile(values, 1), 100);
  assert.equal(percentile(values, 0), 1);
  assert.equal(percentile([7], 0.99), 7);
});

test("a target is met at its very value only if it is a lower bound", () => {
  assert.equal(verdict("ratio", 1.5, { atLeast: 1.5 }).met, true);
  assert.equal(verdict("ratio", 1.49, { atLeast: 1.5 }).met, false);
  assert.equal(verdict("RSS", 150, { below: 150 }).met, false);
  assert.equal(verdict("RSS", NaN, { below: 150 }).met, false);
});

test("figures have three significant digits", () => {
  assert.deepEqual([0.1234, 12.345, 1234.5, NaN].map(figure), ["0.12", "12.3", "1,235", "–"]);
});

test("tables align text to the left and figures to the right, on the terminal and in Markdown", () => {
  const table = { title: "T", columns: ["", "n", "word:"], rows: [["a", "1", "x"], ["bbb", "22", "yy"]] };
  assert.equal(terminalTable(table), "T\n      n  word\n───  ──  ────\na     1  x\nbbb  22  yy");
  const [, , , rule, first] = markdownTable(table).split("\n");
  assert.equal(rule, "| --- | --: | ---- |");
  assert.equal(first, "| a   |   1 | x    |");
});

test("a message tells when it was sent, whoever wrote it", () => {
  assert.equal(sentMsOf(tickMessage(7, 1763798400123.456)), 1763798400123.456);
  assert.equal(sentMsOf(`{"action":"I","columns":[{"name":"sent","value":1.7637984001234e+12}]}`), 1763798400123.4);
  assert.equal(sentMsOf(`{"action":"C"}`), undefined);
});

test("what a process used is kept when it is gone", { skip: process.platform !== "linux" }, async () => {
  const child = spawn("sh", ["-c", "while :; do :; done"], { stdio: "ignore" });
  const pid = child.pid ?? 0;
  const ended = new Promise((resolve) => child.once("exit", resolve));
  const meter = new ProcessMeter(pid);
  await until(() => {
    meter.finish();
    return meter.cpuMs >= 50;
  }, { what: "the loop to use 50 ms" });
  const [used, peak] = [meter.cpuMs, meter.peakRssBytes];
  assert.ok(peak >= (rssBytesOf(pid, "VmRSS") ?? Infinity));
  child.kill("SIGKILL");
  await ended;
  meter.finish();
  assert.ok(meter.cpuMs >= used);
  assert.equal(meter.peakRssBytes, peak);
});
