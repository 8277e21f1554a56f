/** A real lane on a real upstream, without any source. */

import type { UpstreamConfig } from "../../src/config/config.ts";
import type { Event } from "../../src/core/event.ts";
import { Lane } from "../../src/core/lane.ts";
import type { Target } from "../../src/core/upstream.ts";
import { createUpstream } from "../../src/upstreams/mod.ts";
import { LogRecorder } from "../unit/log_recorder.ts";
import { until } from "./wait.ts";

export class RunningLane {
  readonly lane: Lane;
  readonly log: LogRecorder;
  /** Ids, in the order in which the lane got rid of them. */
  readonly released: string[] = [];
  readonly #stop: AbortController;
  readonly #running: Promise<void>;

  private constructor(lane: Lane, log: LogRecorder) {
    this.lane = lane;
    this.log = log;
    this.#stop = new AbortController();
    this.#running = lane.run(this.#stop.signal, () => {});
    this.#running.catch(() => {});
  }

  static async start(config: UpstreamConfig, targets: readonly Target[]): Promise<RunningLane> {
    const log = new LogRecorder();
    const lane = new Lane({
      upstream: await createUpstream(config),
      targets,
      maxInFlightBytes: config.maxInFlightBytes,
      onReject: config.onReject,
      log: log.logger,
      onChange: () => {},
    });
    return new RunningLane(lane, log);
  }

  push(target: Target, ...events: readonly Event[]): void {
    for (const event of events) {
      this.lane.push(event, target, { retain: () => {}, release: () => this.released.push(event.id) });
    }
  }

  async settled(count: number, timeoutMs = 45_000): Promise<void> {
    await until(() => this.released.length >= count, {
      what: () => `${count} events to be settled; it were ${this.released.length}\n${this.log.texts.join("\n")}`,
      timeoutMs,
      intervalMs: 5,
    });
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#running;
    await this.lane.close(500);
  }
}
