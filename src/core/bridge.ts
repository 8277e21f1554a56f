/** One database and its upstreams: makes lanes and sources, routes between them and keeps them running. */

import type { BridgeConfig, SlotConfig, UpstreamConfig } from "../config/config.ts";
import { logger } from "../log.ts";
import type { ConnectionParams } from "../postgres/connection_uri.ts";
import { NotifySource } from "../sources/notify.ts";
import { OutboxSource } from "../sources/outbox.ts";
import { WalSource, wantsTimestamps } from "../sources/wal.ts";
import { createUpstream } from "../upstreams/mod.ts";
import { bind, fixedTargets } from "./bindings.ts";
import { WAL_CHANNEL } from "./event.ts";
import { type EventLog, Lane } from "./lane.ts";
import { LaneMeter } from "./lane_meter.ts";
import type { OutboxRoutes } from "./outbox_routes.ts";
import { Routes } from "./routes.ts";
import type { Source } from "./source.ts";
import { SourceSupervisor } from "./source_supervisor.ts";
import type { BridgeStatus } from "./status.ts";

/** How long the upstreams may take to say goodbye after the last acknowledgement, in milliseconds. */
const CLOSE_MS = 1_000;

/** What is told of the events beside the log of faults; nothing by default. */
export interface Telling {
  /** Whether deliveries are counted by channel and timed, for who may ask. */
  readonly metered: boolean;
  readonly eventLog: EventLog;
}

interface SourceOfBridge {
  readonly source: Source;
  readonly routes: Routes;
}

interface SupervisedSource {
  readonly supervisor: SourceSupervisor;
  readonly routes: Routes;
}

interface LaneOfUpstream {
  readonly config: UpstreamConfig;
  readonly lane: Lane;
}

export class Bridge {
  readonly #config: BridgeConfig;
  readonly #lanes: readonly LaneOfUpstream[];
  readonly #sources: readonly SupervisedSource[];
  readonly #lanesStop = new AbortController();

  private constructor(
    config: BridgeConfig,
    lanes: readonly LaneOfUpstream[],
    sources: readonly SourceOfBridge[],
    onChange: () => void,
  ) {
    this.#config = config;
    this.#lanes = lanes;
    this.#sources = sources.map(({ source, routes }) => ({
      supervisor: new SourceSupervisor(source, logger(config.name, source.name), onChange),
      routes,
    }));
  }

  /**
   * `onChange` is called whenever a source or an upstream has become ready or ceased to be. `outboxRoutes` is shared by all
   * bridges of the process, which must be created before the first of them runs.
   */
  static async create(
    config: BridgeConfig,
    params: ConnectionParams,
    onChange: () => void,
    outboxRoutes: OutboxRoutes,
    telling?: Telling,
  ): Promise<Bridge> {
    const lanes = await Promise.all(config.upstreams.map(async (upstream) => ({
      config: upstream,
      lane: new Lane({
        upstream: await createUpstream(upstream),
        targets: fixedTargets(upstream),
        maxInFlightBytes: upstream.maxInFlightBytes,
        onReject: upstream.onReject,
        log: logger(config.name, upstream.name),
        meter: telling?.metered ? new LaneMeter() : undefined,
        ...(telling === undefined ? {} : { eventLog: telling.eventLog }),
        onChange,
      }),
    })));
    const sources = [
      ...notifySources(config, params, lanes),
      ...outboxSources(config, params, lanes, outboxRoutes),
      ...walSources(config, params, lanes, telling?.metered === true),
    ];
    return new Bridge(config, lanes, sources, onChange);
  }

  get name(): string {
    return this.#config.name;
  }

  /** Whether every source and every upstream is connected and nothing holds them up. */
  get ready(): boolean {
    return this.#lanes.every(({ lane }) => lane.ready) && this.#sources.every(({ supervisor }) => supervisor.open);
  }

  /** A reading of now; `meter` goes on counting. */
  get status(): BridgeStatus {
    return {
      name: this.name,
      sources: this.#sources.map(({ supervisor: { source, condition, connections }, routes }) => ({
        name: source.name,
        ...condition,
        figures: source.figures,
        received: routes.received,
        reconnects: Math.max(0, connections - 1),
      })),
      upstreams: this.#lanes.map(({ config, lane }) => ({
        name: config.name,
        kind: config.kind,
        ...lane.condition,
        inFlightEvents: lane.inFlight,
        pendingEvents: lane.unsettled,
        pendingBytes: lane.bytes,
        reconnects: Math.max(0, lane.counts.connections - 1),
        meter: lane.meter,
      })),
    };
  }

  /**
   * Runs until `stopping` aborts, then drains until `deadline` aborts. Throws PermanentError for a fault at the first
   * start that no retry mends; the caller must then abort both signals.
   */
  async run(stopping: AbortSignal, deadline: AbortSignal): Promise<void> {
    const attempted = this.#lanes.map(() => Promise.withResolvers<void>());
    const lanes = Promise.all(
      this.#lanes.map(({ lane }, i) => lane.run(this.#lanesStop.signal, () => attempted[i]!.resolve())),
    );
    // A slot that is created for a bridge whose upstream is misconfigured would hold back WAL for nothing.
    await Promise.race([lanes, Promise.all(attempted.map(({ promise }) => promise))]);
    const sources = Promise.all(this.#sources.map(({ supervisor }) => supervisor.run(stopping, deadline)));
    await Promise.race([lanes, sources]);
    await Promise.all(this.#lanes.map(({ lane }) => lane.drained(deadline)));
    this.#lanesStop.abort();
    await lanes;
    await Promise.all(this.#lanes.map(({ lane }) => lane.close(CLOSE_MS)));
  }

  /** Ends everything at once, after a fault. */
  async abort(): Promise<void> {
    this.#lanesStop.abort();
    await Promise.all(this.#lanes.map(({ lane }) => lane.close(0)));
  }
}

function notifySources(
  config: BridgeConfig,
  params: ConnectionParams,
  lanes: readonly LaneOfUpstream[],
): SourceOfBridge[] {
  const routes = new Routes();
  for (const to of lanes) {
    for (const binding of to.config.bindings) {
      if (binding.channel !== WAL_CHANNEL) bind(routes, to.lane, to.config, binding);
    }
  }
  if (routes.channels.length === 0) return [];
  const source = new NotifySource({
    params,
    channels: routes.channels,
    sink: routes,
    log: logger(config.name, "notify"),
    identity: identityOf(config),
    maxBufferBytes: config.notifyBufferBytes,
  });
  return [{ source, routes }];
}

function outboxSources(
  config: BridgeConfig,
  params: ConnectionParams,
  lanes: readonly LaneOfUpstream[],
  outboxRoutes: OutboxRoutes,
): SourceOfBridge[] {
  if (!config.outbox) return [];
  const bound = lanes.flatMap((to) =>
    to.config.bindings.filter(({ channel }) => channel !== WAL_CHANNEL).map((binding) => ({ binding, to }))
  );
  if (bound.length === 0) return [];
  const { routes, drains } = outboxRoutes.of(config.postgresqlUri);
  for (const { binding, to } of bound) bind(routes, to.lane, to.config, binding);
  if (!drains) return [];
  const log = logger(config.name, "outbox");
  return [{ source: new OutboxSource({ params, channels: () => routes.channels, sink: routes, log }), routes }];
}

/** One source for each slot that an upstream with a `wal2json` binding names. */
function walSources(
  config: BridgeConfig,
  params: ConnectionParams,
  lanes: readonly LaneOfUpstream[],
  metered: boolean,
): SourceOfBridge[] {
  const slots = new Map<string, SlotConfig>();
  for (const { config: upstream } of lanes) {
    if (upstream.bindings.some(({ channel }) => channel === WAL_CHANNEL)) slots.set(upstream.slot.name, upstream.slot);
  }
  return [...slots.values()].map((slot) => {
    const routes = new Routes();
    for (const to of lanes) {
      if (to.config.slot.name !== slot.name) continue;
      for (const binding of to.config.bindings) bind(routes, to.lane, to.config, binding);
    }
    const source = new WalSource({
      params,
      slot,
      failover: config.slotFailover,
      commitTimes: metered && wantsTimestamps(slot),
      sink: routes,
      log: logger(config.name, `wal ${slot.name}`),
    });
    return { source, routes };
  });
}

/** The same for two instances that would deliver the same notifications to the same places. */
function identityOf(config: BridgeConfig): string {
  const upstreams = config.upstreams.map((upstream) => ({
    kind: upstream.kind,
    name: upstream.name,
    server: "uri" in upstream ? upstream.uri.replace(/^([^:]+:\/\/)[^@/]*@/, "$1") : "",
    bindings: upstream.bindings.map(({ channel, target }) => `${channel}->${target.type}:${target.name}`),
  }));
  return JSON.stringify([config.name, upstreams]);
}
