/** The alert rules and the dashboard under examples/, by Prometheus' own checker and against what the program tells. */

import assert from "node:assert/strict";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { LATENCY_BOUNDS_MS } from "../../src/core/latency.ts";
import { LaneMeter } from "../../src/core/lane_meter.ts";
import type { BridgeStatus } from "../../src/core/status.ts";
import { metricsText } from "../../src/http/metrics.ts";
import { promtool, promtoolMissing } from "../support/promtool.ts";
import { ROOT_DIR } from "../support/proxy.ts";
import { Workspace } from "../support/server_process.ts";

const RULES = join(ROOT_DIR, "examples/prometheus_alerts.yml");
const missing = promtoolMissing();
const options = missing === undefined ? {} : { skip: missing };

interface Dashboard {
  readonly panels: ReadonlyArray<{ readonly targets: ReadonlyArray<{ readonly expr: string }> }>;
}

function dashboardExpressions(): string[] {
  const { panels }: Dashboard = JSON.parse(readFileSync(join(ROOT_DIR, "examples/grafana_dashboard.json"), "utf8"));
  return panels.flatMap(({ targets }) => targets.map(({ expr }) => expr));
}

/** Every metric there can be. */
function everyMetric(): Set<string> {
  const meter = new LaneMeter();
  meter.channels.set("c", { delivered: 1, deliveredBytes: 1, resent: 1, dropped: 1 });
  meter.sinceReceipt.record(LATENCY_BOUNDS_MS[1]!);
  const bridge: BridgeStatus = {
    name: "b",
    sources: [{
      name: "wal s",
      state: "open",
      reason: undefined,
      figures: {
        heardAtMs: 0,
        droppedEvents: 0,
        slot: { name: "s", retainedBytes: 1, lagBytes: 1, safeBytes: 1, lostInMs: 1, walStatus: "reserved" },
      },
      received: [{ channel: "c", events: 1 }],
      reconnects: 0,
    }],
    upstreams: [{
      name: "u",
      kind: "amqp",
      state: "open",
      reason: undefined,
      inFlightEvents: 0,
      pendingEvents: 0,
      pendingBytes: 0,
      reconnects: 0,
      meter,
    }],
  };
  const text = metricsText([bridge], "0", 0);
  return new Set(text.split("\n").flatMap((line) => /^([a-z_]+)[{ ]/.exec(line)?.[1] ?? []));
}

test("alerts and dashboard name only metrics that there are, and the dashboard shows most of them", () => {
  const names = (text: string) => text.match(/\b(?:pg_event_proxy|process)_[a-z_]+/g) ?? [];
  const known = everyMetric();
  const shown = dashboardExpressions().flatMap(names);
  assert.ok(shown.length >= 15);
  // Only what the expressions name: the texts speak of settings.
  const alerted = readFileSync(RULES, "utf8").split("\n").filter((line) => !/summary|description|#/.test(line));
  for (const name of [...shown, ...names(alerted.join("\n"))]) assert.ok(known.has(name), `${name} is not told`);
});

test("promtool takes the alert rules and every expression of the dashboard", options, async () => {
  promtool(["check", "rules", RULES]);
  const workspace = new Workspace("promtool");
  try {
    mkdirSync(workspace.dir, { recursive: true });
    const file = join(workspace.dir, "dashboard.yml");
    const rules = dashboardExpressions().map((expr, i) => {
      const plain = expr.replaceAll("$__rate_interval", "5m");
      return `      - record: panel:${i}\n        expr: ${JSON.stringify(plain)}\n`;
    });
    writeFileSync(file, `groups:\n  - name: dashboard\n    rules:\n${rules.join("")}`);
    promtool(["check", "rules", file]);
  } finally {
    await workspace.remove();
  }
});

/** Series of one sample a minute, what must fire after ten minutes, and of what. */
const CASES = [
  ["PgEventProxyDown", 'up{job="pg-event-proxy", instance="i"}', "0x20"],
  ["PgEventProxySourceDown", 'pg_event_proxy_source_up{bridge="b", source="notify", instance="i"}', "0x20"],
  ["PgEventProxyUpstreamDown", 'pg_event_proxy_upstream_up{bridge="b", upstream="u", kind="amqp"}', "0x20"],
  ["PgEventProxySlotLostSoon", 'pg_event_proxy_slot_lost_in_seconds{bridge="b", slot="s"}', "600x20"],
  ["PgEventProxyEventsDropped", 'pg_event_proxy_dropped_events_total{bridge="b", upstream="u"}', "0+1x20"],
  ["PgEventProxyNotificationsDropped", 'pg_event_proxy_source_dropped_events_total{bridge="b"}', "0+1x20"],
] as const;

test("the alerts fire when they should, and are silent while all is well", options, async () => {
  const workspace = new Workspace("promtool");
  try {
    const file = join(workspace.dir, "tests.yml");
    const expects = (alert: string, series: string, values: string, fires: boolean) => `
  - interval: 1m
    input_series:
      - series: ${JSON.stringify(series)}
        values: ${JSON.stringify(values)}
    promql_expr_test:
      - expr: ${JSON.stringify(`count(ALERTS{alertname="${alert}", alertstate="firing"})`)}
        eval_time: 10m
        exp_samples: [${fires ? '{ labels: "{}", value: 1 }' : ""}]
`;
    const fine = { up: "1x20", source_up: "1x20", upstream_up: "1x20", lost_in_seconds: "90000x20", total: "7x20" };
    const tests = CASES.flatMap(([alert, series, values]) => {
      const healthy = Object.entries(fine).findLast(([name]) => series.split("{")[0]!.endsWith(name))?.[1] ?? "";
      return [expects(alert, series, values, true), expects(alert, series, healthy, false)];
    });
    writeFileSync(file, `rule_files: [${JSON.stringify(RULES)}]\nevaluation_interval: 1m\ntests:${tests.join("")}`);
    promtool(["test", "rules", file]);
  } finally {
    await workspace.remove();
  }
});
