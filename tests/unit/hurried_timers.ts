/** Makes every `setTimeout` of the code under test end within a millisecond, and tells what was asked for. */
export class HurriedTimers {
  readonly #real = globalThis.setTimeout;
  readonly requestedMs: number[] = [];

  constructor() {
    const hurried = (callback: () => void, ms = 0) => {
      this.requestedMs.push(ms);
      return this.#real(callback, Math.min(ms, 1));
    };
    globalThis.setTimeout = hurried as unknown as typeof setTimeout;
  }

  [Symbol.dispose](): void {
    globalThis.setTimeout = this.#real;
  }
}
