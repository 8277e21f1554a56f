import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import type { Host } from "../../src/postgres/connection_uri.ts";
import { passwordFromFile } from "../../src/postgres/password_file.ts";

const PATH = "/home/someone/.pgpass";

function lookUp(text: string, host: Host, database = "db", user = "me", mode = 0o100600): string | undefined {
  return passwordFromFile(PATH, host, database, user, {
    env: {},
    userName: "someone",
    homeDir: "/home/someone",
    readTextFile: (path) => path === PATH ? { text, mode } : undefined,
    exists: () => false,
  });
}

const HOST: Host = { host: "db.example.org", port: 5432 };

const TABLE: Array<[what: string, text: string, password: string | undefined]> = [
  ["a line that fits exactly", "db.example.org:5432:db:me:secret", "secret"],
  ["a wildcard in each field", "*:*:*:*:secret", "secret"],
  ["the first of several that fit", "*:*:*:you:no\n*:*:*:me:first\n*:*:*:*:second", "first"],
  ["another host", "other:5432:db:me:no", undefined],
  ["another port", "*:5433:*:*:no", undefined],
  ["another database", "*:*:other:*:no", undefined],
  ["another user", "*:*:*:you:no", undefined],
  ["the case of the host", "DB.example.org:*:*:*:no", undefined],
  ["a wildcard as a part of a field, which is none", "db.*:*:*:*:no", undefined],
  ["an escaped star, which is no wildcard", "\\*:*:*:*:no", undefined],
  ["a comment", "#*:*:*:*:no\n*:*:*:*:secret", "secret"],
  ["empty lines", "\n\n*:*:*:*:secret\n", "secret"],
  ["lines of a Windows editor", "*:*:*:you:no\r\n*:*:*:me:secret\r\n", "secret"],
  ["too few fields", "*:*:*:no", undefined],
  ["an empty file", "", undefined],
  ["an empty password", "*:*:*:*:", ""],
  ["an escaped colon and backslash in the password", "*:*:*:*:a\\:b\\\\c", "a:b\\c"],
  ["spaces in the password", "*:*:*:*: a b ", " a b "],
  ["a backslash at the end", "*:*:*:*:a\\", "a\\"],
  ["unicode", "*:*:*:*:ü🚀", "ü🚀"],
];

for (const [what, text, password] of TABLE) {
  test(`the password file is searched: ${what}`, () => {
    assert.equal(lookUp(text, HOST), password);
  });
}

test("escaped colons in host, database and user are read", () => {
  assert.equal(lookUp("\\:\\:1:5432:d\\:b:m\\\\e:secret", { host: "::1", port: 5432 }, "d:b", "m\\e"), "secret");
});

test("a socket folder is found by its path and as localhost", () => {
  const socket = { host: "/var/run/postgresql", port: 5432 };
  assert.equal(lookUp("/var/run/postgresql:*:*:*:by path", socket), "by path");
  assert.equal(lookUp("localhost:*:*:*:by name", socket), "by name");
  assert.equal(lookUp("localhost:*:*:*:by name", HOST), undefined);
});

for (const mode of [0o644, 0o640, 0o604, 0o660, 0o666, 0o601]) {
  test(`a password file of mode ${mode.toString(8)} is ignored`, () => {
    assert.equal(lookUp("*:*:*:*:secret", HOST, "db", "me", 0o100000 | mode), undefined);
  });
}

for (const mode of [0o600, 0o400]) {
  test(`a password file of mode ${mode.toString(8)} is read`, () => {
    assert.equal(lookUp("*:*:*:*:secret", HOST, "db", "me", 0o100000 | mode), "secret");
  });
}

test("no file gives no password", () => {
  const outside = { env: {}, userName: "", homeDir: "", readTextFile: () => undefined, exists: () => false };
  assert.equal(passwordFromFile(PATH, HOST, "db", "me", outside), undefined);
});

test("any fields are found again when they are escaped", () => {
  const field = fc.string({ unit: "grapheme", minLength: 1 }).filter((text) => !/[\r\n]/.test(text));
  const escape = (text: string) => text.replace(/[\\:*]/g, "\\$&");
  fc.assert(fc.property(field, field, field, fc.integer({ min: 1, max: 65535 }), (database, user, password, port) => {
    const line = ["h", String(port), database, user, password].map(escape).join(":");
    assert.equal(lookUp(`x:*:*:*:no\n${line}`, { host: "h", port }, database, user), password);
  }));
});
