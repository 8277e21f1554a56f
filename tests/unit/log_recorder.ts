import type { Logger } from "../../src/log.ts";

export interface LogLine {
  readonly level: "debug" | "info" | "warn" | "error";
  readonly text: string;
}

/** A logger that keeps its lines. */
export class LogRecorder {
  readonly lines: LogLine[] = [];
  readonly logger: Logger;

  constructor() {
    const at = (level: LogLine["level"]) => (template: string, values: Record<string, unknown> = {}) => {
      const text = template.replace(/\{(\w+)\}/g, (_, name: string) => String(values[name]));
      this.lines.push({ level, text });
    };
    this.logger = { debug: at("debug"), info: at("info"), warn: at("warn"), error: at("error") } as unknown as Logger;
  }

  get texts(): string[] {
    return this.lines.map(({ text }) => text);
  }
}
