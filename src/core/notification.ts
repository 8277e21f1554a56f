/** The payload rules of NOTIFY: design, section 3. */

export interface Notification {
  readonly routingKey: string;
  readonly message: string;
  readonly json: boolean;
}

/**
 * Splits a payload at its first `|` into routing key and message. Without a `|` the key is empty. A payload that begins
 * with `{`, `[` or `"` is JSON and never split.
 */
export function parseNotification(payload: string): Notification {
  if (looksLikeJson(payload)) return { routingKey: "", message: payload, json: isJson(payload) };
  const bar = payload.indexOf("|");
  const message = payload.slice(bar + 1);
  return { routingKey: bar === -1 ? "" : payload.slice(0, bar), message, json: isJson(message) };
}

export function looksLikeJson(text: string): boolean {
  return text.startsWith("{") || text.startsWith("[") || text.startsWith('"');
}

/** Decides the content type only: what is published is the text itself. */
export function isJson(text: string): boolean {
  if (!looksLikeJson(text)) return false;
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}
