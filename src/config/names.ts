/** The names of sections, keys and variables: which section a name means, and what a wrong one most likely meant. */

import { keysOf, RESERVED_SECTIONS, type SectionType } from "./keys.ts";
import { didYouMean, nearest } from "./nearest.ts";

/** Where one setting was written. */
export type Place =
  | { readonly from: "environment"; readonly variable: string }
  | {
    readonly from: "file";
    readonly path: string;
    readonly section: string;
    readonly key: string;
    readonly line: number;
  };

/** `config.ini [local] upstream`, or the name of the variable. */
export function placeText(place: Place): string {
  return place.from === "environment" ? place.variable : `${place.path} [${place.section}] ${place.key}`;
}

/** A key of `path` (`local.upstream_config`) as it would be written where `place` is. */
export function nameLike(place: Place, path: string, key: string): string {
  if (place.from === "file") return `${place.path} [${path}] ${key}`;
  const separator = place.variable.includes("-") ? "-" : "__";
  return `PGPROXY_${[...path.split("."), key].join(separator).toUpperCase()}`;
}

export interface SectionId {
  readonly type: SectionType;
  /** The name of the bridge or of the upstream; the section's own for `database`, `http` and `log`. */
  readonly name: string;
  /** `local.upstream_config` */
  readonly path: string;
}

/** The way to write the section in the file. */
export function sectionPath(type: SectionType, name: string): string {
  switch (type) {
    case "bridge":
    case "database":
    case "http":
    case "log":
      return name;
    case "upstream_config":
      return `${name}.upstream_config`;
    case "upstream":
      return `upstream.${name}`;
  }
}

/** Names are compared in lower case, with `-` for `__`, so that the file and the environment come to the same. */
export function normalizeIniSection(name: string): string {
  return name.toLowerCase().split(".").map((part) => part.trim().replaceAll("__", "-")).join(".");
}

const ANY_SECTION = "[NAME], [NAME.upstream_config], [upstream.NAME], [database], [http] or [log]";

/** The section that a normalized name means, or what is wrong with it. */
export function identifySection(path: string): SectionId | string {
  const [first = "", second, ...rest] = path.split(".");
  if (rest.length > 0 || first === "" || second === "" || /[\s=[\]]/.test(path)) {
    return `is no section name; wanted ${ANY_SECTION}`;
  }
  if (first === "upstream") {
    if (second !== undefined) return { type: "upstream", name: second, path };
    return "names no upstream; wanted [upstream.NAME], as variable PGPROXY_UPSTREAM-NAME-KEY";
  }
  if (first === "upstream_config") {
    return "names no bridge; wanted [NAME.upstream_config], as variable PGPROXY_NAME-UPSTREAM_CONFIG-KEY";
  }
  if (second === undefined) {
    if (first === "database" || first === "http" || first === "log") return { type: first, name: first, path };
    const upstream = /^upstreams?[-_.](.+)$/.exec(first)?.[1];
    if (upstream !== undefined) return `is no section; did you mean [upstream.${upstream}]?`;
    return { type: "bridge", name: first, path };
  }
  const isReserved = (RESERVED_SECTIONS as readonly string[]).includes(first);
  if (second === "upstream_config" && !isReserved) return { type: "upstream_config", name: first, path };
  const hint = isReserved ? "" : didYouMean(second, ["upstream_config"], (found) => `[${first}.${found}]`);
  return `is no section; wanted ${ANY_SECTION}${hint}`;
}

const PREFIX = /^PGPROXY_/i;

/**
 * Variables of the name space that are no settings. `PGPROXY_TEST_…` and `PGPROXY_BUILD_…` steer this project's own
 * tests and builds, and must not make the program that they start refuse its configuration. A bridge may still be
 * called `test`: its variables go on with `-` or `__`.
 */
const RESERVED_VARIABLE = /^(?:TEST|BUILD)_(?!_)/i;
/**
 * What Kubernetes sets in every container beside a service called `pgproxy` (kubernetes.io, "Service", section
 * "Environment variables"). No setting of ours has such a name, and the user cannot remove them.
 */
const KUBERNETES_VARIABLE = /^(?:SERVICE_(?:HOST|PORT(?:_[A-Z0-9_]+)?)|PORT(?:_\d+_[A-Z]+(?:_(?:PROTO|PORT|ADDR))?)?)$/;

/** The section and the key that a variable names; a text says what is wrong with it; undefined: none of ours. */
export function splitVariable(variable: string): { section: string; key: string } | string | undefined {
  if (!PREFIX.test(variable)) return undefined;
  const name = variable.replace(PREFIX, "");
  if (RESERVED_VARIABLE.test(name) || KUBERNETES_VARIABLE.test(name)) return undefined;
  const parts = name.toLowerCase().replaceAll("__", "-").split("-");
  if (parts.length < 2 || parts.includes("")) {
    return `names no key; wanted PGPROXY_SECTION-KEY or PGPROXY_SECTION__KEY${singleUnderscoreHint(parts)}`;
  }
  // Names of bridges and upstreams may hold hyphens: only the fixed words at the two ends are split off.
  const path = parts.slice(0, -1).join("-");
  const section = path.startsWith("upstream-")
    ? `upstream.${path.slice("upstream-".length)}`
    : path.replace(/-upstream_config$/, ".upstream_config");
  return { section, key: parts[parts.length - 1]! };
}

/** The most frequent slip: single underscores all through. */
function singleUnderscoreHint(parts: readonly string[]): string {
  const name = parts.filter((part) => part !== "").join("_");
  const patterns = [["upstream_config", "_upstream_config_"], ["bridge", "_"], ["upstream", "_"]] as const;
  for (const [type, infix] of patterns) {
    for (const key of keysOf(type)) {
      const section = name.slice(0, -(infix + key.name).length);
      if (!name.endsWith(infix + key.name) || section === "") continue;
      const path = type === "upstream" ? section.replace(/^upstream_/, "upstream.") : sectionPath(type, section);
      const id = identifySection(path);
      if (typeof id === "string" || id.type !== type) continue;
      return `; did you mean ${nameLike({ from: "environment", variable: "__" }, path, key.name)}?`;
    }
  }
  return "";
}

/** The key that a name in a section means. With `_FILE` at its end the value is in the file that it names. */
export function findKey(type: SectionType, name: string): { name: string; viaFile: boolean } | undefined {
  const known = (key: string) => keysOf(type).some((candidate) => candidate.name === key);
  // ca_file and the like are keys of their own, and come first.
  if (known(name)) return { name, viaFile: false };
  const stem = name.replace(/_file$/, "");
  return stem !== name && known(stem) ? { name: stem, viaFile: true } : undefined;
}

/** The key of this type of section that a wrong name most likely means: its name in the other form, or the nearest. */
export function meantKey(type: SectionType, name: string): string | undefined {
  const stem = name.replace(/_file$/, "");
  const alias = keysOf(type).find(({ spec }) =>
    spec.name === stem || ("bridgeName" in spec && spec.bridgeName === stem)
  );
  return alias?.name ?? nearest(stem, keysOf(type).map((key) => key.name));
}

/** Why a key is not known, and what is meant: another name here, or another section. */
export function unknownKeyText(place: Place, id: SectionId, key: string): string {
  const suggestions: string[] = [];
  const here = meantKey(id.type, key);
  if (here !== undefined) suggestions.push(nameLike(place, id.path, here));
  for (const other of neighbours(id)) {
    if (findKey(other.type, key) !== undefined) suggestions.push(nameLike(place, other.path, key));
  }
  if (suggestions.length > 0) return `unknown key; did you mean ${suggestions.join(" or ")}?`;
  return `unknown key; known here: ${keysOf(id.type).map((candidate) => candidate.name).join(", ")}`;
}

function neighbours(id: SectionId): Array<{ type: SectionType; path: string }> {
  switch (id.type) {
    case "bridge": {
      // PGPROXY_LOCAL-UPSTREAM-URI and PGPROXY_LOCAL-CONFIG-URI forget a part of the name.
      const bridge = id.name.replace(/-(?:upstream|config)$/, "");
      return [{ type: "upstream_config", path: sectionPath("upstream_config", bridge) }];
    }
    case "upstream_config":
      return [{ type: "bridge", path: id.name }];
    case "database":
      return [{ type: "upstream", path: "upstream.NAME" }];
    case "upstream":
      return [{ type: "database", path: "database" }];
    case "http":
    case "log":
      return [];
  }
}
