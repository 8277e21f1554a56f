import assert from "node:assert/strict";
import { test } from "node:test";
import { countJunit } from "./junit.ts";

test("Deno's report: suites do not count beside their members", () => {
  const report = `<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="deno test" tests="7" failures="2" errors="0" time="0.022">
    <testsuite name="./j.test.ts" tests="4" disabled="1" errors="0" failures="2">
        <testcase name="plain" classname="./j.test.ts" time="0.002" line="2" col="1">
        </testcase>
        <testcase name="fails &lt;x&gt;" classname="./j.test.ts" time="0.004" line="3" col="1">
            <failure message="Error: &lt;testcase name=&apos;z&apos;/&gt;">Error: &lt;failure&gt;</failure>
        </testcase>
        <testcase name="skipped" classname="./j.test.ts" time="0.000" line="4" col="1">
            <skipped/>
        </testcase>
        <testcase name="group" classname="./j.test.ts" time="0.005" line="7" col="1">
            <failure message="1 test step failed">1 test step failed.</failure>
        </testcase>
    </testsuite>
    <testsuite name="ext:deno_node/testing.ts" tests="2" disabled="0" errors="0" failures="1">
        <testcase name="group &gt; inner" classname="ext:deno_node/testing.ts" time="0.000" line="1" col="23191">
        </testcase>
        <testcase name="group &gt; inner fails" classname="ext:deno_node/testing.ts" time="0.000" line="1" col="21231">
            <failure message="Error: x">Error: x</failure>
        </testcase>
    </testsuite>
</testsuites>`;
  assert.deepEqual(countJunit(report), { passed: 2, failed: 2, skipped: 1 });
});

test("a suite that failed in a hook counts, though its members passed", () => {
  const report = `<testsuite><testcase name="group"><failure message="hook"/></testcase>
    <testcase name="group &gt; inner"></testcase></testsuite>`;
  assert.deepEqual(countJunit(report), { passed: 1, failed: 1, skipped: 0 });
});

test("Bun's report", () => {
  const report = `<testsuites name="bun test" tests="4" assertions="0" failures="1" skipped="2" time="0.07">
  <testsuite name="j.test.ts" file="j.test.ts" tests="4" assertions="0" failures="1" skipped="2" time="0.04">
    <testcase name="plain" classname="" time="0.001034" file="j.test.ts" line="2" assertions="0" />
    <testcase name="todo" classname="" time="0" file="j.test.ts" line="5" assertions="0">
      <skipped message="TODO" />
    </testcase>
    <testsuite name="group" file="j.test.ts" line="7" tests="2" assertions="0" failures="1" skipped="1" time="0">
      <testcase name="inner fails" classname="group" time="0.000112" file="j.test.ts" line="7" assertions="0">
        <failure type="Error" message="x">Error: x&#10;      at j.test.ts:7:86&#10;</failure>
      </testcase>
      <testcase name="inner skipped" classname="group" time="0" file="j.test.ts" line="7" assertions="0">
        <skipped />
      </testcase>
    </testsuite>
  </testsuite>
</testsuites>`;
  assert.deepEqual(countJunit(report), { passed: 1, failed: 1, skipped: 2 });
});
