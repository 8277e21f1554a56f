/** The contract between a lane, which owns order, window and resending, and a kind of upstream, which owns a protocol. */

import type { Event } from "./event.ts";

/** Where in an upstream an event goes: `exchange:amq.topic` is `{ type: "exchange", name: "amq.topic" }`. */
export interface Target {
  readonly type: string;
  readonly name: string;
  /**
   * Its placeholders were filled in from the event (target_template.ts): `connect` has never seen it, and nothing is added
   * to its name.
   */
  readonly filledIn?: true;
}

/**
 * One event on its way to one upstream. The session that was given it calls exactly one of `acknowledge` and `refuse`,
 * once; calls by a session that the lane has since left are ignored.
 */
export interface Delivery {
  readonly event: Event;
  readonly target: Target;
  /** The upstream has taken responsibility: publisher confirm, PUBACK or PUBCOMP, reply, 2xx. */
  acknowledge(session: Session): void;
  /** The upstream has refused this one event for good, while the connection lives on. `reason` is one line. */
  refuse(session: Session, reason: string): void;
}

/** One kind of upstream with its configuration; makes sessions. Knows nothing of LSNs, other upstreams or retries. */
export interface Upstream {
  readonly name: string;
  readonly kind: string;
  /** The most deliveries that a session may hold unanswered. */
  readonly maxInFlight: number;
  /**
   * Opens one connection, logs in and checks every target of `targets` as far as the protocol allows. Targets with
   * placeholders are not among them.
   *
   * `onLost` is called once when the connection ends other than by `close` or `abort`; the deliveries it held are then
   * sent again on the next session. After `onLost` the session must not be used.
   *
   * Throws PermanentError for what no retry mends (login refused, missing exchange), with the remedy; anything else that
   * it throws is retried with backoff. Must give up, and free what it opened, when `signal` aborts.
   */
  connect(targets: readonly Target[], onLost: (cause: Error) => void, signal: AbortSignal): Promise<Session>;
}

/** Whether a target may be published to. */
export type Permission =
  | { readonly kind: "allowed" }
  | { readonly kind: "refused"; readonly reason: string; readonly remedy: string }
  /** The server would not say. */
  | { readonly kind: "unknown"; readonly reason: string };

/** One connection to an upstream. */
export interface Session {
  /**
   * Sends one delivery. Never throws and never waits: a fault is reported by `delivery.refuse` or by `onLost`. May keep
   * the message in memory until `flush`. Messages must reach the upstream in the order of the calls. At most
   * `maxInFlight` deliveries are unanswered at any time.
   */
  publish(delivery: Delivery): void;
  /** Called after a run of `publish` calls: what was published must now be on its way, in as few writes as possible. */
  flush(): void;
  /**
   * Ends the connection in the protocol's own way. Called when every delivery is answered, or when waiting for the
   * answers was given up. Resolves within `deadlineMs`, by force if need be.
   */
  close(deadlineMs: number): Promise<void>;
  /**
   * For the command `check`: asks whether an event with this routing key may be published to `target`, in such a way that no
   * consumer sees anything. Absent where the protocol has no way to ask. Rejects when the connection is lost.
   */
  askPermission?(target: Target, routingKey: string): Promise<Permission>;
  /**
   * For the command `check`: publishes `event` and tells whether it went to anybody. Absent where the protocol does not
   * tell: it is then published as any other. Rejects, with the reason, when it is refused or the connection is lost.
   */
  publishAndTell?(event: Event, target: Target): Promise<boolean>;
}
