/** The status page in one piece: nothing in it asks for anything but the stream of this server. */

import { hash } from "node:crypto";
import style from "./page.css" with { type: "text" };
import markup from "./page.html" with { type: "text" };
import script from "./page.js" with { type: "text" };

export const PAGE_HTML: string = markup
  .replace(/<style>[^<]*<\/style>/, () => `<style>${style}</style>`)
  .replace(/<script>[^<]*<\/script>/, () => `<script>${script}</script>`);

/** Of the page, nothing may run or be asked for but what is in it (W3C, "Content Security Policy Level 3"). */
export const PAGE_POLICY: string = [
  "default-src 'none'",
  `script-src '${sourceHash(script)}'`,
  `style-src '${sourceHash(style)}'`,
  // The plots are laid out by properties that the script sets, which needs no permission; the icon is a data: URI.
  "img-src data:",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
].join("; ");

function sourceHash(text: string): string {
  return `sha256-${hash("sha256", text, "base64")}`;
}
