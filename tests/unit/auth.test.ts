import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { type ChannelBinding, md5Password, saslPrep, ScramClient, ScramError } from "../../src/postgres/auth.ts";
import { ScramServer } from "./scram_server.ts";

test("an md5 password is what PostgreSQL computes", () => {
  // By md5sum: inner=$(printf secretalice | md5sum), then (printf "$inner"; printf '\001\002\003\004') | md5sum.
  assert.equal(md5Password("alice", "secret", Uint8Array.of(1, 2, 3, 4)), "md598a0412b9c31436fc53776e863350083");
});

/** RFC 7677, section 3. */
const RFC = {
  user: "user",
  password: "pencil",
  nonce: "rOprNGfwEbeRWgbNEkqO",
  clientFirst: "n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
  serverFirst: "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
  clientFinal: "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0," +
    "p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
  serverFinal: "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
};

const rfcClient = () => new ScramClient(RFC.password, { kind: "unsupported" }, RFC.nonce);

test("SCRAM-SHA-256 exchanges the messages of RFC 7677", async () => {
  const client = rfcClient();
  assert.equal(client.clientFirst(RFC.user), RFC.clientFirst);
  assert.equal(await client.clientFinal(RFC.serverFirst, RFC.user), RFC.clientFinal);
  client.verify(RFC.serverFinal);
});

test("SCRAM escapes = and , in the user name", () => {
  assert.equal(rfcClient().clientFirst("a=b,c"), `n,,n=a=3Db=2Cc,r=${RFC.nonce}`);
});

test("SCRAM takes a nonce of its own each time", () => {
  const nonces = Array.from({ length: 20 }, () => new ScramClient("", { kind: "unsupported" }).clientFirst().slice(8));
  assert.equal(new Set(nonces).size, 20);
  assert.ok(nonces.every((nonce) => /^[\x21-\x2b\x2d-\x7e]{24}$/.test(nonce)));
});

const TAMPERED: Array<[what: string, serverFirst: string]> = [
  ["nothing", ""],
  ["another nonce", RFC.serverFirst.replace("r=rOpr", "r=rOpX")],
  ["our nonce and nothing added", `r=${RFC.nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096`],
  ["our nonce behind another", `r=x${RFC.nonce}y,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096`],
  ["no salt", RFC.serverFirst.replace(/,s=[^,]+/, "")],
  ["a salt that is not base64", RFC.serverFirst.replace(/s=[^,]+/, "s=%%%")],
  ["no iterations", RFC.serverFirst.replace(",i=4096", "")],
  ["0 iterations", RFC.serverFirst.replace("4096", "0")],
  ["negative iterations", RFC.serverFirst.replace("4096", "-1")],
  ["iterations beyond bounds", RFC.serverFirst.replace("4096", "9999999999")],
  ["a mandatory extension", `m=x,${RFC.serverFirst}`],
  ["its parts in another order", "s=W22ZaJ0SNY7soEsUEjb6gQ==,r=rOprNGfwEbeRWgbNEkqOx,i=4096"],
  ["a line break", `${RFC.serverFirst}\n`],
];

for (const [what, serverFirst] of TAMPERED) {
  test(`SCRAM refuses a server's first message with ${what}`, async () => {
    await assert.rejects(rfcClient().clientFinal(serverFirst, RFC.user), ScramError);
  });
}

const WRONG_FINALS: Array<[what: string, serverFinal: string]> = [
  ["nothing", ""],
  ["another signature", RFC.serverFinal.replace("v=6", "v=7")],
  ["a signature cut short", RFC.serverFinal.slice(0, -1)],
  ["an empty signature", "v="],
  ["something before it", `x=1,${RFC.serverFinal}`],
];

for (const [what, serverFinal] of WRONG_FINALS) {
  test(`SCRAM refuses a server's last message with ${what}`, async () => {
    const client = rfcClient();
    await client.clientFinal(RFC.serverFirst, RFC.user);
    assert.throws(() => client.verify(serverFinal), (error) => {
      return error instanceof ScramError && error.message.includes("does not know this password");
    });
  });
}

test("SCRAM tells the server's error, and takes extensions behind the signature", async () => {
  const client = rfcClient();
  await client.clientFinal(RFC.serverFirst, RFC.user);
  assert.throws(() => client.verify("e=invalid-proof"), /ended the SCRAM exchange: invalid-proof/);
  client.verify(`${RFC.serverFinal},x=1`);
});

test("SCRAM verifies nothing before its proof is made", () => {
  assert.throws(() => rfcClient().verify(RFC.serverFinal), ScramError);
  assert.throws(() => rfcClient().verify("v="), ScramError);
  assert.throws(() => rfcClient().verify("v=undefined"), ScramError);
});

test("SCRAM proves any password to a server that knows it, and to no other", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.string({ maxLength: 40 }),
      fc.uint8Array({ minLength: 1, maxLength: 32 }),
      fc.integer({ min: 1, max: 50 }),
      async (password, salt, iterations) => {
        const client = new ScramClient(password, { kind: "unsupported" });
        const first = client.clientFirst();
        const server = new ScramServer(password, first, Buffer.from(salt), iterations);
        const other = new ScramServer(`${password}x`, first, Buffer.from(salt), iterations);
        const final = await client.clientFinal(server.serverFirst);
        assert.equal(other.final(final), undefined);
        const serverFinal = server.final(final);
        assert.ok(serverFinal !== undefined);
        client.verify(serverFinal);
      },
    ),
    { numRuns: 50 },
  );
});

const BINDINGS: Array<[binding: ChannelBinding, header: string, data: string]> = [
  [{ kind: "unsupported" }, "n,,", ""],
  [{ kind: "not-offered" }, "y,,", ""],
  [{ kind: "tls-server-end-point", data: Uint8Array.of(0, 255, 128) }, "p=tls-server-end-point,,", "00ff80"],
];

for (const [binding, header, data] of BINDINGS) {
  test(`SCRAM says of channel binding: ${binding.kind}`, async () => {
    const client = new ScramClient("pw", binding, "abc");
    assert.equal(client.clientFirst(), `${header}n=,r=abc`);
    const [, channel] = /^c=([^,]+),/.exec(await client.clientFinal("r=abcdef,s=AAAA,i=1"))!;
    const expected = Buffer.concat([Buffer.from(header), Buffer.from(data, "hex")]);
    assert.equal(Buffer.from(channel!, "base64").toString("hex"), expected.toString("hex"));
  });
}

/** RFC 4013, section 3, and what pg_saslprep does with the rest. */
const PREPARED: Array<[what: string, password: string, prepared: string]> = [
  ["ASCII", "pencil $%^", "pencil $%^"],
  ["nothing", "", ""],
  ["a soft hyphen", "I\u00adX", "IX"],
  ["case", "USER", "USER"],
  ["a feminine ordinal", "\u00aa", "a"],
  ["a roman numeral", "\u2168", "IX"],
  ["a no-break space", "a\u00a0b", "a b"],
  ["an ideographic space", "a\u3000b", "a b"],
  ["a zero width space, which becomes a space", "a\u200bb", "a b"],
  ["a zero width joiner", "a\u200db", "ab"],
  ["a decomposed letter", "e\u0301", "\u00e9"],
  ["a ligature", "\ufb01", "fi"],
  ["an emoji", "\u{1f680}", "\u{1f680}"],
  ["only characters that are mapped to nothing", "\u00ad\u200d", "\u00ad\u200d"],
  ["a control character in ASCII", "a\u0007", "a\u0007"],
  ["a control character and a ligature", "\ufb01\u0007", "\ufb01\u0007"],
  ["a private-use character", "\ufb01\ue000", "\ufb01\ue000"],
  ["a non-character", "\ufb01\ufdd0", "\ufb01\ufdd0"],
  ["a lone surrogate", "\ufb01\ud800", "\ufb01\ud800"],
  ["a line separator", "\ufb01\u2028", "\ufb01\u2028"],
  ["a replacement character", "\ufb01\ufffd", "\ufb01\ufffd"],
  ["an ideographic description", "\ufb01\u2ff0", "\ufb01\u2ff0"],
  ["a direction mark", "\ufb01\u200e", "\ufb01\u200e"],
  ["a tag", "\ufb01\u{e0041}", "\ufb01\u{e0041}"],
];

for (const [what, password, prepared] of PREPARED) {
  test(`SASLprep of ${what}`, () => {
    assert.equal(saslPrep(password), prepared);
  });
}

test("SASLprep leaves printable ASCII alone", () => {
  fc.assert(fc.property(fc.string({ unit: "grapheme-ascii" }), (password) => {
    assert.equal(saslPrep(password), password);
  }));
});
