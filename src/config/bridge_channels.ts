/** `bridge_channels`: a comma-separated list of `pgchannel->type:target`. */

import { Buffer } from "node:buffer";
import type { Binding } from "./config.ts";

/** PostgreSQL cuts identifiers, channel names among them, to NAMEDATALEN - 1 bytes (pg_config_manual.h). */
const MAX_CHANNEL_BYTES = 63;

export interface ParsedBindings {
  readonly bindings: readonly Binding[];
  /** One line per faulty item, naming it. */
  readonly problems: readonly string[];
}

/**
 * Reads the list. The target starts after the first `:` and may hold more of them (an ARN does). Which types a kind of
 * upstream takes, and what it allows in a name, is not checked here.
 */
export function parseBridgeChannels(text: string): ParsedBindings {
  if (text.trim() === "") return { bindings: [], problems: ["the list is empty; wanted pgchannel->type:target, …"] };
  const bindings: Binding[] = [];
  const problems: string[] = [];
  const seen = new Map<string, number>();
  text.split(",").forEach((raw, index) => {
    const item = `item ${index + 1} ${JSON.stringify(raw.trim())}`;
    const result = parseItem(raw.trim());
    if (typeof result === "string") {
      problems.push(`${item}: ${result}`);
      return;
    }
    const canonical = formatBinding(result);
    const first = seen.get(canonical);
    if (first !== undefined) {
      problems.push(`${item}: the same as item ${first}; remove one of them`);
      return;
    }
    seen.set(canonical, index + 1);
    bindings.push(result);
  });
  return { bindings, problems };
}

function parseItem(item: string): Binding | string {
  if (item === "") return "is empty; remove the comma too many, or write pgchannel->type:target";
  // Values are not searched for comments, so that they may hold # and ;. Here such a text can only be one.
  if (/\s[#;]/.test(item)) return "holds a comment; comments stand on a line of their own";
  const arrow = item.indexOf("->");
  if (arrow < 0) return "has no ->; wanted pgchannel->type:target";
  const channel = item.slice(0, arrow).trim();
  const target = item.slice(arrow + 2).trim();
  if (channel === "") return "has no channel before ->; wanted pgchannel->type:target";
  const channelBytes = Buffer.byteLength(channel);
  if (channelBytes > MAX_CHANNEL_BYTES) {
    return `the channel name has ${channelBytes} bytes; PostgreSQL allows ${MAX_CHANNEL_BYTES}`;
  }
  const colon = target.indexOf(":");
  if (colon < 0) return "has no : in the target; wanted pgchannel->type:target";
  const type = target.slice(0, colon).trim();
  const name = target.slice(colon + 1).trim();
  if (type === "") return "has no type before the :; wanted pgchannel->type:target";
  if (name === "") return "has no name after the :; wanted pgchannel->type:target";
  return { channel, target: { type, name } };
}

export function formatBinding(binding: Binding): string {
  return `${binding.channel}->${binding.target.type}:${binding.target.name}`;
}

/** Text that parseBridgeChannels reads as the same list. */
export function formatBridgeChannels(bindings: readonly Binding[]): string {
  return bindings.map(formatBinding).join(", ");
}
