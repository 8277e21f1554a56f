/** Reads the values of one section by the key table: text to value, defaults, missing and misplaced keys. */

import type { UpstreamKind } from "./config.ts";
import {
  appliesTo,
  keysOf,
  type KeySpec,
  KIND_NAMES,
  KINDS,
  type NamedKey,
  type SectionType,
  type Value,
} from "./keys.ts";
import { nameLike, type Place, placeText, sectionPath } from "./names.ts";
import type { Section, Setting } from "./sections.ts";
import { allowedText, parseValue } from "./values.ts";

/** One effective value and where it came from. */
export interface Origin {
  readonly key: NamedKey;
  readonly value: Value;
  /** Undefined for a default. */
  readonly setting: Setting | undefined;
}

export interface SectionOrigins {
  /** As the section's header in the ini file: `local.upstream_config`. */
  readonly path: string;
  readonly origins: readonly Origin[];
}

export interface SectionValues {
  /** By the names of the table, whatever the form. Without what is missing, wrong, or not of this kind. */
  readonly values: ReadonlyMap<string, Value>;
  /** Whether nothing is missing or wrong: then `values` holds all that the table promises. */
  readonly isComplete: boolean;
  readonly origins: SectionOrigins;
  /** The name of a key as the user wrote it, or would write it. */
  label(name: string): string;
  /** Whether the user wrote the key. */
  isSet(name: string): boolean;
}

export interface SectionRequest {
  /** Undefined where nothing was written into it. */
  readonly section: Section | undefined;
  readonly type: SectionType;
  readonly name: string;
  /** A section whose way of writing names is followed where this one has none. */
  readonly sibling?: Section | undefined;
  /** The kind of the upstream where it stands in another section. */
  readonly kind?: UpstreamKind | undefined;
}

const NOWHERE: Place = { from: "environment", variable: "PGPROXY_-" };

export function readSection(request: SectionRequest, problems: string[]): SectionValues {
  const { section, type, name } = request;
  const path = sectionPath(type, name);
  const place = (section ?? request.sibling)?.firstPlace ?? NOWHERE;
  const table = keysOf(type);
  const label = (wanted: string) => {
    const written = table.find(({ spec }) => spec.name === wanted)?.name ?? wanted;
    const setting = section?.settings.get(written);
    return setting === undefined ? nameLike(place, path, written) : placeText(setting.place);
  };
  const isSet = (wanted: string) =>
    table.some((key) => key.spec.name === wanted && section?.settings.has(key.name) === true);
  const kind = request.kind ?? (type === "upstream" ? kindIn(section) : undefined);

  const values = new Map<string, Value>();
  const origins: Origin[] = [];
  let isComplete = true;
  for (const key of table) {
    const result = readKey(key, section, type, kind);
    if (result === undefined) continue;
    if ("value" in result) {
      values.set(key.spec.name, result.value);
      origins.push({ key, value: result.value, setting: section?.settings.get(key.name) });
    } else {
      isComplete = false;
      for (const problem of result.problems) problems.push(`${label(key.spec.name)}: ${problem}`);
    }
  }
  return { values, isComplete, origins: { path, origins }, label, isSet };
}

type KeyResult = { readonly value: Value } | { readonly problems: readonly string[] } | undefined;

/** Undefined: not set and not needed. */
function readKey(key: NamedKey, section: Section | undefined, type: SectionType, kind: UpstreamKind | undefined) {
  const { spec } = key;
  const setting = section?.settings.get(key.name);
  if (setting === undefined) return readMissing(key, section, type, kind);
  if (kind !== undefined && !appliesTo(spec, kind)) {
    const kinds = spec.section === "upstream" ? spec.kinds ?? [] : [];
    return { problems: [`is not a key of the kind ${kind}, only of ${kinds.join(", ")}; remove it`] };
  }
  // That the file could not be read is reported already.
  return setting.text === undefined ? { problems: [] } : parseValue(spec, setting.text);
}

function readMissing(
  key: NamedKey,
  section: Section | undefined,
  type: SectionType,
  kind: UpstreamKind | undefined,
): KeyResult {
  const { spec } = key;
  // As long as the kind is not known only what every kind needs can be asked for.
  const applies = kind === undefined ? !("kinds" in spec) : appliesTo(spec, kind);
  // The slot of an upstream in the second form is that of the database, unless it is given one of its own.
  if (!applies || (type === "upstream" && spec.section === "database")) return undefined;
  if (spec.default !== undefined) return parseValue(spec, spec.default);
  if (!spec.required) return undefined;
  if (section?.misspelt.has(key.name)) return { problems: [] };
  return { problems: [`is required, but not set; wanted ${wantedText(spec, kind)}`] };
}

function wantedText(spec: KeySpec, kind: UpstreamKind | undefined): string {
  if (spec.type === "choice") return `one of ${allowedText(spec)}`;
  if (kind !== undefined && spec.type === "broker_uri") return `a URI like ${KINDS[kind].exampleUri}`;
  if (kind !== undefined && spec.type === "bridge_channels") return `a list like ${KINDS[kind].exampleBindings}`;
  return spec.example ?? allowedText(spec);
}

function kindIn(section: Section | undefined): UpstreamKind | undefined {
  const key = keysOf("upstream").find(({ spec }) => spec.name === "kind");
  const text = key === undefined ? undefined : section?.settings.get(key.name)?.text;
  if (key === undefined || text === undefined) return undefined;
  const parsed = parseValue(key.spec, text);
  return "value" in parsed ? asKind(parsed.value) : undefined;
}

export function asKind(value: Value | undefined): UpstreamKind | undefined {
  return KIND_NAMES.find((kind) => kind === value);
}
