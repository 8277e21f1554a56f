/** What can be seen of the program from outside while it runs; read when somebody asks. */

import type { LaneMeter } from "./lane_meter.ts";
import type { SourceFigures } from "./source.ts";

/**
 * - *connecting*: no connection, or not yet; tried again and again.
 * - *open*: events flow.
 * - *silent*: the connection is open, but the server does not answer on it.
 * - *standing_by*: another instance does the work.
 */
export type SourceState = "connecting" | "open" | "silent" | "standing_by";

/**
 * - *connecting*: no connection, or not yet; tried again and again.
 * - *open*: events flow.
 * - *holding*: an event was refused, and what follows waits for it (`on_reject=stop`).
 * - *stalled*: connected, but nothing is acknowledged.
 */
export type UpstreamState = "connecting" | "open" | "holding" | "stalled";

/** `reason` says in one line why the state is not *open*, as far as it is known. */
export interface SourceCondition {
  readonly state: SourceState;
  readonly reason: string | undefined;
}

export interface UpstreamCondition {
  readonly state: UpstreamState;
  readonly reason: string | undefined;
}

export interface SourceStatus extends SourceCondition {
  /** `notify`, `outbox` or `wal SLOT`. */
  readonly name: string;
  readonly figures: SourceFigures;
  /** Events taken since the start, of every channel with a binding. */
  readonly received: ReadonlyArray<{ readonly channel: string; readonly events: number }>;
  /** Connections after the first. */
  readonly reconnects: number;
}

export interface UpstreamStatus extends UpstreamCondition {
  readonly name: string;
  readonly kind: string;
  /** Events sent and not answered. */
  readonly inFlightEvents: number;
  /** Events taken and not acknowledged, those in flight included; their payloads and what they cost beside. */
  readonly pendingEvents: number;
  readonly pendingBytes: number;
  readonly reconnects: number;
  /** Undefined where nothing is measured. */
  readonly meter: LaneMeter | undefined;
}

export interface BridgeStatus {
  readonly name: string;
  readonly sources: readonly SourceStatus[];
  readonly upstreams: readonly UpstreamStatus[];
}
