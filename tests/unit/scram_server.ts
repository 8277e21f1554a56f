import { createHash, createHmac, pbkdf2Sync } from "node:crypto";

/** The server's side of RFC 5802, by other functions than the client's. */
export class ScramServer {
  readonly #salted: Buffer;
  readonly #clientFirstBare: string;
  readonly serverFirst: string;

  constructor(password: string, clientFirst: string, salt: Buffer, iterations: number) {
    this.#salted = pbkdf2Sync(password, salt, iterations, 32, "sha256");
    this.#clientFirstBare = clientFirst.split(",").slice(2).join(",");
    const nonce = /r=(.*)$/.exec(clientFirst)![1];
    this.serverFirst = `r=${nonce}server,s=${salt.toString("base64")},i=${iterations}`;
  }

  /** Returns the last message, or undefined when the proof is wrong. */
  final(clientFinal: string): string | undefined {
    const [, withoutProof, proof] = /^(.*),p=(.*)$/.exec(clientFinal)!;
    const message = `${this.#clientFirstBare},${this.serverFirst},${withoutProof}`;
    const hmac = (key: Uint8Array, text: string) => createHmac("sha256", key).update(text).digest();
    const storedKey = createHash("sha256").update(hmac(this.#salted, "Client Key")).digest();
    const signature = hmac(storedKey, message);
    const clientKey = Buffer.from(proof!, "base64").map((byte, i) => byte ^ signature[i]!);
    if (!createHash("sha256").update(clientKey).digest().equals(storedKey)) return undefined;
    return `v=${hmac(hmac(this.#salted, "Server Key"), message).toString("base64")}`;
  }
}
