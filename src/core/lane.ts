/** The way to one upstream: an ordered window of deliveries, sent again after a reconnect. */

import type { Logger } from "../log.ts";
import { aborted, Backoff, sleep, STABLE_MS, unlessAborted } from "./backoff.ts";
import { ChannelRejectedError, errorText, PermanentError, SilentEndError } from "./errors.ts";
import type { Event } from "./event.ts";
import type { LaneMeter } from "./lane_meter.ts";
import { OutageLog } from "./outage_log.ts";
import { StallWatch } from "./stall_watch.ts";
import type { Completion } from "./source.ts";
import type { UpstreamCondition } from "./status.ts";
import type { Delivery, Session, Target, Upstream } from "./upstream.ts";

/** What a waiting event costs besides its payload, in bytes: the objects around it, as measured under Bun. */
const EVENT_OVERHEAD_BYTES = 400;

/** Reading further ahead than this many windows only costs memory: the source can go on long before they are used up. */
const WINDOWS_AHEAD = 2;
/** Even a window of one is worth a chunk of the source's socket. */
const MIN_UNSETTLED = 1000;

/** After this many sessions in a row that the upstream ended without one acknowledgement, events are sent one at a time. */
const FRUITLESS_SESSIONS = 3;
/** A network that fails, or a broker that crashes again and again, must not pass for a refusal: that takes this long. */
const SILENT_REFUSAL_MS = 30_000;

export interface LaneOptions {
  readonly upstream: Upstream;
  readonly targets: readonly Target[];
  /** The lane is congested from this many bytes on (payloads plus overhead, not yet acknowledged). */
  readonly maxInFlightBytes: number;
  readonly onReject: "stop" | "drop";
  /** For how long the upstream must have ended every session over an event without a word, in ms; default 30,000. */
  readonly silentRefusalMs?: number;
  readonly log: Logger;
  /** Undefined where nobody asks. */
  readonly meter?: LaneMeter | undefined;
  /** Whether each delivery has a line in the log; changes at run time. */
  readonly eventLog?: EventLog;
  /** Called whenever `ready` may have changed. */
  onChange(): void;
}

export interface EventLog {
  readonly enabled: boolean;
}

const NO_EVENT_LOG: EventLog = { enabled: false };

/** Monotonic counts since the start. */
export interface LaneCounts {
  delivered: number;
  resent: number;
  dropped: number;
  connections: number;
}

class LaneDelivery implements Delivery {
  readonly event: Event;
  readonly target: Target;
  readonly completion: Completion;
  readonly #lane: Lane;
  /** The session that has it; undefined while it waits. */
  session: Session | undefined;
  settled = false;
  sentBefore = false;

  constructor(lane: Lane, event: Event, target: Target, completion: Completion) {
    this.#lane = lane;
    this.event = event;
    this.target = target;
    this.completion = completion;
  }

  acknowledge(session: Session): void {
    if (this.session === session) this.#lane.acknowledged(this);
  }

  refuse(session: Session, reason: string): void {
    if (this.session === session) this.#lane.refused(this, reason);
  }
}

/**
 * Owns the order, the window and the resending of one upstream. Its states:
 *
 * - *connecting*: no session; deliveries wait.
 * - *open*: up to `maxInFlight` deliveries are with the session.
 * - *probing*: as open, but one at a time, because the last sessions ended over an event that is not known yet.
 * - *holding*: an event was refused and `on_reject` is `stop`: nothing new is sent; once the rest of the window is
 *   answered, the refused event is tried again after a pause, then what follows, one at a time.
 * - *closed*: after `close`.
 */
export class Lane {
  readonly #options: LaneOptions;
  readonly #maxInFlight: number;
  readonly #maxUnsettled: number;
  readonly #outage: OutageLog;
  readonly #log: Logger;
  readonly #meter: LaneMeter | undefined;
  readonly #eventLog: EventLog;
  readonly counts: LaneCounts = { delivered: 0, resent: 0, dropped: 0, connections: 0 };

  /** `[#head, #sent)` are with the session or settled out of turn, `[#sent, length)` wait. */
  #queue: (LaneDelivery | undefined)[] = [];
  #head = 0;
  #sent = 0;
  #inFlight = 0;
  /** Deliveries taken and not settled. */
  #unsettled = 0;
  #bytes = 0;

  #session: Session | undefined;
  #pumpScheduled = false;
  #probing = 0;
  #fruitlessSessions = 0;
  #fruitlessSinceMs: number | undefined;
  #acknowledgedInSession = 0;
  #held: { reason: string } | undefined;
  readonly #holdBackoff = new Backoff(500, 10_000);
  readonly #holdOutage: OutageLog;
  readonly #stallWatch: StallWatch;
  #closed = false;
  #congested = false;
  #signal: AbortSignal | undefined;

  #reliefListeners: (() => void)[] = [];
  #emptyListeners: (() => void)[] = [];

  constructor(options: LaneOptions) {
    this.#options = options;
    this.#maxInFlight = options.upstream.maxInFlight;
    this.#maxUnsettled = Math.max(MIN_UNSETTLED, WINDOWS_AHEAD * this.#maxInFlight);
    this.#log = options.log;
    this.#meter = options.meter;
    this.#eventLog = options.eventLog ?? NO_EVENT_LOG;
    this.#outage = new OutageLog(options.log, this.name);
    this.#holdOutage = new OutageLog(options.log, `delivery to ${this.name}`);
    this.#stallWatch = new StallWatch(options.log, this.name, () => ({
      inFlight: this.#inFlight,
      answered: this.counts.delivered + this.counts.dropped,
    }));
  }

  get name(): string {
    return `${this.#options.upstream.kind} upstream "${this.#options.upstream.name}"`;
  }

  /** Whether a session is open, acknowledges what it is given, and no refused event holds it up. */
  get ready(): boolean {
    return this.condition.state === "open";
  }

  get condition(): UpstreamCondition {
    if (this.#session === undefined) return { state: "connecting", reason: this.#outage.reason };
    if (this.#held !== undefined) return { state: "holding", reason: this.#holdOutage.reason };
    if (this.#stallWatch.stalled) return { state: "stalled", reason: this.#stallWatch.reason };
    return { state: "open", reason: undefined };
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  get waiting(): number {
    return this.#queue.length - this.#head;
  }

  /** Taken and not settled. */
  get unsettled(): number {
    return this.#unsettled;
  }

  get meter(): LaneMeter | undefined {
    return this.#meter;
  }

  get bytes(): number {
    return this.#bytes;
  }

  /** Set when a bound is reached, cleared when a quarter of both is free again. */
  get congested(): boolean {
    return this.#congested;
  }

  #isBeyond(part: number): boolean {
    return this.#bytes >= this.#options.maxInFlightBytes * part || this.#unsettled >= this.#maxUnsettled * part;
  }

  onRelief(listener: () => void): void {
    this.#reliefListeners.push(listener);
  }

  push(event: Event, target: Target, completion: Completion): void {
    completion.retain();
    this.#queue.push(new LaneDelivery(this, event, target, completion));
    this.#unsettled++;
    this.#bytes += sizeOf(event);
    if (this.#isBeyond(1)) this.#congested = true;
    this.#schedulePump();
  }

  /**
   * Connects, and connects again whenever the connection is lost, until `signal` aborts. `onFirstAttempt` is called
   * after the first attempt, whether it succeeded or met a passing fault; a permanent fault at the first attempt is
   * thrown.
   */
  async run(signal: AbortSignal, onFirstAttempt: () => void): Promise<void> {
    const backoff = new Backoff();
    let hadSession = false;
    this.#signal = signal;
    while (!signal.aborted) {
      try {
        const { lost } = await this.#open(signal);
        const openedAtMs = Date.now();
        hadSession = true;
        onFirstAttempt();
        this.#stallWatch.start();
        const cause = await unlessAborted(lost, signal);
        this.#stallWatch.stop();
        if (cause === undefined) return;
        // An upstream that takes logins and ends every session at once must not be called ten times a second.
        if (this.#acknowledgedInSession > 0 || Date.now() - openedAtMs >= STABLE_MS) backoff.reset();
        this.#lost(cause);
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof PermanentError && !hadSession) throw error;
        this.#outage.failed(error);
        onFirstAttempt();
      }
      await sleep(backoff.nextMs(), signal);
    }
  }

  /** Resolves when every delivery is settled, or when `signal` aborts. */
  drained(signal: AbortSignal): Promise<void> {
    if (this.waiting === 0) return Promise.resolve();
    return Promise.race([new Promise<void>((resolve) => this.#emptyListeners.push(resolve)), aborted(signal)]);
  }

  /** Ends the session. What is not acknowledged stays so. */
  async close(deadlineMs: number): Promise<void> {
    this.#closed = true;
    const session = this.#session;
    this.#session = undefined;
    await session?.close(deadlineMs);
  }

  async #open(signal: AbortSignal): Promise<{ lost: Promise<Error> }> {
    const { promise: lost, resolve } = Promise.withResolvers<Error>();
    let ended = false;
    const onLost = (cause: Error) => {
      ended = true;
      this.#session = undefined;
      this.#options.onChange();
      resolve(cause);
    };
    const session = await this.#options.upstream.connect(this.#options.targets, onLost, signal);
    if (signal.aborted || this.#closed) {
      await session.close(0);
      throw new Error("stopped while connecting");
    }
    this.#acknowledgedInSession = 0;
    this.counts.connections++;
    if (ended) return { lost };
    this.#session = session;
    this.#options.onChange();
    const again = this.#countUnsettled();
    this.#outage.recovered(`${again} events are sent again or wait`);
    this.#schedulePump();
    return { lost };
  }

  #countUnsettled(): number {
    let count = 0;
    for (let i = this.#head; i < this.#queue.length; i++) if (!this.#queue[i]!.settled) count++;
    return count;
  }

  #lost(cause: Error): void {
    this.#outage.failed(cause);
    this.#suspect(cause);
    this.#rewind();
  }

  /** Decides whether an event may be the reason for the loss, so that the next session has to find out which. */
  #suspect(cause: Error): void {
    if (this.#acknowledgedInSession > 0 || this.#inFlight === 0) {
      this.#fruitlessSessions = 0;
    } else if (cause instanceof SilentEndError) {
      this.#fruitlessSessions++;
      this.#fruitlessSinceMs ??= Date.now();
    }
    const blamesEvent = cause instanceof ChannelRejectedError ||
      (cause instanceof SilentEndError && this.#fruitlessSessions >= FRUITLESS_SESSIONS);
    if (!blamesEvent) return;
    const alone = this.#inFlight === 1 ? this.#firstUnanswered() : undefined;
    if (alone === undefined) {
      this.#probing = Math.max(this.#probing, this.#inFlight);
      this.#fruitlessSessions = 0;
    } else if (cause instanceof ChannelRejectedError || (this.#probing > 0 && this.#isSilentlyRefused())) {
      this.#probing = Math.max(this.#probing, 1);
      this.#fruitlessSessions = 0;
      this.#fruitlessSinceMs = undefined;
      this.refused(alone, errorText(cause));
    } else if (this.#probing === 0) {
      this.#probing = 1;
      this.#fruitlessSessions = 0;
    }
  }

  #isSilentlyRefused(): boolean {
    const { silentRefusalMs = SILENT_REFUSAL_MS } = this.#options;
    return this.#fruitlessSinceMs !== undefined && Date.now() - this.#fruitlessSinceMs >= silentRefusalMs;
  }

  #firstUnanswered(): LaneDelivery | undefined {
    for (let i = this.#head; i < this.#sent; i++) if (this.#queue[i]!.session !== undefined) return this.#queue[i];
    return undefined;
  }

  /** Makes everything that is not settled wait again, in its old order. */
  #rewind(): void {
    const waiting: LaneDelivery[] = [];
    for (let i = this.#head; i < this.#queue.length; i++) {
      const delivery = this.#queue[i]!;
      delivery.session = undefined;
      if (!delivery.settled) waiting.push(delivery);
    }
    this.#queue = waiting;
    this.#head = 0;
    this.#sent = 0;
    this.#inFlight = 0;
    this.#windowAnswered();
    if (waiting.length === 0) this.#notifyEmpty();
  }

  #schedulePump(): void {
    if (this.#pumpScheduled) return;
    this.#pumpScheduled = true;
    queueMicrotask(() => {
      this.#pumpScheduled = false;
      this.#pump();
    });
  }

  /** Whether the next delivery may go to `session`; `publish` itself may refuse an event or lose the session. */
  #maySend(session: Session): boolean {
    const window = this.#probing > 0 ? 1 : this.#maxInFlight;
    return this.#session === session && this.#held === undefined && this.#inFlight < window &&
      this.#sent < this.#queue.length;
  }

  #pump(): void {
    const session = this.#session;
    if (session === undefined || this.#signal?.aborted) return;
    let published = false;
    while (this.#maySend(session)) {
      const delivery = this.#queue[this.#sent++]!;
      delivery.session = session;
      if (delivery.sentBefore) {
        this.counts.resent++;
        this.#meter?.resent(delivery.event);
      }
      delivery.sentBefore = true;
      this.#inFlight++;
      session.publish(delivery);
      published = true;
    }
    if (published && this.#session === session) session.flush();
  }

  /** Called by a delivery whose session reports the upstream's acknowledgement. */
  acknowledged(delivery: LaneDelivery): void {
    this.counts.delivered++;
    if (this.#meter !== undefined) this.#meter.delivered(delivery.event, delivery.completion);
    if (this.#eventLog.enabled) this.#logDelivery(delivery);
    this.#acknowledgedInSession++;
    this.#fruitlessSessions = 0;
    this.#fruitlessSinceMs = undefined;
    if (this.#holdOutage.ongoing && this.#held === undefined) {
      this.#holdOutage.recovered();
      this.#holdBackoff.reset();
    }
    this.#settle(delivery);
  }

  #logDelivery({ event, target }: LaneDelivery): void {
    this.#log.debug("delivered event {id} of channel {channel} to {target}: {bytes} bytes", {
      id: event.id,
      channel: event.channel,
      target: `${target.type}:${target.name}`,
      bytes: event.payload.length,
    });
  }

  /** Called by a delivery whose session reports a refusal, and for an event found to end every session. */
  refused(delivery: LaneDelivery, reason: string): void {
    if (this.#options.onReject === "drop") {
      this.counts.dropped++;
      this.#meter?.dropped(delivery.event);
      this.#log.error("{upstream} refused event {id} for {target}: {reason}; dropped, as on_reject=drop says", {
        upstream: this.name,
        id: delivery.event.id,
        target: `${delivery.target.type}:${delivery.target.name}`,
        reason,
      });
      this.#settle(delivery);
      return;
    }
    this.#holdOutage.failed(
      `event ${delivery.event.id} for ${delivery.target.type}:${delivery.target.name} was refused: ${reason}; it is held ` +
        "and tried again (on_reject=stop), and nothing overtakes it",
    );
    this.#probing = Math.max(this.#probing, this.#inFlight);
    this.#inFlight--;
    delivery.session = undefined;
    if (this.#held === undefined) void this.#hold(reason);
    else if (this.#inFlight === 0) this.#windowAnswered();
  }

  #windowAnswered: () => void = () => {};

  /** Waits until the window is answered, then for a pause, and lets the refused event go again, ahead of all others. */
  async #hold(reason: string): Promise<void> {
    this.#held = { reason };
    this.#options.onChange();
    const session = this.#session;
    if (this.#inFlight > 0) await new Promise<void>((resolve) => this.#windowAnswered = resolve);
    await sleep(this.#holdBackoff.nextMs(), this.#signal);
    if (this.#signal?.aborted) return;
    this.#held = undefined;
    this.#options.onChange();
    if (this.#session === session && session !== undefined) this.#rewind();
    this.#schedulePump();
  }

  #settle(delivery: LaneDelivery): void {
    delivery.settled = true;
    if (delivery.session !== undefined) {
      delivery.session = undefined;
      this.#inFlight--;
    }
    if (this.#probing > 0) this.#probing--;
    this.#unsettled--;
    this.#bytes -= sizeOf(delivery.event);
    while (this.#head < this.#sent && this.#queue[this.#head]!.settled) this.#queue[this.#head++] = undefined;
    this.#forgetSettled();
    delivery.completion.release();
    if (this.#congested && !this.#isBeyond(0.75)) this.#notifyRelief();
    if (this.#held !== undefined && this.#inFlight === 0) this.#windowAnswered();
    if (this.#sent < this.#queue.length) this.#schedulePump();
    if (this.#head === this.#queue.length) this.#notifyEmpty();
  }

  #forgetSettled(): void {
    if (this.#head === this.#queue.length) {
      this.#queue.length = 0;
    } else if (this.#head > 4096 && this.#head * 2 > this.#queue.length) {
      this.#queue.splice(0, this.#head);
      this.#sent -= this.#head;
      this.#head = 0;
      return;
    } else {
      return;
    }
    this.#head = 0;
    this.#sent = 0;
  }

  #notifyRelief(): void {
    this.#congested = false;
    const listeners = this.#reliefListeners;
    this.#reliefListeners = [];
    for (const listener of listeners) listener();
  }

  #notifyEmpty(): void {
    const listeners = this.#emptyListeners;
    this.#emptyListeners = [];
    for (const listener of listeners) listener();
  }
}

function sizeOf(event: Event): number {
  return event.payload.length + EVENT_OVERHEAD_BYTES;
}
