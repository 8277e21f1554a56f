/** Which lanes take the events of which channel. */

import type { Event } from "./event.ts";
import type { Lane } from "./lane.ts";
import type { Completion, Sink } from "./source.ts";
import type { TargetTemplate } from "./target_template.ts";
import type { Target } from "./upstream.ts";

interface Route {
  readonly lane: Lane;
  readonly target: Target;
  /** Where `target` holds placeholders. */
  readonly template: TargetTemplate | undefined;
}

/** The sink of one source: the bindings of the lanes that it feeds, by channel. */
export class Routes implements Sink {
  readonly #byChannel = new Map<string, Route[]>();
  readonly #lanes = new Set<Lane>();

  add(channel: string, lane: Lane, target: Target, template?: TargetTemplate): void {
    const route: Route = { lane, target, template };
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
    for (const { lane, target, template } of routes) {
      lane.push(event, template === undefined ? target : template.of(event), completion);
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
