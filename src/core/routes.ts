/** Which lanes take the events of which channel. */

import type { Event } from "./event.ts";
import type { Lane } from "./lane.ts";
import type { Completion, Sink } from "./source.ts";
import type { TargetTemplate } from "./target_template.ts";
import type { Target } from "./upstream.ts";

export interface RouteOptions {
  /** Where the target holds placeholders. */
  readonly template?: TargetTemplate | undefined;
  /** What the lane gets in place of the event. */
  readonly encode?: ((event: Event) => Event) | undefined;
}

interface Route {
  readonly lane: Lane;
  readonly target: Target;
  /** Undefined where the event goes as it is to a target that is fixed, which costs one comparison. */
  readonly options: RouteOptions | undefined;
}

interface Channel {
  readonly routes: Route[];
  /** Taken since the start. */
  events: number;
}

/** The sink of one source: the bindings of the lanes that it feeds, by channel. */
export class Routes implements Sink {
  readonly #byChannel = new Map<string, Channel>();
  readonly #lanes = new Set<Lane>();

  add(channel: string, lane: Lane, target: Target, options: RouteOptions = {}): void {
    const isPlain = options.template === undefined && options.encode === undefined;
    const route: Route = { lane, target, options: isPlain ? undefined : options };
    const known = this.#byChannel.get(channel);
    if (known === undefined) this.#byChannel.set(channel, { routes: [route], events: 0 });
    else known.routes.push(route);
    this.#lanes.add(lane);
  }

  get channels(): readonly string[] {
    return [...this.#byChannel.keys()];
  }

  /** How many events of each channel were taken since the start. */
  get received(): ReadonlyArray<{ readonly channel: string; readonly events: number }> {
    return [...this.#byChannel].map(([channel, { events }]) => ({ channel, events }));
  }

  accepts(channel: string): boolean {
    return this.#byChannel.has(channel);
  }

  emit(event: Event, completion: Completion): number {
    const channel = this.#byChannel.get(event.channel);
    if (channel === undefined) return 0;
    channel.events++;
    for (const { lane, target, options } of channel.routes) {
      if (options === undefined) lane.push(event, target, completion);
      else lane.push(options.encode?.(event) ?? event, options.template?.of(event) ?? target, completion);
    }
    return channel.routes.length;
  }

  get congested(): boolean {
    for (const lane of this.#lanes) if (lane.congested) return true;
    return false;
  }

  onRelief(resume: () => void): void {
    const again = () => {
      if (this.congested) this.onRelief(resume);
      else resume();
    };
    for (const lane of this.#lanes) {
      if (lane.congested) return lane.onRelief(again);
    }
    resume();
  }
}
