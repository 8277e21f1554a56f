/** Headers written as text, `Name: value; Other: value`: before the message of a notification, and in the configuration. */

/** A name is a token (RFC 9110, section 5.6.2). */
const HEADER = /^([!#$%&'*+.^_`|~\w-]+)\s*:\s*(.*)$/s;

export type Headers = Readonly<Record<string, string>>;

/** Undefined where the text is not such a list. A value cannot hold a `;`. */
export function parseHeaders(text: string): Headers | undefined {
  const headers: [string, string][] = [];
  for (const part of text.split(";")) {
    const item = part.trim();
    if (item === "") continue;
    const match = HEADER.exec(item);
    if (match === null) return undefined;
    headers.push([match[1] ?? "", match[2] ?? ""]);
  }
  // Not by assignment, which `__proto__` would escape.
  return headers.length === 0 ? undefined : Object.fromEntries(headers);
}

export interface HeadedMessage {
  readonly headers: Headers;
  readonly message: string;
}

/**
 * Takes `Name: value; Other: value|message` apart, which is what remains of a notification behind its routing key.
 * Undefined where no headers precede the message: what stands before its first `|` is then part of it.
 */
export function splitHeaders(text: string): HeadedMessage | undefined {
  const bar = text.indexOf("|");
  if (bar === -1) return undefined;
  const before = text.slice(0, bar);
  const headers = before.trim() === "" ? {} : parseHeaders(before);
  return headers === undefined ? undefined : { headers, message: text.slice(bar + 1) };
}
