/**
 * `/metrics` in Prometheus' text format (prometheus.io, "Exposition formats", version 0.0.4).
 *
 * Written here and not by the client library `prom-client`: that counts by a call with an object of labels for each event
 * and cannot take over a histogram, where lanes and sources have all numbers in plain fields already, to be read at each
 * scrape; and it would be loaded at each start.
 */

import process from "node:process";
import { LATENCY_BOUNDS_MS, type LatencyHistogram } from "../core/latency.ts";
import type { ChannelCounts } from "../core/lane_meter.ts";
import type { BridgeStatus, SourceStatus, UpstreamStatus } from "../core/status.ts";
import { readProcess } from "./process_figures.ts";

export const METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8";

type Labels = Readonly<Record<string, string>>;
type Sample = readonly [labels: Labels, value: number];

/** `nowMs` is the time of the scrape, `version` that of the program. */
export function metricsText(bridges: readonly BridgeStatus[], version: string, nowMs: number): string {
  const text = new MetricsText();
  const sources = bridges.flatMap((bridge) =>
    bridge.sources.map((source) => ({ source, labels: { bridge: bridge.name, source: source.name } }))
  );
  const upstreams = bridges.flatMap((bridge) =>
    bridge.upstreams.map((upstream) => ({
      upstream,
      labels: { bridge: bridge.name, upstream: upstream.name, kind: upstream.kind },
    }))
  );
  text.gauge("build_info", "Version and runtime of the program; always 1.", [[
    { version, runtime: runtimeName() },
    1,
  ]]);
  writeSources(text, sources, nowMs);
  writeSlots(text, sources);
  writeUpstreams(text, upstreams);
  writeLatency(text, upstreams);
  writeProcess(text);
  return text.toString();
}

function runtimeName(): string {
  const { bun, deno } = process.versions as Readonly<Record<string, string | undefined>>;
  if (bun !== undefined) return `bun ${bun}`;
  return deno === undefined ? `node ${process.versions.node}` : `deno ${deno}`;
}

type Sources = ReadonlyArray<{ readonly source: SourceStatus; readonly labels: Labels }>;
type Upstreams = ReadonlyArray<{ readonly upstream: UpstreamStatus; readonly labels: Labels }>;

function writeSources(text: MetricsText, sources: Sources, nowMs: number): void {
  const each = (value: (source: SourceStatus) => number | undefined): Sample[] =>
    sources.flatMap(({ source, labels }): Sample[] => {
      const number = value(source);
      return number === undefined ? [] : [[labels, number]];
    });
  text.gauge(
    "source_up",
    "Whether the source is connected to PostgreSQL and PostgreSQL answers.",
    each(({ state }) => Number(state === "open")),
  );
  text.gauge(
    "source_standing_by",
    "Whether another instance does the work of the source.",
    each(({ state }) => Number(state === "standing_by")),
  );
  text.gauge(
    "source_last_message_age_seconds",
    "Time since PostgreSQL was last heard on the connection of the source.",
    each(({ figures: { heardAtMs } }) => heardAtMs === undefined ? undefined : Math.max(0, nowMs - heardAtMs) / 1000),
  );
  text.counter("source_reconnects_total", "Connections of the source after its first.", each((s) => s.reconnects));
  text.counter(
    "source_dropped_events_total",
    "Notifications given up because notify_buffer_bytes was used up.",
    each(({ figures }) => figures.droppedEvents),
  );
  text.counter(
    "received_events_total",
    "Events received from PostgreSQL, of channels with a binding; those received again after a reconnect count again.",
    sources.flatMap(({ source, labels }) =>
      source.received.map(({ channel, events }): Sample => [{ ...labels, channel }, events])
    ),
  );
}

function writeSlots(text: MetricsText, sources: Sources): void {
  const slots = sources.flatMap(({ source: { figures: { slot } }, labels }) =>
    slot === undefined ? [] : [{ slot, labels: { bridge: labels.bridge ?? "", slot: slot.name } }]
  );
  const each = (value: (slot: (typeof slots)[number]["slot"]) => number | undefined): Sample[] =>
    slots.flatMap(({ slot, labels }): Sample[] => {
      const number = value(slot);
      return number === undefined ? [] : [[labels, number]];
    });
  text.gauge("slot_retained_wal_bytes", "WAL that PostgreSQL keeps for the slot.", each((slot) => slot.retainedBytes));
  text.gauge("slot_lag_bytes", "WAL that is not confirmed as delivered.", each((slot) => slot.lagBytes));
  text.gauge(
    "slot_safe_wal_bytes",
    "WAL that may still be written before the slot is lost; absent without max_slot_wal_keep_size.",
    each((slot) => slot.safeBytes),
  );
  text.gauge(
    "slot_lost_in_seconds",
    "Time until the slot is lost if WAL goes on being written as in the last 10 s; absent while nothing is written.",
    each((slot) => slot.lostInMs === undefined ? undefined : slot.lostInMs / 1000),
  );
}

function writeUpstreams(text: MetricsText, upstreams: Upstreams): void {
  const each = (value: (upstream: UpstreamStatus) => number): Sample[] =>
    upstreams.map(({ upstream, labels }) => [labels, value(upstream)]);
  const eachChannel = (value: (counts: ChannelCounts) => number): Sample[] =>
    upstreams.flatMap(({ upstream, labels }) =>
      [...upstream.meter?.channels ?? []].map(([channel, counts]): Sample => [{ ...labels, channel }, value(counts)])
    );
  text.gauge(
    "upstream_up",
    "Whether the upstream is connected, acknowledges, and no refused event holds it up.",
    each(({ state }) => Number(state === "open")),
  );
  text.counter("upstream_reconnects_total", "Connections to the upstream after the first.", each((u) => u.reconnects));
  text.gauge("in_flight_events", "Events sent and not acknowledged.", each((u) => u.inFlightEvents));
  text.gauge(
    "pending_events",
    "Events taken and not acknowledged, those in flight included.",
    each((u) => u.pendingEvents),
  );
  text.gauge(
    "pending_bytes",
    "Memory held by events that are not acknowledged, as max_in_flight_bytes counts it.",
    each((u) => u.pendingBytes),
  );
  text.counter("delivered_events_total", "Events acknowledged by the upstream.", eachChannel((c) => c.delivered));
  text.counter(
    "delivered_bytes_total",
    "Bytes of payload of the events acknowledged by the upstream.",
    eachChannel((c) => c.deliveredBytes),
  );
  text.counter(
    "resent_events_total",
    "Events sent again because the connection ended before their acknowledgement.",
    eachChannel((c) => c.resent),
  );
  text.counter(
    "dropped_events_total",
    "Events that the upstream refused and on_reject=drop gave up.",
    eachChannel((c) => c.dropped),
  );
}

function writeLatency(text: MetricsText, upstreams: Upstreams): void {
  text.histogram(
    "delivery_latency_seconds",
    'Time until the acknowledgement of the upstream: with since="commit" from the commit in PostgreSQL, as told by ' +
      'wal2json\'s include-timestamp; with since="receipt" from when the proxy received the event.',
    upstreams.flatMap(({ upstream: { meter }, labels }) =>
      meter === undefined ? [] : [
        [{ ...labels, since: "commit" }, meter.sinceCommit] as const,
        [{ ...labels, since: "receipt" }, meter.sinceReceipt] as const,
      ].filter(([, histogram]) => histogram.count > 0)
    ),
  );
}

/** Under the names that Prometheus' own client libraries give them. */
function writeProcess(text: MetricsText): void {
  const figures = readProcess();
  text.family("process_cpu_seconds_total", "counter", "Processor time, user and system.", [[{}, figures.cpuSeconds]]);
  text.family("process_resident_memory_bytes", "gauge", "Resident memory.", [[{}, figures.residentBytes]]);
  text.family("process_start_time_seconds", "gauge", "When the program was started, since the Unix epoch.", [
    [{}, figures.startSeconds],
  ]);
  if (figures.openFds === undefined) return;
  text.family("process_open_fds", "gauge", "Open file descriptors.", [[{}, figures.openFds]]);
}

const PREFIX = "pg_event_proxy_";

class MetricsText {
  readonly #lines: string[] = [];

  gauge(name: string, help: string, samples: readonly Sample[]): void {
    this.family(PREFIX + name, "gauge", help, samples);
  }

  counter(name: string, help: string, samples: readonly Sample[]): void {
    this.family(PREFIX + name, "counter", help, samples);
  }

  /** One without samples is left out. */
  family(name: string, type: "gauge" | "counter", help: string, samples: readonly Sample[]): void {
    if (samples.length === 0) return;
    this.#head(name, type, help);
    for (const [labels, value] of samples) this.#sample(name, labels, value);
  }

  histogram(name: string, help: string, histograms: ReadonlyArray<readonly [Labels, LatencyHistogram]>): void {
    if (histograms.length === 0) return;
    this.#head(PREFIX + name, "histogram", help);
    for (const [labels, { buckets, sumMs, count }] of histograms) {
      let cumulative = 0;
      LATENCY_BOUNDS_MS.forEach((boundMs, i) => {
        cumulative += buckets[i]!;
        this.#sample(`${PREFIX}${name}_bucket`, { ...labels, le: String(boundMs / 1000) }, cumulative);
      });
      this.#sample(`${PREFIX}${name}_bucket`, { ...labels, le: "+Inf" }, count);
      this.#sample(`${PREFIX}${name}_sum`, labels, sumMs / 1000);
      this.#sample(`${PREFIX}${name}_count`, labels, count);
    }
  }

  toString(): string {
    return `${this.#lines.join("\n")}\n`;
  }

  #head(name: string, type: string, help: string): void {
    this.#lines.push(`# HELP ${name} ${help.replaceAll("\\", "\\\\")}`, `# TYPE ${name} ${type}`);
  }

  #sample(name: string, labels: Labels, value: number): void {
    const pairs = Object.entries(labels).map(([label, text]) => `${label}="${escapeLabel(text)}"`);
    this.#lines.push(`${name}${pairs.length === 0 ? "" : `{${pairs.join(",")}}`} ${value}`);
  }
}

function escapeLabel(text: string): string {
  return text.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n");
}
