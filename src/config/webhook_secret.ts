/** Secrets of Standard Webhooks: `whsec_` and base64 (standard-webhooks/spec/standard-webhooks.md, "Signature scheme"). */

import { Buffer } from "node:buffer";

const PREFIX = "whsec_";
const MIN_BYTES = 24;
const MAX_BYTES = 64;

/** The key of the HMAC. */
export function secretBytes(secret: string): Buffer {
  return Buffer.from(secret.startsWith(PREFIX) ? secret.slice(PREFIX.length) : secret, "base64");
}

/** Never shows the secret. Undefined where it can be used. */
export function secretProblem(secret: string): string | undefined {
  const make = "make one by: echo whsec_$(openssl rand -base64 32)";
  const base64 = secret.startsWith(PREFIX) ? secret.slice(PREFIX.length) : secret;
  if (!/^[A-Za-z0-9+/]+={0,2}$/.test(base64) || base64.length % 4 !== 0) {
    return `is no whsec_ followed by base64; ${make}`;
  }
  const { length } = secretBytes(secret);
  if (length >= MIN_BYTES && length <= MAX_BYTES) return undefined;
  return `has ${length} bytes; Standard Webhooks asks for ${MIN_BYTES} to ${MAX_BYTES}; ${make}`;
}
