/** What can be seen of the program from outside while it runs; read when somebody asks. */

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
}

export interface UpstreamStatus extends UpstreamCondition {
  readonly name: string;
  readonly kind: string;
}

export interface BridgeStatus {
  readonly name: string;
  readonly sources: readonly SourceStatus[];
  readonly upstreams: readonly UpstreamStatus[];
}
