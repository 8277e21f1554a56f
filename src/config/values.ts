/** Reads and writes the text of one value by the type that the key table gives it. */

import { formatBridgeChannels, parseBridgeChannels } from "./bridge_channels.ts";
import type { Binding, ListenAddress, SlotConfig } from "./config.ts";
import type { KeySpec, Value } from "./keys.ts";
import { didYouMean } from "./nearest.ts";
import { parseHeaders } from "../core/message_headers.ts";
import { secretProblem } from "./webhook_secret.ts";
import { isUriReference, maskUri, postgresqlUriProblem } from "./uri.ts";
import { formatWal2jsonParams, parseWal2jsonParams } from "./wal2json_params.ts";

export type ParsedValue = { readonly value: Value } | { readonly problems: readonly string[] };

/** The problems show the value seen, unless it is secret, and what is allowed. */
export function parseValue(spec: KeySpec, text: string): ParsedValue {
  const shown = showValue(spec, text);
  // Nobody means one of these; in secrets they come from a file with more than one line.
  if (["\n", "\r", "\0"].some((control) => text.includes(control))) {
    return { problems: [`${shown} holds a line break or a NUL; write the value on one line`] };
  }
  switch (spec.type) {
    case "text":
      return { value: text };
    case "path":
    case "broker_uri":
      return { value: text.trim() };
    case "postgresql_uri": {
      const problem = postgresqlUriProblem(text.trim());
      return problem === undefined ? { value: text.trim() } : { problems: [`${shown} ${problem}`] };
    }
    case "slot_name":
      // ReplicationSlotValidateName in slot.c; longer names are cut or refused by the server.
      if (/^[a-z0-9_]{1,63}$/.test(text.trim())) return { value: text.trim() };
      return { problems: [`${shown} is no slot name; allowed: up to 63 lower-case letters, digits and underscores`] };
    case "wal2json_params": {
      const { params, problems } = parseWal2jsonParams(text);
      return problems.length === 0 ? { value: params } : { problems: problems.map((p) => `${shown}: ${p}`) };
    }
    case "bridge_channels": {
      const { bindings, problems } = parseBridgeChannels(text);
      return problems.length === 0 ? { value: bindings } : { problems };
    }
    case "uri_reference":
      if (isUriReference(text.trim())) return { value: text.trim() };
      return {
        problems: [`${shown} is no URI reference; wanted one like /databases/shop, other characters percent-encoded`],
      };
    case "webhook_secret": {
      const problem = secretProblem(text.trim());
      return problem === undefined ? { value: text.trim() } : { problems: [`${shown} ${problem}`] };
    }
    case "header_list": {
      const headers = parseHeaders(text);
      if (headers !== undefined) return { value: headers };
      return { problems: [`${shown} is no list of headers; wanted Name: value; Other: value`] };
    }
    case "boolean":
    case "integer":
    case "bytes":
    case "choice":
    case "listen":
      return parseScalar(spec, withoutComment(text));
  }
}

/** The manual writes `DELIVERY_MODE=1 # message delivery mode, …`; no value of these types holds a `#` or `;`. */
function withoutComment(text: string): string {
  return text.replace(/(?:^|\s)[#;].*$/, "").trim();
}

function parseScalar(spec: KeySpec, text: string): ParsedValue {
  const value = scalar(spec, text.toLowerCase());
  if (value !== undefined) return { value };
  const hint = spec.type === "choice" ? didYouMean(text, (spec.allowed ?? []).map(String)) : "";
  return { problems: [`${showValue(spec, text)} is not allowed; allowed: ${allowedText(spec)}${hint}`] };
}

function scalar(spec: KeySpec, text: string): Value | undefined {
  switch (spec.type) {
    case "boolean":
      return ({ true: true, yes: true, on: true, "1": true, false: false, no: false, off: false, "0": false } as Record<
        string,
        boolean | undefined
      >)[text];
    case "choice":
      return spec.allowed?.find((allowed) => String(allowed).toLowerCase() === text);
    case "integer":
      return /^\d{1,15}$/.test(text) ? inRange(spec, Number(text)) : undefined;
    case "bytes":
      return inRange(spec, parseBytes(text));
    case "listen":
      return parseListen(text);
    default:
      return undefined;
  }
}

function inRange(spec: KeySpec, value: number | undefined): number | undefined {
  if (value === undefined || value < (spec.min ?? 0) || value > (spec.max ?? Infinity)) return undefined;
  return value;
}

/** `8080`, `host:8080` or `[::1]:8080`. Nobody means all interfaces by leaving the host out, so that `:8080` is no address. */
function parseListen(text: string): ListenAddress | undefined {
  const match = /^(?:(?:\[([0-9a-f:.%]+)\]|([a-z0-9._-]+)):)?(\d{1,5})$/.exec(text);
  const port = Number(match?.[3] ?? Infinity);
  if (match === null || port > 65_535) return undefined;
  return { host: match[1] ?? match[2] ?? "127.0.0.1", port };
}

function formatListen({ host, port }: ListenAddress): string {
  return `${host.includes(":") ? `[${host}]` : host}:${port}`;
}

/** Powers of 1000 without an `i` and of 1024 with it (IEC 80000-13). */
const BYTE_UNITS = new Map([
  ["", 1],
  ["b", 1],
  ["kb", 1000],
  ["kib", 1024],
  ["mb", 1000 ** 2],
  ["mib", 1024 ** 2],
  ["gb", 1000 ** 3],
  ["gib", 1024 ** 3],
]);

function parseBytes(text: string): number | undefined {
  const match = /^(\d{1,15}(?:\.\d{1,3})?)\s*([a-z]*)$/.exec(text);
  const factor = BYTE_UNITS.get(match?.[2] ?? "?");
  if (match === null || factor === undefined) return undefined;
  const bytes = Number(match[1]) * factor;
  return Number.isInteger(bytes) ? bytes : undefined;
}

function formatBytes(bytes: number): string {
  for (const [unit, factor] of [["GiB", 1024 ** 3], ["MiB", 1024 ** 2], ["KiB", 1024]] as const) {
    if (bytes >= factor && bytes % factor === 0) return `${bytes / factor}${unit}`;
  }
  return String(bytes);
}

/** What may stand as the value, for errors and documentation. */
export function allowedText(spec: KeySpec): string {
  switch (spec.type) {
    case "choice":
      return (spec.allowed ?? []).join(", ");
    case "boolean":
      return "true, false";
    case "integer":
      return `${spec.min ?? 0} to ${spec.max ?? "any number"}`;
    case "bytes":
      return `a number of bytes, or one with a unit (64MiB, 64MB, 64kB), from ${spec.min ?? 0} to ${
        formatBytes(spec.max ?? Number.MAX_SAFE_INTEGER)
      }`;
    case "text":
      return "text";
    case "uri_reference":
      return "URI reference";
    case "webhook_secret":
      return "whsec_ and base64";
    case "header_list":
      return "Name: value; Other: value";
    case "path":
      return "path";
    case "broker_uri":
    case "postgresql_uri":
      return "URI";
    case "listen":
      return "a port (then of 127.0.0.1), host:port or [IPv6 address]:port; 0.0.0.0:port for every interface";
    case "slot_name":
      return "a-z, 0-9, _";
    case "wal2json_params":
      return `"name" 'value' , …`;
    case "bridge_channels":
      return "pgchannel->type:target, …";
  }
}

/** Text that parseValue reads as the same value; passwords masked. */
export function formatValue(spec: KeySpec, value: Value): string {
  if (spec.secret) return "***";
  switch (spec.type) {
    case "broker_uri":
    case "postgresql_uri":
      return maskUri(String(value));
    case "wal2json_params":
      return formatWal2jsonParams(value as SlotConfig["wal2jsonParams"]);
    case "bridge_channels":
      return formatBridgeChannels(value as readonly Binding[]);
    case "listen":
      return formatListen(value as ListenAddress);
    case "bytes":
      return formatBytes(Number(value));
    default:
      return String(value);
  }
}

/** The value in quotes, as far as it may be shown. */
export function showValue(spec: KeySpec, text: string): string {
  if (spec.secret) return "the value (secret, not shown)";
  const shown = spec.type === "broker_uri" || spec.type === "postgresql_uri" ? maskUri(text.trim()) : text;
  return JSON.stringify(shown.length > 200 ? `${shown.slice(0, 200)}…` : shown);
}
