/** Who may see more than the state of health. */

import { hash, timingSafeEqual } from "node:crypto";

/** Says of a request whether it shows the token, in a time that tells nothing of how much of it was right. */
export class TokenGuard {
  readonly #digest: Uint8Array;

  constructor(token: string) {
    this.#digest = digestOf(token);
  }

  /** `Bearer TOKEN` (RFC 6750), or, since browsers ask for that, the token as the password of any user (RFC 7617). */
  admits(authorization: string | null): boolean {
    const [scheme = "", credentials = ""] = (authorization ?? "").split(/ +(.*)/s);
    switch (scheme.toLowerCase()) {
      case "bearer":
        return this.#matches(credentials.trim());
      case "basic": {
        const text = Buffer.from(credentials, "base64").toString("utf8");
        return this.#matches(text.slice(text.indexOf(":") + 1));
      }
      default:
        return false;
    }
  }

  /** Digests are of one length, as the comparison needs it. */
  #matches(text: string): boolean {
    return timingSafeEqual(digestOf(text), this.#digest);
  }
}

function digestOf(text: string): Uint8Array {
  return hash("sha256", text, "buffer");
}
