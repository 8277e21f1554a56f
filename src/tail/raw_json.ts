/** Reads JSON without reading its scalars: big integers and numerics are shown as they came. */

/** Scalars are the text that stood there, strings with their quotes. */
export type RawJson = string | RawJson[] | Map<string, RawJson>;

/** Undefined where the text is no JSON. */
export function parseRawJson(text: string): RawJson | undefined {
  const scanner = new Scanner(text);
  const value = scanner.value();
  return value !== undefined && scanner.atEnd ? value : undefined;
}

const SCALAR = /"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|true|false|null/y;
const SPACE = /[ \t\r\n]*/y;

class Scanner {
  readonly #text: string;
  #offset = 0;

  constructor(text: string) {
    this.#text = text;
  }

  get atEnd(): boolean {
    this.#take(SPACE);
    return this.#offset === this.#text.length;
  }

  value(): RawJson | undefined {
    this.#take(SPACE);
    if (this.#skip("{")) return this.#object();
    if (this.#skip("[")) return this.#array();
    return this.#take(SCALAR);
  }

  #object(): Map<string, RawJson> | undefined {
    const members = new Map<string, RawJson>();
    if (this.#skip("}")) return members;
    do {
      this.#take(SPACE);
      const name = this.#take(SCALAR);
      if (name === undefined || !this.#skip(":")) return undefined;
      const value = this.value();
      if (value === undefined) return undefined;
      members.set(textOf(name), value);
    } while (this.#skip(","));
    return this.#skip("}") ? members : undefined;
  }

  #array(): RawJson[] | undefined {
    const items: RawJson[] = [];
    if (this.#skip("]")) return items;
    do {
      const item = this.value();
      if (item === undefined) return undefined;
      items.push(item);
    } while (this.#skip(","));
    return this.#skip("]") ? items : undefined;
  }

  #skip(character: string): boolean {
    this.#take(SPACE);
    if (this.#text[this.#offset] !== character) return false;
    this.#offset++;
    return true;
  }

  #take(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.#offset;
    const [match] = pattern.exec(this.#text) ?? [];
    if (match !== undefined) this.#offset += match.length;
    return match;
  }
}

/** The text of a JSON string; of other scalars the text itself. */
export function textOf(raw: RawJson | undefined): string {
  if (typeof raw !== "string") return "";
  if (!raw.startsWith('"')) return raw;
  try {
    return String(JSON.parse(raw));
  } catch {
    return raw.slice(1, -1);
  }
}
