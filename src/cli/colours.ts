/** Colours for a terminal (ECMA-48, SGR). */

import process from "node:process";

export type Colour = "red" | "green" | "yellow" | "blue" | "cyan" | "dim" | "bold";

const CODES: Readonly<Record<Colour, string>> = {
  red: "31",
  green: "32",
  yellow: "33",
  blue: "34",
  cyan: "36",
  dim: "2",
  bold: "1",
};

export type Paint = (colour: Colour, text: string) => string;

/** Plain text unless standard output is a terminal; NO_COLOR (no-color.org) switches colours off there as well. */
export function painter(env: Readonly<Record<string, string | undefined>> = process.env): Paint {
  const isColoured = process.stdout.isTTY === true && !env.NO_COLOR && env.TERM !== "dumb";
  return isColoured ? (colour, text) => `\x1b[${CODES[colour]}m${text}\x1b[0m` : (_, text) => text;
}

/** Text from elsewhere, with what a terminal would obey shown as an escape: control characters and line ends. */
export function harmlessText(text: string): string {
  // deno-lint-ignore no-control-regex
  return text.replace(/[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g, (character) => {
    const short = ({ "\n": "\\n", "\r": "\\r", "\t": "\\t" } as Record<string, string | undefined>)[character];
    return short ?? `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
  });
}
