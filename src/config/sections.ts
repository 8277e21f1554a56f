/**
 * Collects what the file and the environment say into sections, each value with its origin. The names are checked here;
 * the values are still text.
 */

import { errorText } from "../core/errors.ts";
import { parseIni } from "./ini.ts";
import type { SectionType } from "./keys.ts";
import {
  findKey,
  identifySection,
  meantKey,
  normalizeIniSection,
  type Place,
  placeText,
  type SectionId,
  splitVariable,
  unknownKeyText,
} from "./names.ts";

export interface Setting {
  /** Undefined where the file that holds it could not be read, which is reported. */
  readonly text: string | undefined;
  readonly place: Place;
  /** The file that the value came from, for a key that ends in `_FILE`. */
  readonly readFrom: string | undefined;
}

export interface Section {
  readonly type: SectionType;
  /** The name of the bridge or of the upstream; the section's own for `database`, `http` and `log`. */
  readonly name: string;
  /** `local.upstream_config` */
  readonly path: string;
  /** By the name of the key in this type of section. */
  readonly settings: ReadonlyMap<string, Setting>;
  /** The first thing written into it: a missing key is called in the same way. */
  readonly firstPlace: Place;
  /** Keys that a wrong name most likely meant, which is reported: they are not called missing as well. */
  readonly misspelt: ReadonlySet<string>;
}

export type Environment = Readonly<Record<string, string | undefined>>;
/** Returns the text of a file, or throws. */
export type ReadFile = (path: string) => string;

/** A setting before its value was looked up. */
interface Entry {
  readonly id: SectionId;
  readonly key: string;
  readonly text: string;
  readonly place: Place;
}

interface Found extends Entry {
  readonly viaFile: boolean;
}

interface OpenSection {
  readonly id: SectionId;
  readonly firstPlace: Place;
  readonly found: Map<string, Found>;
  readonly misspelt: Set<string>;
}

/** `problems` receives one line per fault. */
export function collectSections(
  file: string | undefined,
  env: Environment,
  readFile: ReadFile,
  problems: string[],
): Section[] {
  const open = new Map<string, OpenSection>();
  const fromFile = file === undefined ? [] : fileEntries(file, readFile, problems);
  // In this order: a variable replaces what the file says, also where that is a KEY_FILE.
  addLevel(open, fromFile, problems);
  addLevel(open, environmentEntries(env, problems), problems);
  return [...open.values()].map(({ id, firstPlace, found, misspelt }) => {
    const settings = new Map<string, Setting>();
    for (const [name, entry] of found) settings.set(name, settle(entry, readFile, problems));
    return { ...id, firstPlace, settings, misspelt };
  });
}

function fileEntries(path: string, readFile: ReadFile, problems: string[]): Entry[] {
  let text: string;
  try {
    text = readFile(path);
  } catch (error) {
    problems.push(`${path}: cannot be read: ${errorText(error)}; name an ini file that exists`);
    return [];
  }
  const ini = parseIni(text);
  for (const problem of ini.problems) problems.push(`${path} line ${problem.line}: ${problem.text}`);
  for (const { name, line } of ini.sections) {
    const id = identifySection(normalizeIniSection(name));
    if (typeof id === "string") problems.push(`${path} [${name}] (line ${line}): ${id}`);
  }
  const entries: Entry[] = [];
  for (const { section, key, value, line } of ini.entries) {
    if (section === undefined) {
      problems.push(`${path} line ${line}: ${key} stands before the first [section]; move it into one`);
      continue;
    }
    const id = identifySection(normalizeIniSection(section));
    const place: Place = { from: "file", path, section, key, line };
    if (typeof id !== "string") entries.push({ id, key: key.toLowerCase(), text: value, place });
  }
  return entries;
}

function environmentEntries(env: Environment, problems: string[]): Entry[] {
  const entries: Entry[] = [];
  for (const [variable, text] of Object.entries(env)) {
    const split = splitVariable(variable);
    if (text === undefined || split === undefined) continue;
    const id = typeof split === "string" ? split : identifySection(split.section);
    if (typeof split === "string" || typeof id === "string") problems.push(`${variable}: ${id}`);
    else entries.push({ id, key: split.key, text, place: { from: "environment", variable } });
  }
  return entries;
}

/** Adds one level, the file or the environment, on top of what is there. */
function addLevel(open: Map<string, OpenSection>, entries: readonly Entry[], problems: string[]): void {
  const seen = new Map<string, Found>();
  for (const entry of entries) {
    const { id, place } = entry;
    let section = open.get(id.path);
    if (section === undefined) {
      section = { id, firstPlace: place, found: new Map(), misspelt: new Set() };
      open.set(id.path, section);
    }
    const key = findKey(id.type, entry.key);
    if (key === undefined) {
      problems.push(`${placeText(place)}: ${unknownKeyText(place, id, entry.key)}`);
      section.misspelt.add(meantKey(id.type, entry.key) ?? "");
      continue;
    }
    const found: Found = { ...entry, viaFile: key.viaFile };
    // Compose files pass on variables that may be empty, and no key has a use for nothing: it counts as not set.
    if (entry.text === "") continue;
    const earlier = seen.get(`${id.path} ${key.name}`);
    if (earlier !== undefined) problems.push(`${placeText(place)}: ${repeatedText(earlier, found)}`);
    else {
      seen.set(`${id.path} ${key.name}`, found);
      section.found.set(key.name, found);
    }
  }
}

function repeatedText(earlier: Found, found: Found): string {
  const first = earlier.place.from === "file" ? `on line ${earlier.place.line}` : `by ${earlier.place.variable}`;
  const here = found.place.from === "file" ? ` here on line ${found.place.line},` : "";
  const what = earlier.viaFile === found.viaFile
    ? ""
    : `, ${earlier.viaFile ? "as a file" : "as a value"} there and ${found.viaFile ? "as a file" : "as a value"} here`;
  return `is set twice:${here} already ${first}${what}; keep one of them`;
}

function settle(entry: Found, readFile: ReadFile, problems: string[]): Setting {
  const { place } = entry;
  if (!entry.viaFile) return { text: entry.text, place, readFrom: undefined };
  const readFrom = entry.text.trim();
  try {
    // Editors and `echo` end a file with a line break that belongs to no secret.
    const text = readFile(readFrom).replace(/\r?\n$/, "");
    if (text !== "") return { text, place, readFrom };
    problems.push(`${placeText(place)}: the file ${JSON.stringify(readFrom)} is empty; write the value into it`);
  } catch (error) {
    problems.push(
      `${placeText(place)}: the file ${JSON.stringify(readFrom)} cannot be read: ${errorText(error)}; ` +
        "name a file that holds the value",
    );
  }
  return { text: undefined, place, readFrom };
}
