/** Connects what the configuration binds to a lane with the routes of a source. */

import type { Binding, UpstreamConfig } from "../config/config.ts";
import { TARGET_RULES } from "../config/target_rules.ts";
import { structuredEvent } from "./cloudevents.ts";
import type { Event } from "./event.ts";
import type { Lane } from "./lane.ts";
import type { Routes } from "./routes.ts";
import { compileTarget, type TargetTemplate } from "./target_template.ts";
import type { Target } from "./upstream.ts";

/** Undefined for a target without placeholders. */
export function templateOf({ kind }: UpstreamConfig, target: Target): TargetTemplate | undefined {
  return compileTarget(target, TARGET_RULES[kind].clean);
}

/** The targets that are known before any event comes. */
export function fixedTargets(config: UpstreamConfig): Target[] {
  return config.bindings.map(({ target }) => target).filter((target) => templateOf(config, target) === undefined);
}

export function bind(routes: Routes, lane: Lane, config: UpstreamConfig, { channel, target }: Binding): void {
  routes.add(channel, lane, target, { template: templateOf(config, target), encode: encoderOf(config) });
}

/** Where the protocol has no place for the attributes of a CloudEvent, or the upstream puts several into one message. */
function encoderOf(config: UpstreamConfig): ((event: Event) => Event) | undefined {
  const { cloudEventsSource: source } = config;
  if (source === undefined || carriesAttributes(config)) return undefined;
  return (event) => structuredEvent(event, source);
}

/** Whether the upstream sends CloudEvents in binary mode, the attributes as headers, by itself. */
function carriesAttributes(config: UpstreamConfig): boolean {
  switch (config.kind) {
    case "amqp":
      return true;
    case "mqtt":
      return config.protocolVersion === 5;
    case "webhook":
      return config.batch === 1;
    default:
      return false;
  }
}
