/** The time of day in milliseconds with a resolution of microseconds, comparable between processes of one machine. */

export class WallClock {
  readonly #offsetMs: number;

  /** Takes up to a millisecond. */
  constructor() {
    // Date.now() has whole milliseconds: where it changes, the fraction is zero.
    const before = Date.now();
    let now = before;
    while (now === before) now = Date.now();
    this.#offsetMs = now - performance.now();
  }

  nowMs(): number {
    return this.#offsetMs + performance.now();
  }
}

/** The message of a row that holds when it was sent, as wal2json writes it; the same from a bare publisher. */
export function tickMessage(id: number, sentMs: number): string {
  return `{"action":"I","schema":"public","table":"ticks","columns":[{"name":"id","value":${id}},` +
    `{"name":"note","value":"${"0123456789".repeat(15)}"},{"name":"sent","value":${sentMs}}]}`;
}

/** When a message was sent; undefined for BEGIN and COMMIT. */
export function sentMsOf(message: string): number | undefined {
  const text = /"name":"sent","value":([\d.e+]+)/.exec(message)?.[1];
  return text === undefined ? undefined : Number(text);
}
