/** What no single key can tell: how the keys of an upstream go together, and how the slots of all of them do. */

import { WAL_CHANNEL } from "../core/event.ts";
import { errorText } from "../core/errors.ts";
import { bracedNames, PLACEHOLDERS, sampleTargetName, WAL_PLACEHOLDERS } from "../core/target_template.ts";
import { awsTargetProblem, isAwsKind, readAwsUri } from "./aws.ts";
import { formatBinding } from "./bridge_channels.ts";
import type { Binding, UpstreamConfig, UpstreamKind } from "./config.ts";
import { KEYS, type KeySpec, KINDS, type Value } from "./keys.ts";
import { didYouMean } from "./nearest.ts";
import type { SectionValues } from "./section_values.ts";
import type { ReadFile } from "./sections.ts";
import { TARGET_RULES } from "./target_rules.ts";
import { brokerUriProblem, maskUri, schemeOf, serversOf } from "./uri.ts";
import { formatWal2jsonParams } from "./wal2json_params.ts";

/** Adds one line per fault to `problems`; returns whether there was none. */
export function checkUpstream(
  kind: UpstreamKind,
  section: SectionValues,
  readFile: ReadFile,
  problems: string[],
): boolean {
  const before = problems.length;
  const report = (key: string, text: string) => {
    problems.push(`${section.label(key)}: ${text}`);
  };
  checkUri(kind, section, report);
  checkTls(kind, section, readFile, report);
  const bindings = section.values.get("bridge_channels");
  if (Array.isArray(bindings)) {
    (bindings as readonly Binding[]).forEach((binding, index) => {
      const problem = bindingProblem(kind, binding) ?? regionProblem(kind, binding, textOf(section.values, "uri"));
      if (problem !== undefined) {
        report("bridge_channels", `item ${index + 1} ${JSON.stringify(formatBinding(binding))}: ${problem}`);
      }
    });
  }
  if (kind === "mqtt") checkMqtt(section, report);
  if (section.isSet("previous_secret") && !section.isSet("secret")) {
    report("previous_secret", "is set without secret; set both, or secret alone");
  }
  return problems.length === before;
}

type Report = (key: string, text: string) => void;

function textOf(values: ReadonlyMap<string, Value>, key: string): string | undefined {
  const value = values.get(key);
  return typeof value === "string" ? value : undefined;
}

function checkUri(kind: UpstreamKind, section: SectionValues, report: Report): void {
  const uri = textOf(section.values, "uri");
  if (uri === undefined) return;
  const { schemes, tlsSchemes } = KINDS[kind];
  const problem = brokerUriProblem(uri, [...schemes, ...tlsSchemes]) ?? awsUriProblem(kind, uri);
  if (problem !== undefined) report("uri", `${JSON.stringify(maskUri(uri))} ${problem}`);
}

function awsUriProblem(kind: UpstreamKind, uri: string): string | undefined {
  const address = isAwsKind(kind) ? readAwsUri(uri) : undefined;
  return typeof address === "string" ? address : undefined;
}

function regionProblem(kind: UpstreamKind, { target }: Binding, uri: string | undefined): string | undefined {
  if (!isAwsKind(kind)) return undefined;
  const address = readAwsUri(uri ?? "");
  // An emulator may have topics of any region.
  if (typeof address === "string" || address.endpoint !== undefined) return undefined;
  return awsTargetProblem(kind, target.name, address.region);
}

const TLS_KEYS = (KEYS as readonly KeySpec[]).filter((spec) => spec.section === "upstream" && spec.tls === true);

function checkTls(kind: UpstreamKind, section: SectionValues, readFile: ReadFile, report: Report): void {
  const { values } = section;
  const scheme = schemeOf(textOf(values, "uri") ?? "");
  const { schemes, tlsSchemes } = KINDS[kind];
  for (const { name, type } of TLS_KEYS) {
    const value = values.get(name);
    if (value === undefined || value === false) continue;
    if (scheme !== undefined && schemes.includes(scheme)) {
      const remedy = `use ${tlsSchemes.map((tls) => `${tls}://`).join(" or ")} in uri, or remove the key`;
      report(name, `needs TLS, and ${scheme}:// has none; ${remedy}`);
    }
    if (type === "path") checkPem(name, String(value), readFile, report);
  }
  for (const [present, absent] of [["cert_file", "key_file"], ["key_file", "cert_file"]] as const) {
    if (section.isSet(present) && !section.isSet(absent)) report(present, `is set without ${absent}; set both or none`);
  }
}

function checkPem(key: string, path: string, readFile: ReadFile, report: Report): void {
  try {
    if (readFile(path).includes("-----BEGIN ")) return;
    report(key, `the file ${JSON.stringify(path)} holds no PEM block; wanted one that begins with -----BEGIN …`);
  } catch (error) {
    report(key, `the file ${JSON.stringify(path)} cannot be read: ${errorText(error)}; name an existing PEM file`);
  }
}

function bindingProblem(kind: UpstreamKind, { channel, target }: Binding): string | undefined {
  const { targetTypes } = KINDS[kind];
  if (!targetTypes.includes(target.type)) {
    const hint = didYouMean(target.type, targetTypes);
    return `the type "${target.type}" is not allowed for ${kind}; allowed: ${targetTypes.join(", ")}${hint}`;
  }
  const { clean, problem } = TARGET_RULES[kind];
  return placeholderProblem(channel, target.name) ?? problem(sampleTargetName(target, channel, clean), target.name);
}

function placeholderProblem(channel: string, name: string): string | undefined {
  for (const braced of bracedNames(name)) {
    const allowed = PLACEHOLDERS.filter((one) => channel === WAL_CHANNEL || !WAL_PLACEHOLDERS.includes(one));
    if ((allowed as readonly string[]).includes(braced)) continue;
    const text = allowed.map((one) => `{${one}}`).join(", ");
    if ((PLACEHOLDERS as readonly string[]).includes(braced)) {
      return `only events of the channel ${WAL_CHANNEL} have a {${braced}}; allowed here: ${text}`;
    }
    return `the placeholder {${braced}} is unknown; allowed: ${text}${didYouMean(braced, allowed)}`;
  }
  return undefined;
}

/** Packet identifiers, and so the unacknowledged messages of a session, are 16-bit (MQTT 3.1.1, section 2.3.1). */
const MAX_MQTT_IN_FLIGHT = 65_535;

function checkMqtt(section: SectionValues, report: Report): void {
  const { values } = section;
  const separator = textOf(values, "topic_separator") ?? "";
  if (/[+#]/.test(separator)) report("topic_separator", `${JSON.stringify(separator)} holds + or #; use another one`);
  const maxInFlight = values.get("max_in_flight");
  if (typeof maxInFlight === "number" && maxInFlight > MAX_MQTT_IN_FLIGHT) {
    report("max_in_flight", `"${maxInFlight}" is too much for mqtt; allowed: up to ${MAX_MQTT_IN_FLIGHT}`);
  }
  const uriHasUser = /^[a-z]+:\/\/[^/?#]*@/i.test(textOf(values, "uri") ?? "");
  if (uriHasUser && section.isSet("username")) {
    report("username", "is set, and uri holds a user as well; keep one of them");
  }
  // A password needs a user name in MQTT 3.1.1 ([MQTT-3.1.2-22]); mqtt.js would leave it out in silence.
  if (values.has("password") && !values.has("username") && !uriHasUser && values.get("protocol_version") === 4) {
    report("password", "is set without username; set both");
  }
}

/** An upstream and the slot that it would read the WAL from. */
export interface SlotUse {
  readonly bridge: string;
  /** `postgresql://…` of the bridge. */
  readonly uri: string;
  readonly upstream: UpstreamConfig;
  /** The key that the slot's name comes from, as the user wrote it. */
  readonly label: string;
}

/**
 * A slot has one reader at a time, and its name is unique in the server, not only in the database. Within a bridge
 * several upstreams share one reader, if they want the same of it.
 */
export function checkSlots(uses: readonly SlotUse[], problems: string[]): void {
  const readers = uses.filter(({ upstream }) => upstream.bindings.some((binding) => binding.channel === WAL_CHANNEL));
  readers.forEach((use, index) => {
    const other = readers.slice(0, index).find((earlier) => {
      return earlier.upstream.slot.name === use.upstream.slot.name && isSameServer(earlier.uri, use.uri);
    });
    if (other === undefined) return;
    const { name, wal2jsonParams } = use.upstream.slot;
    if (other.bridge !== use.bridge) {
      problems.push(
        `${use.label}: the slot "${name}" is also that of bridge ${other.bridge}, in the same server; ` +
          `give one of them another replication_slot`,
      );
    } else if (formatWal2jsonParams(wal2jsonParams) !== formatWal2jsonParams(other.upstream.slot.wal2jsonParams)) {
      problems.push(
        `${use.label}: the upstreams ${other.upstream.name} and ${use.upstream.name} read the slot "${name}" with ` +
          `different wal2json_params; give one of them another replication_slot, or both the same wal2json_params`,
      );
    }
  });
}

function isSameServer(a: string, b: string): boolean {
  const servers = new Set(serversOf(a));
  return serversOf(b).some((server) => servers.has(server));
}
