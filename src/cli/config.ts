/** `pg-event-proxy config`: prints the effective configuration and where each value came from, or an example. */

import { exampleIni } from "../config/example.ts";
import { formatIniValue } from "../config/ini.ts";
import { loadConfig, type LoadOptions } from "../config/load.ts";
import type { Setting } from "../config/sections.ts";
import { formatValue } from "../config/values.ts";

export interface ConfigCommandOptions extends LoadOptions {
  /** Print the commented example instead. */
  readonly example?: boolean;
  readonly write: (text: string) => void;
}

/**
 * Writes an ini file that loads as the same configuration, apart from the passwords, which are masked. Throws
 * ConfigError as the program itself would.
 */
export function configCommand({ example, write, ...options }: ConfigCommandOptions): void {
  if (example) {
    write(exampleIni());
    return;
  }
  const sections = loadConfig(options).origins.map(({ path, origins }) => {
    const lines = origins.map(({ key, value, setting }) => {
      return `# ${originText(setting)}\n${key.name}=${formatIniValue(formatValue(key.spec, value))}\n`;
    });
    return `[${path}]\n${lines.join("")}`;
  });
  write(sections.join("\n"));
}

function originText(setting: Setting | undefined): string {
  if (setting === undefined) return "default";
  const { place, readFrom } = setting;
  const origin = place.from === "environment" ? place.variable : `${place.path} line ${place.line}`;
  return readFrom === undefined ? `from ${origin}` : `from ${origin}, read from ${JSON.stringify(readFrom)}`;
}
