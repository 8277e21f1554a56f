import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
  type ConnectionParams,
  ConnectionUriError,
  type Host,
  parseConnectionUri,
  type UriEnvironment,
} from "../../src/postgres/connection_uri.ts";

interface Outside {
  readonly env?: Record<string, string>;
  readonly files?: Record<string, string>;
}

function outside({ env = {}, files = {} }: Outside = {}): UriEnvironment {
  return {
    env,
    userName: "os_user",
    homeDir: "/home/os_user",
    readTextFile: (path) => files[path] === undefined ? undefined : { text: files[path], mode: 0o100600 },
    exists: (path) => files[path] !== undefined,
  };
}

const parse = (uri: string, around?: Outside) => parseConnectionUri(uri, outside(around));
const host = (name: string, port = 5432): Host => ({ host: name, port });

type Expected = Partial<Omit<ConnectionParams, "password">> & { readonly password?: string | undefined };

/** The named fields; the password is that for the first host. */
function fields(params: ConnectionParams, names: readonly string[]): Record<string, unknown> {
  const all: Record<string, unknown> = { ...params, password: params.password(params.hosts[0]!) };
  return Object.fromEntries(names.map((name) => [name, all[name]]));
}

const FORMS: Array<[uri: string, expected: Expected]> = [
  ["postgresql://username:password@domain.tld:5433/database", {
    user: "username",
    password: "password",
    hosts: [host("domain.tld", 5433)],
    database: "database",
  }],
  ["postgres://h", { user: "os_user", database: "os_user", hosts: [host("h")], password: undefined }],
  ["postgres://u@h", { user: "u", database: "u", password: undefined }],
  ["postgres://u:@h/d", { user: "u", password: undefined, database: "d" }],
  ["postgres://:p@h/", { user: "os_user", password: "p", database: "os_user" }],
  ["postgres://", { hosts: [host("localhost")], user: "os_user" }],
  ["postgres:///d", { hosts: [host("localhost")], database: "d" }],
  ["postgres://:6000", { hosts: [host("localhost", 6000)] }],
  ["postgres://h?", { hosts: [host("h")] }],
  ["postgres://h/?", { hosts: [host("h")] }],
  ["postgres://h/d?&&", { hosts: [host("h")], database: "d" }],
  // Percent-encoding.
  ["postgres://a%40b:c%3Ad%2Fe%3Ff%23g%25@h/da%2Ftabase", {
    user: "a@b",
    password: "c:d/e?f#g%",
    database: "da/tabase",
  }],
  ["postgres://u:%C3%BC%F0%9F%9A%80@h", { password: "ü🚀" }],
  ["postgres://u:a:b:c@h", { user: "u", password: "a:b:c" }],
  ["postgres://u:a#b+c&d=e@h", { password: "a#b+c&d=e" }],
  ["postgres://h/d%20b?options=-c%20x%3Dy%20-c%20z=1+2", { database: "d b", options: "-c x=y -c z=1+2" }],
  // Hosts.
  ["postgres://h1,h2:2,h3:3/d", { hosts: [host("h1"), host("h2", 2), host("h3", 3)] }],
  ["postgres://h1:1,h2:2", { hosts: [host("h1", 1), host("h2", 2)] }],
  ["postgres://h1,h2?port=7", { hosts: [host("h1", 7), host("h2", 7)] }],
  ["postgres://h1,h2?port=7,8", { hosts: [host("h1", 7), host("h2", 8)] }],
  ["postgres://h1,h2?port=,8", { hosts: [host("h1"), host("h2", 8)] }],
  ["postgres://?host=h1,h2&port=7", { hosts: [host("h1", 7), host("h2", 7)] }],
  ["postgres://h1?host=h2", { hosts: [host("h2")] }],
  ["postgres://[::1]/d", { hosts: [host("::1")] }],
  ["postgres://u:p@[2001:db8::1]:5433,[::2],127.0.0.1:1/d", {
    hosts: [host("2001:db8::1", 5433), host("::2"), host("127.0.0.1", 1)],
  }],
  // Socket folders.
  ["postgres://%2Fvar%2Frun%2Fpostgresql:5433/d", { hosts: [host("/var/run/postgresql", 5433)], database: "d" }],
  ["postgres:///d?host=/tmp&port=5433", { hosts: [host("/tmp", 5433)] }],
  ["postgres:///d?host=%2Ftmp,h", { hosts: [host("/tmp"), host("h")] }],
  // Parameters.
  ["postgres://h?user=u&password=p&dbname=d", { user: "u", password: "p", database: "d" }],
  ["postgres://a:b@h/c?user=u&password=p&dbname=d", { user: "u", password: "p", database: "d" }],
  ["postgres://h?user=me@example.org&password=a@b", { user: "me@example.org", password: "a@b" }],
  ["postgres://h?user=", { user: "os_user" }],
  ["postgres://h?sslmode=verify-full&sslrootcert=/ca&sslcert=/c&sslkey=/k&sslpassword=s", {
    sslMode: "verify-full",
    sslRootCert: "/ca",
    sslCert: "/c",
    sslKey: "/k",
    sslPassword: "s",
  }],
  ["postgres://h?sslrootcert=system", { sslRootCert: "system" }],
  ["postgres://h?channel_binding=require&target_session_attrs=standby&connect_timeout=3", {
    channelBinding: "require",
    targetSessionAttrs: "standby",
    connectTimeoutMs: 3000,
  }],
  ["postgres://h?connect_timeout=0", { connectTimeoutMs: 0 }],
  ["postgres://h?gssencmode=prefer", { hosts: [host("h")] }],
  ["postgres://h?sslmode=disable&sslmode=require", { sslMode: "require" }],
  // Defaults.
  ["postgres://h", {
    sslMode: "prefer",
    sslRootCert: undefined,
    sslCert: undefined,
    sslKey: undefined,
    sslPassword: undefined,
    channelBinding: "prefer",
    targetSessionAttrs: "any",
    connectTimeoutMs: 10_000,
    options: undefined,
  }],
  ["postgres://h1,h2", { targetSessionAttrs: "read-write" }],
  ["postgres://h1,h2?target_session_attrs=any", { targetSessionAttrs: "any" }],
];

for (const [uri, expected] of FORMS) {
  test(`the connection URI ${uri} is read`, () => {
    assert.deepEqual(fields(parse(uri), Object.keys(expected)), expected);
  });
}

const ALL_VARIABLES = {
  PGHOST: "env-host",
  PGPORT: "6000",
  PGUSER: "env_user",
  PGPASSWORD: "env password",
  PGDATABASE: "env_db",
  PGSSLMODE: "require",
  PGSSLROOTCERT: "/env/ca",
  PGSSLCERT: "/env/cert",
  PGSSLKEY: "/env/key",
  PGCHANNELBINDING: "disable",
  PGTARGETSESSIONATTRS: "primary",
  PGCONNECT_TIMEOUT: "5",
  PGOPTIONS: "-c a=b",
};

const VARIABLES: Array<[uri: string, env: Record<string, string>, expected: Expected]> = [
  ["postgres://", ALL_VARIABLES, {
    hosts: [host("env-host", 6000)],
    user: "env_user",
    password: "env password",
    database: "env_db",
    sslMode: "require",
    sslRootCert: "/env/ca",
    sslCert: "/env/cert",
    sslKey: "/env/key",
    channelBinding: "disable",
    targetSessionAttrs: "primary",
    connectTimeoutMs: 5000,
    options: "-c a=b",
  }],
  ["postgres://u:p@h:1/d?sslmode=disable&sslrootcert=/ca&connect_timeout=1&options=x", ALL_VARIABLES, {
    hosts: [host("h", 1)],
    user: "u",
    password: "p",
    database: "d",
    sslMode: "disable",
    sslRootCert: "/ca",
    connectTimeoutMs: 1000,
    options: "x",
  }],
  ["postgres://h", { PGPORT: "6000" }, { hosts: [host("h", 6000)] }],
  ["postgres://:1", { PGHOST: "e" }, { hosts: [host("e", 1)] }],
  ["postgres://", { PGHOST: "a,b", PGPORT: "1,2" }, { hosts: [host("a", 1), host("b", 2)] }],
  ["postgres://", { PGHOST: "/sockets" }, { hosts: [host("/sockets")] }],
  ["postgres://u@h", { PGDATABASE: "" }, { database: "u" }],
  ["postgres://h", { PGUSER: "e" }, { user: "e", database: "e" }],
  ["postgres://h?user=&password=", { PGUSER: "e", PGPASSWORD: "p" }, { user: "e", password: "p" }],
];

for (const [uri, env, expected] of VARIABLES) {
  test(`${Object.keys(env).join(", ").slice(0, 40)} stand in for what ${uri} leaves out`, () => {
    assert.deepEqual(fields(parse(uri, { env }), Object.keys(expected)), expected);
  });
}

test("without a host the socket folders that exist are taken, Debian's first", () => {
  assert.deepEqual(parse("postgres://", { files: { "/tmp": "" } }).hosts, [host("/tmp")]);
  const both = { "/tmp": "", "/var/run/postgresql": "" };
  assert.deepEqual(parse("postgres://", { files: both }).hosts, [host("/var/run/postgresql")]);
  assert.deepEqual(parse("postgres://,h", { files: both }).hosts, [host("/var/run/postgresql"), host("h")]);
});

test("certificates in ~/.postgresql are taken where they exist and nothing else is said", () => {
  const folder = "/home/os_user/.postgresql";
  const files = { [`${folder}/root.crt`]: "", [`${folder}/postgresql.crt`]: "", [`${folder}/postgresql.key`]: "" };
  const { sslRootCert, sslCert, sslKey } = parse("postgres://h?sslcert=/mine", { files });
  assert.deepEqual([sslRootCert, sslCert, sslKey], [`${folder}/root.crt`, "/mine", `${folder}/postgresql.key`]);
});

test("the password comes from the URI, PGPASSWORD or the password file, in this order", () => {
  const files = { "/home/os_user/.pgpass": "*:*:*:*:standard", "/a": "*:*:*:*:a", "/b": "*:*:*:*:b" };
  const password = (uri: string, env: Record<string, string> = {}) => {
    return parse(uri, { env, files }).password(host("h"));
  };
  assert.equal(password("postgres://u:uri@h", { PGPASSWORD: "env" }), "uri");
  assert.equal(password("postgres://u@h", { PGPASSWORD: "env", PGPASSFILE: "/a" }), "env");
  assert.equal(password("postgres://u@h?passfile=/b", { PGPASSFILE: "/a" }), "b");
  assert.equal(password("postgres://u@h", { PGPASSFILE: "/a" }), "a");
  assert.equal(password("postgres://u@h"), "standard");
  assert.equal(password("postgres://u@h?passfile=/missing"), undefined);
});

const FAULTS: Array<[uri: string, message: RegExp]> = [
  ["", /cannot be read: expected postgresql:\/\/user:password@host:port\/database/],
  ["mysql://h", /cannot be read/],
  ["h:5432/d", /cannot be read/],
  ["postgres:/h", /cannot be read/],
  ["host=h user=u", /cannot be read/],
  ["postgres://h?application_name=x", /"application_name" .* is fixed to pg-event-proxy/],
  ["postgres://h:1?user=me%40x&nonsense=1", /the parameter "nonsense" .* is not known/],
  ["postgres://h?user=me@x&nonsense=1", /the parameter "nonsense" .* is not known/],
  ["postgres://h?nonsense=1", /the parameter "nonsense" .* is not known; known are host, port/],
  ["postgres://h?toString=1", /the parameter "toString" .* is not known/],
  ["postgres://h?__proto__=1", /the parameter "__proto__" .* is not known/],
  ["postgres://h?sslmode", /the parameter "sslmode" .* has no value/],
  ["postgres://h?sslmode=no", /sslmode "no" .* allowed are disable, allow, prefer, require, verify-ca, verify-full/],
  ["postgres://h?channel_binding=no", /channel_binding "no" .* allowed are disable, prefer, require/],
  ["postgres://h?target_session_attrs=x", /target_session_attrs "x" .* allowed are any, read-write/],
  ["postgres://h?connect_timeout=soon", /connect_timeout "soon" .* is not a whole number/],
  ["postgres://h?connect_timeout=-1", /connect_timeout "-1" .* is not a whole number/],
  ["postgres://h?gssencmode=require", /gssencmode "require" is not possible/],
  ["postgres://h:0", /the port "0" .* is out of range: 1 to 65535/],
  ["postgres://h:65536", /the port "65536" .* is out of range/],
  ["postgres://h:x", /port "x" .* is not a whole number/],
  ["postgres://h:5432:1", /port "5432:1" .* is not a whole number/],
  ["postgres://h:12345678901", /port "12345678901" .* is not a whole number/],
  ["postgres://[::1", /the host "\[::1" .* cannot be read/],
  ["postgres://[::1]x:1", /the host "\[::1\]x:1" .* cannot be read/],
  ["postgres://h1,h2,h3?port=1,2", /names 3 hosts and 2 ports: give one port, or one for each host/],
  ["postgres://h%", /the host .* holds a "%" that begins no percent-encoded character/],
  ["postgres://u%zz@h", /the user name .* holds a "%"/],
  ["postgres://h/d%e9", /the database name .* holds a "%"/],
  ["postgres://h?options=%", /the parameter options .* holds a "%"/],
  ["postgres://u%00replication%00true@h", /the user name .* holds %00: remove it/],
  ["postgres://h?options=%00", /the parameter options .* holds %00/],
];

for (const [uri, message] of FAULTS) {
  test(`the connection URI "${uri}" is refused`, () => {
    assert.throws(() => parse(uri), (error) => {
      assert.ok(error instanceof ConnectionUriError, String(error));
      assert.match(error.message, message);
      assert.doesNotMatch(error.message, /\n/);
      return true;
    });
  });
}

/** Faulty on purpose: the password, SeCrEt with a special character in it, is not encoded, or something else is wrong. */
const LEAKY = [
  "postgres://user:SeCrEt@h:x/d",
  "postgres://user:SeCrEt%@h/d",
  "postgres://user:SeCrEt%00@h/d",
  "postgres://user:SeCrEt@h/d?sslmode=x",
  "postgres://user:SeCrEt@h/d?nonsense=x",
  "postgres://user:SeCrEt@[h/d",
  "postgres://user:p@SeCrEt@h/d",
  "postgres://user:p@SeCrEt:SeCrEt@h:5432/d",
  "postgres://user:p/SeCrEt@h/d",
  "postgres://user:SeCrEt/p@h/d",
  "postgres://user:12/SeCrEt@h/d",
  "postgres://user:12/34?SeCrEt@h/d",
  "postgres://user:p?SeCrEt@h/d",
  "postgres://user:SeCrEt?p@h/d",
  "postgres://user:SeCrEt?p=q@h/d",
  "postgres://user:12?SeCrEt@h/d?x=y",
  "postgres://user:12?SeCrEt=x@h/d",
  "postgres://us[er:SeCrEt?host=x@h/d",
  "postgresql:/user:SeCrEt@h/d",
  "user:SeCrEt@h/d",
  "postgres://h/d?password=SeCrEt%",
  "postgres://h/d?password=SeCrEt&sslmode=x",
  "postgres://h/d?sslpassword=SeCrEt&port=x",
];

for (const uri of LEAKY) {
  test(`the refusal of ${uri} does not show the password`, () => {
    assert.throws(() => parse(uri), (error) => {
      assert.ok(error instanceof ConnectionUriError, String(error));
      assert.doesNotMatch(error.message, /SeCrEt/);
      return true;
    });
  });
}

test("any user, password and database are read back from their encoded form", () => {
  const text = fc.string({ unit: "grapheme", minLength: 1 }).filter((text) => !text.includes("\0"));
  fc.assert(fc.property(text, text, text, (user, password, database) => {
    const [u, p, d] = [user, password, database].map(encodeURIComponent);
    const expected = { user, password, database };
    assert.deepEqual(fields(parse(`postgres://${u}:${p}@h/${d}`), Object.keys(expected)), expected);
    assert.deepEqual(
      fields(parse(`postgres://h?user=${u}&password=${p}&dbname=${d}`), Object.keys(expected)),
      expected,
    );
  }));
});

test("random text is read or refused with a ConnectionUriError, and nothing else", () => {
  const part = fc.constantFrom(..."@:/?#%[],&=ab1 ", "%41", "sslmode", "host", "🚀");
  fc.assert(fc.property(fc.array(part, { maxLength: 30 }), (parts) => {
    try {
      parse(`postgres://${parts.join("")}`);
    } catch (error) {
      assert.ok(error instanceof ConnectionUriError, String(error));
    }
  }));
});
