import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createHash, X509Certificate } from "node:crypto";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import fc from "fast-check";
import { tlsServerEndPoint } from "../../src/postgres/auth.ts";

const dir = mkdtempSync(join(tmpdir(), "pg-event-proxy-cert-"));

after(() => rmSync(dir, { recursive: true }));

function openssl(...args: readonly string[]): void {
  execFileSync("openssl", args, { stdio: "pipe" });
}

/** A certificate in DER. `key` are the arguments of `openssl genpkey`; each key is made once, since RSA takes a while. */
function makeCertificate(key: readonly string[], digest: readonly string[]): Uint8Array {
  const keyFile = join(dir, `${key.join("")}.pem`);
  if (!existsSync(keyFile)) openssl("genpkey", "-algorithm", ...key, "-out", keyFile);
  const certificate = join(dir, "certificate.der");
  const out = ["-outform", "DER", "-out", certificate];
  openssl("req", "-x509", "-new", "-key", keyFile, "-days", "1", "-subj", "/CN=localhost", ...out, ...digest);
  return readFileSync(certificate);
}

const RSA = ["RSA", "-pkeyopt", "rsa_keygen_bits:2048"];
const EC = ["EC", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
const ED25519 = ["ed25519"];

/** RFC 5929, section 4.1: the hash of the signature, but SHA-256 for MD5 and SHA-1. */
const CERTIFICATES: Array<[what: string, key: string[], digest: string[], hash: string]> = [
  ["RSA with SHA-256", RSA, ["-sha256"], "sha256"],
  ["RSA with SHA-384", RSA, ["-sha384"], "sha384"],
  ["RSA with SHA-512", RSA, ["-sha512"], "sha512"],
  ["RSA with SHA-1", RSA, ["-sha1"], "sha256"],
  ["RSA with MD5", RSA, ["-md5"], "sha256"],
  ["ECDSA with SHA-256", EC, ["-sha256"], "sha256"],
  ["ECDSA with SHA-384", EC, ["-sha384"], "sha384"],
  ["ECDSA with SHA-512", EC, ["-sha512"], "sha512"],
  ["ECDSA with SHA-1", EC, ["-sha1"], "sha256"],
];

for (const [what, key, digest, hash] of CERTIFICATES) {
  test(`the end point of a certificate signed by ${what} is its ${hash}`, async () => {
    const der = makeCertificate(key, digest);
    assert.match(new X509Certificate(der).subject, /CN=localhost/);
    const binding = await tlsServerEndPoint(der);
    assert.ok(binding !== undefined);
    assert.equal(Buffer.from(binding).toString("hex"), createHash(hash).update(der).digest("hex"));
  });
}

const WITHOUT: Array<[what: string, key: string[], digest: string[]]> = [
  ["Ed25519", ED25519, []],
  ["RSA-PSS", RSA, ["-sha256", "-sigopt", "rsa_padding_mode:pss"]],
];

for (const [what, key, digest] of WITHOUT) {
  test(`a certificate signed by ${what} has no end point`, async () => {
    assert.equal(await tlsServerEndPoint(makeCertificate(key, digest)), undefined);
  });
}

test("no prefix of a certificate up to its signature, and no random bytes, are taken for one or throw", async () => {
  const der = makeCertificate(EC, ["-sha256"]);
  for (let size = 0; size < der.length; size++) {
    assert.equal(await tlsServerEndPoint(der.subarray(0, size)), undefined, `${size} of ${der.length} bytes`);
  }
  await fc.assert(fc.asyncProperty(fc.uint8Array({ maxLength: 80 }), async (bytes) => {
    await tlsServerEndPoint(bytes);
  }));
  const edit = fc.tuple(fc.nat(der.length - 1), fc.nat(255));
  await fc.assert(fc.asyncProperty(fc.array(edit, { minLength: 1, maxLength: 8 }), async (edits) => {
    const changed = Uint8Array.from(der);
    for (const [at, byte] of edits) changed[at] = byte;
    await tlsServerEndPoint(changed);
  }));
});
