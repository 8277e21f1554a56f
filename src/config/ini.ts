/**
 * The ini file. A parser of our own and not the npm package `ini`, which cannot carry the values of this program
 * unharmed: it cuts a value at an unescaped `#` or `;` (passwords, URIs), halves backslashes, strips the outer quotes
 * of `'a' … 'b'`, drops lines that it does not understand and all but the last of equal keys without a word, takes
 * `[section] ; comment` for a key, and knows no line numbers to report. Escaping each value before it parses would
 * mean to find lines, sections, keys and values first, which is all that there is to do.
 *
 * - `[section]`, `key=value`, and whole lines of comment that start with `;` or `#`
 * - blanks around names and values do not count
 * - a value is taken as it stands to the end of the line, `#`, `;`, `=`, `%`, quotes and backslashes included, unless
 *   it stands as a whole in double quotes (`\"` and `\\` are then escapes) or in single quotes (no escapes)
 */

export interface IniEntry {
  /** As written; undefined before the first header. */
  readonly section: string | undefined;
  readonly key: string;
  readonly value: string;
  readonly line: number;
}

export interface ParsedIni {
  readonly entries: readonly IniEntry[];
  /** Sections in the order of their first appearance, as written, empty ones included. */
  readonly sections: ReadonlyArray<{ readonly name: string; readonly line: number }>;
  readonly problems: ReadonlyArray<{ readonly line: number; readonly text: string }>;
}

export function parseIni(text: string): ParsedIni {
  const entries: IniEntry[] = [];
  const sections: Array<{ name: string; line: number }> = [];
  const problems: Array<{ line: number; text: string }> = [];
  let section: string | undefined;
  // Editors on Windows put a byte order mark before the first line.
  text.replace(/^\uFEFF/, "").split(/\r\n|\n|\r/).forEach((raw, index) => {
    const line = index + 1;
    const content = raw.trim();
    if (content === "" || content.startsWith(";") || content.startsWith("#")) return;
    const header = /^\[([^\]]*)\]\s*(?:[;#].*)?$/.exec(content);
    if (header !== null) {
      section = header[1]!.trim();
      sections.push({ name: section, line });
      return;
    }
    const equals = content.indexOf("=");
    // The content is not shown: it may be the tail of a secret that was broken over two lines.
    if (content.startsWith("[")) {
      problems.push({ line, text: "is no section header; wanted [name]" });
    } else if (equals < 1) {
      problems.push({ line, text: "is neither a [section] nor key=value; comments begin with ; or #" });
    } else {
      const value = unquote(content.slice(equals + 1).trim());
      entries.push({ section, key: content.slice(0, equals).trim(), value, line });
    }
  });
  return { entries, sections, problems };
}

function unquote(value: string): string {
  const double = /^"((?:[^"\\]|\\.)*)"$/.exec(value);
  if (double !== null) return double[1]!.replace(/\\(["\\])/g, "$1");
  const single = /^'([^']*)'$/.exec(value);
  return single !== null ? single[1]! : value;
}

/** Writes a value so that parseIni reads the same. Line breaks cannot be written. */
export function formatIniValue(value: string): string {
  if (value === value.trim() && unquote(value) === value) return value;
  return `"${value.replace(/["\\]/g, "\\$&")}"`;
}
