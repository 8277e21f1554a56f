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

/** The sink of one source: the bindings of the lanes that it feeds, by channel. */
export class Routes implements Sink {
  readonly #byChannel = new Map<string, Route[]>();
  readonly #lanes = new Set<Lane>();

  add(channel: string, lane: Lane, target: Target, options: RouteOptions = {}): void {
    const isPlain = options.template === undefined && options.encode === undefined;
    const route: Route = { lane, target, options: isPlain ? undefined : options };
    const routes = this.#byChannel.get(channel);
    if (routes === undefined) this.#byChannel.set(channel, [route]);
    else routes.push(route);
    this.#lanes.add(lane);
  }

  get channels(): readonly string[] {
    return [...this.#byChannel.keys()];
  }

  accepts(channel: string): boolean {
    return this.#byChannel.has(channel);
  }

  emit(event: Event, completion: Completion): number {
    const routes = this.#byChannel.get(event.channel);
    if (routes === undefined) return 0;
    for (const { lane, target, options } of routes) {
      if (options === undefined) lane.push(event, target, completion);
      else lane.push(options.encode?.(event) ?? event, options.template?.of(event) ?? target, completion);
    }
    return routes.length;
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
