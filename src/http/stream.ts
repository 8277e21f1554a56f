/** What the status page is told, by server-sent events (WHATWG HTML, section "Server-sent events"). */

import type { Event } from "../core/event.ts";
import type { BridgeStatus, SourceStatus, UpstreamStatus } from "../core/status.ts";
import type { RecentLines } from "../log.ts";
import { healthReport } from "./health.ts";
import { readProcess } from "./process_figures.ts";
import { deliveredBy, receivedBy, type Recorder, type Sample, SAMPLES_KEPT } from "./recorder.ts";
import type { Observed } from "./routes.ts";

/** More pages than this are not answered. */
export const MAX_STREAMS = 20;
/** A page that does not keep up skips what came meanwhile. */
const MAX_QUEUED = 3;
/** Of a payload, this much is shown. */
const SHOWN_BYTES = 2_000;

export interface StreamOptions {
  readonly observe: () => Observed;
  readonly recorder: Recorder;
  readonly recentLines: RecentLines;
  readonly version: string;
  readonly showPayloads: boolean;
}

/** The body of one stream: an event `history` and then an event `status` after each sample. */
export function statusStream(options: StreamOptions): ReadableStream<Uint8Array> {
  const { recorder } = options;
  const encoder = new TextEncoder();
  let unsubscribe = () => {};
  return new ReadableStream({
    start(controller) {
      const send = (event: string, data: unknown) =>
        controller.enqueue(encoder.encode(`event: ${event}\ndata: ${JSON.stringify(data)}\n\n`));
      send("history", { capacity: SAMPLES_KEPT, samples: recorder.samples.slice(0, -1) });
      send("status", statusOf(options));
      unsubscribe = recorder.onSample(() => {
        if ((controller.desiredSize ?? 0) > -MAX_QUEUED) send("status", statusOf(options));
      });
    },
    cancel() {
      unsubscribe();
    },
  });
}

function statusOf({ observe, recorder, recentLines, version, showPayloads }: StreamOptions) {
  const { bridges, stopping } = observe();
  const { residentBytes, startSeconds } = readProcess();
  const nowMs = Date.now();
  return {
    version,
    ...healthReport(bridges, stopping),
    upMs: Math.max(0, nowMs - startSeconds * 1000),
    residentBytes,
    sinceCommit: bridges.some(({ upstreams }) => upstreams.some(({ meter }) => (meter?.sinceCommit.count ?? 0) > 0)),
    bridges: bridges.map((bridge) => ({
      name: bridge.name,
      sources: bridge.sources.map((source) => sourceOf(source, nowMs)),
      upstreams: bridge.upstreams.map((upstream) => upstreamOf(upstream, showPayloads)),
    })),
    sample: recorder.samples.at(-1) ?? emptySample(bridges, nowMs),
    errors: recentLines.newestFirst(),
  };
}

function emptySample(bridges: readonly BridgeStatus[], atMs: number): Sample {
  const upstreams = bridges.flatMap((bridge) => bridge.upstreams);
  return {
    atMs,
    received: bridges.flatMap((bridge) => bridge.sources.map(() => 0)),
    delivered: upstreams.map(() => 0),
    p50Ms: upstreams.map(() => null),
    p99Ms: upstreams.map(() => null),
  };
}

function sourceOf(source: SourceStatus, nowMs: number) {
  const { name, state, reason, reconnects, figures: { heardAtMs, droppedEvents, slot } } = source;
  return {
    name,
    state,
    reason: reason ?? null,
    received: receivedBy(source),
    dropped: droppedEvents,
    reconnects,
    heardAgoMs: heardAtMs === undefined ? null : Math.max(0, nowMs - heardAtMs),
    slot: slot === undefined ? null : { ...slot, safeBytes: slot.safeBytes ?? null, lostInMs: slot.lostInMs ?? null },
  };
}

function upstreamOf(upstream: UpstreamStatus, showPayloads: boolean) {
  const { name, kind, state, reason, reconnects, pendingEvents, pendingBytes, meter } = upstream;
  let resent = 0;
  let dropped = 0;
  for (const counts of meter?.channels.values() ?? []) {
    resent += counts.resent;
    dropped += counts.dropped;
  }
  return {
    name,
    kind,
    state,
    reason: reason ?? null,
    delivered: deliveredBy(upstream),
    resent,
    dropped,
    reconnects,
    pending: pendingEvents,
    pendingBytes,
    last: meter?.lastDelivered === undefined ? null : eventOf(meter.lastDelivered, showPayloads),
  };
}

/** A routing key may be made of what the sender wrote, and counts as contents. */
function eventOf({ id, channel, routingKey, payload }: Event, showPayloads: boolean) {
  const event = { id, channel, bytes: payload.length };
  if (!showPayloads) return event;
  const text = new TextDecoder().decode(payload.subarray(0, SHOWN_BYTES));
  return { ...event, routingKey, payload: payload.length > SHOWN_BYTES ? `${text} …` : text };
}
