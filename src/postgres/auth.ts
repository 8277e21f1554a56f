/**
 * Passwords on the wire: md5 (PostgreSQL documentation, "Message Flow") and SCRAM-SHA-256 with and without channel
 * binding (RFC 5802, RFC 7677, RFC 5929 for `tls-server-end-point`), by Web Crypto.
 */

import { createHash } from "node:crypto";

/** The answer to AuthenticationMD5Password. */
export function md5Password(user: string, password: string, salt: Uint8Array): string {
  const inner = createHash("md5").update(password + user).digest("hex");
  return `md5${createHash("md5").update(inner).update(salt).digest("hex")}`;
}

export class ScramError extends Error {
  override name = "ScramError";
}

/** What the client says of channel binding: RFC 5802, section 6. */
export type ChannelBinding =
  /** The client cannot do it. */
  | { readonly kind: "unsupported" }
  /** The client can, the server did not offer it. */
  | { readonly kind: "not-offered" }
  /** The hash of the server's certificate. */
  | { readonly kind: "tls-server-end-point"; readonly data: Uint8Array };

/** One SCRAM-SHA-256 exchange: `clientFirst`, then `clientFinal`, then `verify`. */
export class ScramClient {
  readonly #password: string;
  readonly #gs2Header: string;
  readonly #bindingData: Uint8Array;
  readonly #nonce: string;
  #serverSignature: string | undefined;

  /** `nonce` is given in tests only. PostgreSQL ignores the user name of the exchange; it took the startup message's. */
  constructor(password: string, binding: ChannelBinding, nonce: string = randomNonce()) {
    this.#password = password;
    this.#nonce = nonce;
    this.#gs2Header = binding.kind === "unsupported"
      ? "n,,"
      : binding.kind === "not-offered"
      ? "y,,"
      : "p=tls-server-end-point,,";
    this.#bindingData = binding.kind === "tls-server-end-point" ? binding.data : new Uint8Array();
  }

  clientFirst(user = ""): string {
    return `${this.#gs2Header}${this.#clientFirstBare(user)}`;
  }

  #clientFirstBare(user: string): string {
    return `n=${user.replaceAll("=", "=3D").replaceAll(",", "=2C")},r=${this.#nonce}`;
  }

  /** The answer to the server's first message. Throws ScramError when that is malformed or was tampered with. */
  async clientFinal(serverFirst: string, user = ""): Promise<string> {
    const match = /^r=([^,]+),s=([A-Za-z0-9+/=]+),i=([1-9][0-9]{0,8})(?:,.*)?$/.exec(serverFirst);
    if (match === null) throw new ScramError("the server's SCRAM challenge is malformed");
    const [, nonce, salt, iterations] = match as unknown as [string, string, string, string];
    if (!nonce.startsWith(this.#nonce) || nonce.length === this.#nonce.length) {
      throw new ScramError("the server's SCRAM nonce does not continue ours");
    }
    const saltedPassword = await pbkdf2(saslPrep(this.#password), Buffer.from(salt, "base64"), Number(iterations));
    const clientKey = await hmac(saltedPassword, "Client Key");
    const storedKey = new Uint8Array(await crypto.subtle.digest("SHA-256", clientKey));
    const binding = Buffer.concat([Buffer.from(this.#gs2Header), this.#bindingData]).toString("base64");
    const withoutProof = `c=${binding},r=${nonce}`;
    const authMessage = `${this.#clientFirstBare(user)},${serverFirst},${withoutProof}`;
    const clientSignature = await hmac(storedKey, authMessage);
    const proof = clientKey.map((byte, i) => byte ^ clientSignature[i]!);
    const serverKey = await hmac(saltedPassword, "Server Key");
    this.#serverSignature = Buffer.from(await hmac(serverKey, authMessage)).toString("base64");
    return `${withoutProof},p=${Buffer.from(proof).toString("base64")}`;
  }

  /** Checks the server's last message: only a server that knows the password's verifier can have made it. */
  verify(serverFinal: string): void {
    const failure = /^e=([^,]*)/.exec(serverFinal);
    if (failure !== null) throw new ScramError(`the server ended the SCRAM exchange: ${failure[1]}`);
    const match = /^v=([A-Za-z0-9+/=]+)/.exec(serverFinal);
    if (this.#serverSignature === undefined || match?.[1] !== this.#serverSignature) {
      throw new ScramError("the server's SCRAM signature is wrong: it does not know this password");
    }
  }
}

function randomNonce(): string {
  return Buffer.from(crypto.getRandomValues(new Uint8Array(18))).toString("base64");
}

async function hmac(key: Uint8Array<ArrayBuffer>, text: string): Promise<Uint8Array<ArrayBuffer>> {
  const imported = await crypto.subtle.importKey("raw", key, { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
  return new Uint8Array(await crypto.subtle.sign("HMAC", imported, new TextEncoder().encode(text)));
}

async function pbkdf2(password: string, salt: Uint8Array, iterations: number): Promise<Uint8Array<ArrayBuffer>> {
  const key = await crypto.subtle.importKey("raw", new TextEncoder().encode(password), "PBKDF2", false, ["deriveBits"]);
  const parameters = { name: "PBKDF2", hash: "SHA-256", salt: new Uint8Array(salt), iterations };
  return new Uint8Array(await crypto.subtle.deriveBits(parameters, key, 256));
}

/** Non-ASCII spaces: RFC 3454, table C.1.2. Characters mapped to nothing: table B.1. */
const SPACES = /[\u00a0\u1680\u2000-\u200b\u202f\u205f\u3000]/g;
const MAPPED_TO_NOTHING =
  // deno-fmt-ignore
  /\u00ad|\u034f|\u1806|[\u180b-\u180d]|\u200c|\u200d|\u2060|[\ufe00-\ufe0f]|\ufeff/g;
/** RFC 3454: control characters (C.2), private use (C.3), non-characters (C.4), surrogates (C.5), and C.6 to C.9. */
const PROHIBITED =
  // deno-fmt-ignore
  /[\p{Cc}\p{Co}\p{Cs}\p{Noncharacter_Code_Point}\u0340\u0341\u06dd\u070f\u180e\u200c-\u200f\u2028-\u202e\u2060-\u2063\u206a-\u206f\u2ff0-\u2ffb\ufeff\ufff9-\ufffd\u{1d173}-\u{1d17a}\u{e0001}\u{e0020}-\u{e007f}]/u;

/**
 * SASLprep, RFC 4013, as far as PostgreSQL needs it: a password that cannot be prepared is used as it is, since the
 * server does the same (`pg_saslprep` in src/common/saslprep.c). Not looked for are code points that Unicode 3.2 does not
 * assign and mixed directions, which matter only in a password that normalisation changes besides.
 */
export function saslPrep(password: string): string {
  if (/^[\x20-\x7e]*$/.test(password)) return password;
  const prepared = password.replace(SPACES, " ").replace(MAPPED_TO_NOTHING, "").normalize("NFKC");
  return prepared === "" || PROHIBITED.test(prepared) ? password : prepared;
}

/** Signature algorithms by object identifier (RFC 8017, RFC 5758) and the hash that they use. */
const SIGNATURE_HASHES: Readonly<Record<string, "SHA-256" | "SHA-384" | "SHA-512">> = {
  "1.2.840.113549.1.1.4": "SHA-256", // md5WithRSA: RFC 5929 replaces MD5 and SHA-1 by SHA-256
  "1.2.840.113549.1.1.5": "SHA-256", // sha1WithRSA
  "1.2.840.113549.1.1.11": "SHA-256",
  "1.2.840.113549.1.1.12": "SHA-384",
  "1.2.840.113549.1.1.13": "SHA-512",
  "1.2.840.10045.4.1": "SHA-256", // ecdsa-with-SHA1
  "1.2.840.10045.4.3.2": "SHA-256",
  "1.2.840.10045.4.3.3": "SHA-384",
  "1.2.840.10045.4.3.4": "SHA-512",
};

/**
 * The channel binding data of a server certificate in DER: its hash by the algorithm that signed it. Undefined where
 * that algorithm has none (RSA-PSS, Ed25519): channel binding is then not possible, for libpq neither.
 */
export async function tlsServerEndPoint(certificate: Uint8Array): Promise<Uint8Array | undefined> {
  const oid = signatureAlgorithm(certificate);
  const hash = oid === undefined ? undefined : SIGNATURE_HASHES[oid];
  if (hash === undefined) return undefined;
  return new Uint8Array(await crypto.subtle.digest(hash, new Uint8Array(certificate)));
}

/** `Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm SEQUENCE { OBJECT IDENTIFIER, … }, … }`: RFC 5280, 4.1. */
function signatureAlgorithm(der: Uint8Array): string | undefined {
  const certificate = derElement(der, 0);
  if (certificate === undefined) return undefined;
  const tbs = derElement(der, certificate.start);
  if (tbs === undefined) return undefined;
  const algorithm = derElement(der, tbs.end);
  if (algorithm === undefined) return undefined;
  const oid = derElement(der, algorithm.start);
  if (oid === undefined || der[algorithm.start] !== 0x06) return undefined;
  const numbers: number[] = [];
  let number = 0;
  for (const byte of der.subarray(oid.start, oid.end)) {
    number = number * 128 + (byte & 0x7f);
    if (byte & 0x80) continue;
    if (numbers.length === 0) {
      numbers.push(Math.min(2, Math.floor(number / 40)), number - 40 * Math.min(2, Math.floor(number / 40)));
    } else numbers.push(number);
    number = 0;
  }
  return numbers.join(".");
}

/** The bounds of the contents of the DER element at `offset`; undefined where they do not fit. */
function derElement(der: Uint8Array, offset: number): { start: number; end: number } | undefined {
  const first = der[offset + 1];
  if (first === undefined) return undefined;
  let length = first;
  let start = offset + 2;
  if (first & 0x80) {
    const bytes = first & 0x7f;
    if (bytes === 0 || bytes > 4) return undefined;
    length = 0;
    for (let i = 0; i < bytes; i++) length = length * 256 + (der[start + i] ?? 0);
    start += bytes;
  }
  const end = start + length;
  return end <= der.length ? { start, end } : undefined;
}
