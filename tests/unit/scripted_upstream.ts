/** An upstream that does what a test tells it, and a lane on it: for the lane's own logic, not for that of any broker. */

import { until } from "../support/wait.ts";
import type { Event } from "../../src/core/event.ts";
import { Lane, type LaneOptions } from "../../src/core/lane.ts";
import type { Completion } from "../../src/core/source.ts";
import type { Delivery, Session, Target, Upstream } from "../../src/core/upstream.ts";
import { LogRecorder } from "./log_recorder.ts";

export const TARGET: Target = { type: "topic", name: "t" };

export class ScriptedSession implements Session {
  readonly #upstream: ScriptedUpstream;
  readonly #onLost: (cause: Error) => void;
  /** Everything that was published in this session, in order. */
  readonly published: Delivery[] = [];
  readonly unanswered = new Set<Delivery>();
  flushes = 0;
  flushed = 0;
  closed = false;
  lost = false;

  constructor(upstream: ScriptedUpstream, onLost: (cause: Error) => void) {
    this.#upstream = upstream;
    this.#onLost = onLost;
  }

  get ids(): string[] {
    return this.published.map((delivery) => delivery.event.id);
  }

  get unansweredIds(): string[] {
    return [...this.unanswered].map((delivery) => delivery.event.id);
  }

  publish(delivery: Delivery): void {
    const { breaches, maxInFlight } = this.#upstream;
    if (this.lost || this.closed) breaches.push(`${delivery.event.id} was published after the end`);
    if (this.unanswered.size >= maxInFlight) breaches.push(`${delivery.event.id} was published beyond the window`);
    this.#upstream.onBeforePublish(delivery, this);
    this.published.push(delivery);
    this.unanswered.add(delivery);
    this.#upstream.onPublish(delivery, this);
  }

  flush(): void {
    if (this.lost || this.closed) this.#upstream.breaches.push("flushed after the end");
    this.flushes++;
    this.flushed = this.published.length;
  }

  close(): Promise<void> {
    this.closed = true;
    return Promise.resolve();
  }

  acknowledge(...ids: string[]): void {
    for (const id of ids) this.#take(id).acknowledge(this);
  }

  acknowledgeAll(): void {
    this.acknowledge(...this.unansweredIds);
  }

  refuse(id: string, reason = "it is too large"): void {
    this.#take(id).refuse(this, reason);
  }

  lose(cause: Error = new Error("connection reset")): void {
    this.lost = true;
    this.#onLost(cause);
  }

  #take(id: string): Delivery {
    for (const delivery of this.unanswered) {
      if (delivery.event.id !== id) continue;
      this.unanswered.delete(delivery);
      return delivery;
    }
    throw new Error(`"${id}" is not with the session; it has ${this.unansweredIds.join(", ")}`);
  }
}

export class ScriptedUpstream implements Upstream {
  readonly name = "scripted";
  readonly kind = "test";
  readonly maxInFlight: number;
  readonly sessions: ScriptedSession[] = [];
  /** What the lane did against the contract of Session. */
  readonly breaches: string[] = [];
  /** What the next attempts throw, in turn; then they succeed. */
  readonly connectErrors: Error[] = [];
  attempts = 0;
  /** Awaited before a session is handed out. */
  gate: Promise<void> = Promise.resolve();
  /** Called for each new session, before the lane has it. */
  onConnect: (session: ScriptedSession) => void = () => {};
  onBeforePublish: (delivery: Delivery, session: ScriptedSession) => void = () => {};
  onPublish: (delivery: Delivery, session: ScriptedSession) => void = () => {};

  constructor(maxInFlight: number) {
    this.maxInFlight = maxInFlight;
  }

  async connect(_targets: readonly Target[], onLost: (cause: Error) => void): Promise<Session> {
    this.attempts++;
    const error = this.connectErrors.shift();
    await this.gate;
    if (error !== undefined) throw error;
    const session = new ScriptedSession(this, onLost);
    this.sessions.push(session);
    this.onConnect(session);
    return session;
  }
}

export function makeEvent(id: string, bytes = 10): Event {
  return {
    id,
    type: "notify",
    channel: "c",
    routingKey: "",
    payload: new Uint8Array(bytes),
    json: false,
    receivedAtMs: 0,
  };
}

/** Counts what lanes hold of one event. */
export class CountedCompletion implements Completion {
  retained = 0;
  released = 0;

  retain(): void {
    this.retained++;
  }

  release(): void {
    this.released++;
  }
}

export interface HarnessOptions
  extends Partial<Pick<LaneOptions, "maxInFlightBytes" | "onReject" | "silentRefusalMs">> {
  readonly maxInFlight?: number;
}

/** A lane that runs on a scripted upstream. */
export class LaneHarness {
  readonly upstream: ScriptedUpstream;
  readonly lane: Lane;
  readonly log = new LogRecorder();
  readonly completions = new Map<string, CountedCompletion>();
  readonly #stop = new AbortController();
  readonly attempted = Promise.withResolvers<void>();
  /** Values of `ready` at each call of `onChange`. */
  readonly readiness: boolean[] = [];
  #running: Promise<void> = Promise.resolve();

  constructor(
    { maxInFlight = 3, maxInFlightBytes = 1e9, onReject = "stop", silentRefusalMs = 30_000 }: HarnessOptions = {},
  ) {
    this.upstream = new ScriptedUpstream(maxInFlight);
    this.lane = new Lane({
      upstream: this.upstream,
      targets: [TARGET],
      maxInFlightBytes,
      onReject,
      silentRefusalMs,
      log: this.log.logger,
      onChange: () => this.readiness.push(this.lane.ready),
    });
  }

  run(): Promise<void> {
    this.#running = this.lane.run(this.#stop.signal, () => this.attempted.resolve());
    return this.#running;
  }

  push(...ids: string[]): void {
    for (const id of ids) {
      const completion = new CountedCompletion();
      this.completions.set(id, completion);
      this.lane.push(makeEvent(id), TARGET, completion);
    }
  }

  /** Waits for the nth session, counted from 1. */
  session(number: number): Promise<ScriptedSession> {
    return until(() => this.upstream.sessions[number - 1], { what: `session ${number}`, intervalMs: 1 });
  }

  /** Waits until the session holds exactly these, flushed. */
  async unanswered(session: ScriptedSession, ...ids: string[]): Promise<void> {
    await until(() => session.unansweredIds.join() === ids.join() && session.flushed === session.published.length, {
      what: () => `${ids.join()} to be with the session, which holds ${session.unansweredIds.join()}`,
      intervalMs: 1,
    });
  }

  get released(): string[] {
    return [...this.completions].filter(([, { released }]) => released > 0).map(([id]) => id);
  }

  abort(): void {
    this.#stop.abort();
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#running;
    await this.lane.close(0);
  }
}

/** Lets everything that is due run: microtasks, and timers that were hurried. */
export function settle(): Promise<void> {
  return new Promise((resolve) => setImmediate(() => setImmediate(resolve)));
}
