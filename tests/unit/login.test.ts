/** Logins against servers that do not keep to the protocol; those that do are PostgreSQL itself, in tests/integration. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, type Socket } from "node:net";
import { test } from "node:test";
import { PermanentError, TransientError } from "../../src/core/errors.ts";
import { ServerConnection } from "../../src/postgres/connection.ts";
import { type ConnectionParams, type Host, parseConnectionUri } from "../../src/postgres/connection_uri.ts";
import { ServerError } from "../../src/postgres/server_error.ts";
import { type Encryption, TlsNotOfferedError } from "../../src/postgres/socket.ts";
import { ScramServer } from "./scram_server.ts";

const int32 = (value: number) => {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32BE(value);
  return bytes;
};

function message(type: string, ...parts: (Uint8Array | string)[]): Buffer {
  const body = Buffer.concat(parts.map((part) => Buffer.from(part as string)));
  return Buffer.concat([Buffer.from(type), int32(body.length + 4), body]);
}

const authentication = (code: number, data: Uint8Array | string = "") => message("R", int32(code), data);
const OK = authentication(0);
const READY = message("Z", "I");
const SASL = authentication(10, "SCRAM-SHA-256\0\0");
const saslContinue = (text: string) => authentication(11, text);
const saslFinal = (text: string) => authentication(12, text);
const errorResponse = (code: string, text: string) => message("E", `SFATAL\0C${code}\0M${text}\0\0`);
const REFUSAL = errorResponse("28P01", "password authentication failed");

/** The other end of one connection. */
class Peer {
  readonly #socket: Socket;
  #received = Buffer.alloc(0);

  constructor(socket: Socket) {
    this.#socket = socket;
    socket.on("error", () => {});
    socket.on("data", (chunk: Buffer) => this.#received = Buffer.concat([this.#received, chunk]));
  }

  get received(): Buffer {
    return this.#received;
  }

  /** In one write, so that the messages arrive in one chunk. */
  send(...messages: readonly Uint8Array[]): void {
    this.#socket.write(Buffer.concat(messages));
  }

  end(): void {
    this.#socket.end();
  }

  async take(bytes: number): Promise<Buffer> {
    while (this.#received.length < bytes) await once(this.#socket, "data");
    const taken = this.#received.subarray(0, bytes);
    this.#received = this.#received.subarray(bytes);
    return taken;
  }

  async startup(): Promise<string> {
    const length = (await this.take(4)).readInt32BE(0);
    return (await this.take(length - 4)).toString("utf8", 4);
  }

  /** The text of the next message's body. */
  async message(): Promise<string> {
    const length = (await this.take(5)).readInt32BE(1);
    return (await this.take(length - 4)).toString();
  }

  /** The client's first SCRAM message. */
  async clientFirst(): Promise<string> {
    const body = await this.message();
    return body.slice(body.indexOf("\0") + 5);
  }

  async closed(): Promise<void> {
    if (!this.#socket.destroyed) await once(this.#socket, "close");
  }
}

type Script = (peer: Peer) => Promise<void>;

interface Options {
  readonly uri?: string;
  readonly encryption?: Encryption;
  readonly signal?: AbortSignal;
}

/**
 * Logs in to a server that follows `script`; waits until both ends are closed. The connection is handed to `use`, and the
 * outcome is what `use` returns or what was thrown.
 */
async function logIn<T>(
  script: Script,
  options: Options,
  use: (connection: ServerConnection) => Promise<T>,
): Promise<T> {
  const server = createServer();
  const ends: Promise<unknown>[] = [];
  server.on("connection", (socket: Socket) => {
    const peer = new Peer(socket);
    ends.push(script(peer).then(() => peer.closed()));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as { port: number };
  const host: Host = { host: "127.0.0.1", port };
  try {
    const connection = await ServerConnection.open(
      paramsOf(options.uri ?? "postgres://user:pencil@127.0.0.1"),
      host,
      options.encryption ?? "plain",
      {},
      options.signal ?? AbortSignal.timeout(20_000),
    );
    try {
      return await use(connection);
    } finally {
      connection.terminate();
    }
  } finally {
    await Promise.all(ends);
    server.close();
    await once(server, "close");
  }
}

function paramsOf(uri: string): ConnectionParams {
  return parseConnectionUri(uri, {
    env: {},
    userName: "nobody",
    homeDir: "/nonexistent",
    readTextFile: () => undefined,
    exists: () => false,
  });
}

const succeeds = (script: Script, options: Options = {}) => logIn(script, options, () => Promise.resolve("logged in"));

/** Checks that the login fails with an error of `kind` whose message fits, and that the socket is closed then. */
async function fails(
  script: Script,
  kind: new (...args: never[]) => Error,
  text: RegExp,
  options: Options = {},
): Promise<void> {
  await assert.rejects(succeeds(script, options), (error) => {
    assert.ok(error instanceof kind, `${error}`);
    assert.match(error.message, text);
    assert.doesNotMatch(error.message, /pencil/);
    return true;
  });
}

function scramServer(clientFirst: string): ScramServer {
  return new ScramServer("pencil", clientFirst, Buffer.from("salt"), 4096);
}

test("a login with SCRAM, step by step", async () => {
  const outcome = succeeds(async (peer) => {
    assert.equal(await peer.startup(), "user\0user\0database\0user\0client_encoding\0UTF8\0\0");
    peer.send(SASL);
    const server = scramServer(await peer.clientFirst());
    peer.send(saslContinue(server.serverFirst));
    const final = server.final(await peer.message());
    assert.ok(final !== undefined, "the proof is wrong");
    peer.send(saslFinal(final), OK, message("S", "a\0b\0"), message("K", Buffer.alloc(8)), READY);
  });
  assert.equal(await outcome, "logged in");
});

test("a login without a password, with one in clear text and with md5", async () => {
  assert.equal(
    await succeeds(async (peer) => {
      await peer.startup();
      peer.send(OK, READY);
    }),
    "logged in",
  );
  await succeeds(async (peer) => {
    await peer.startup();
    peer.send(authentication(3));
    assert.equal(await peer.message(), "pencil\0");
    peer.send(OK, READY);
  });
  await succeeds(async (peer) => {
    await peer.startup();
    peer.send(authentication(5, Uint8Array.of(1, 2, 3, 4)));
    assert.match(await peer.message(), /^md5[0-9a-f]{32}\0$/);
    peer.send(OK, READY);
  });
});

const NOT_PROVEN = /did not prove that it knows the password|does not know this password|out of turn|never finished/;

test("a server that breaks SCRAM off is not believed: at once, after our first message, after its challenge", async () => {
  await fails(
    async (peer) => {
      await peer.startup();
      peer.send(SASL, OK, READY);
    },
    PermanentError,
    NOT_PROVEN,
  );
  await fails(
    async (peer) => {
      await peer.startup();
      peer.send(SASL);
      await peer.clientFirst();
      peer.send(OK, READY);
    },
    PermanentError,
    NOT_PROVEN,
  );
  await fails(
    async (peer) => {
      await peer.startup();
      peer.send(SASL);
      peer.send(saslContinue(scramServer(await peer.clientFirst()).serverFirst), OK, READY);
    },
    PermanentError,
    NOT_PROVEN,
  );
  await fails(
    async (peer) => {
      await peer.startup();
      peer.send(SASL);
      peer.send(saslContinue(scramServer(await peer.clientFirst()).serverFirst));
      await peer.message();
      peer.send(OK, READY);
    },
    PermanentError,
    NOT_PROVEN,
  );
});

const WRONG_SIGNATURES = ["v=AAAA", "v=", "", "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="];

for (const signature of WRONG_SIGNATURES) {
  test(`a server that signs with "${signature}" and goes on in the same chunk is not believed`, async () => {
    await fails(
      async (peer) => {
        await peer.startup();
        peer.send(SASL);
        peer.send(saslContinue(scramServer(await peer.clientFirst()).serverFirst));
        await peer.message();
        peer.send(saslFinal(signature), OK, READY, READY);
      },
      PermanentError,
      NOT_PROVEN,
    );
  });
}

test("a signature that comes before our proof is not believed", async () => {
  await fails(
    async (peer) => {
      await peer.startup();
      peer.send(SASL);
      const { serverFirst } = scramServer(await peer.clientFirst());
      peer.send(saslContinue(serverFirst), saslFinal("v=AAAA"), OK, READY);
    },
    PermanentError,
    NOT_PROVEN,
  );
});

test("SASL messages that nothing was asked for are refused", async () => {
  const challenge = "r=x,s=AAAA,i=1";
  for (const first of [saslContinue(challenge), saslFinal("v=AAAA")]) {
    await fails(
      async (peer) => {
        await peer.startup();
        peer.send(first, READY);
      },
      TransientError,
      /SASL messages out of turn/,
    );
  }
});

test("a SCRAM error of the server is told", async () => {
  await fails(
    async (peer) => {
      await peer.startup();
      peer.send(SASL);
      peer.send(saslContinue(scramServer(await peer.clientFirst()).serverFirst));
      await peer.message();
      peer.send(saslFinal("e=invalid-proof"));
    },
    PermanentError,
    /ended the SCRAM exchange: invalid-proof/,
  );
});

test("an error during the login is the server's", async () => {
  for (const before of [[], [SASL], [OK], [READY]]) {
    await assert.rejects(
      succeeds(async (peer) => {
        await peer.startup();
        peer.send(...before, REFUSAL);
      }),
      (error) => error instanceof ServerError && error.code === "28P01",
      `after ${before.length} messages`,
    );
  }
});

test("ReadyForQuery alone is no login", async () => {
  await assert.rejects(
    succeeds(async (peer) => {
      await peer.startup();
      peer.send(READY, READY, message("S", "a\0b\0"), READY, errorResponse("57P03", "starting up"));
    }),
    (error) => error instanceof ServerError && error.code === "57P03",
  );
});

test("a method that is not supported is named with what to change", async () => {
  await fails(
    async (peer) => {
      await peer.startup();
      peer.send(authentication(7), READY);
    },
    PermanentError,
    /asks for authentication method 7, which is not supported; .* change pg_hba\.conf/,
  );
  await fails(
    async (peer) => {
      await peer.startup();
      peer.send(authentication(10, "SCRAM-SHA-512\0GS2\0\0"));
    },
    PermanentError,
    /offers the SASL mechanisms SCRAM-SHA-512, GS2; SCRAM-SHA-256 is supported/,
  );
});

test("a password that is asked for and not configured is a permanent error, for each method", async () => {
  for (const request of [authentication(3), authentication(5, Buffer.alloc(4)), SASL]) {
    await fails(
      async (peer) => {
        await peer.startup();
        peer.send(request);
      },
      PermanentError,
      /asks for a password for user "user" and none is configured/,
      { uri: "postgres://user@h" },
    );
  }
});

test("channel_binding=require sends no password to a server that does not bind, and believes none", async () => {
  for (const request of [authentication(3), authentication(5, Buffer.alloc(4)), OK, SASL]) {
    let received: Buffer | undefined;
    await fails(
      async (peer) => {
        await peer.startup();
        peer.send(request, READY);
        await peer.closed();
        received = peer.received;
      },
      PermanentError,
      /does not offer channel binding, which channel_binding=require .* asks for/,
      { uri: "postgres://user:pencil@h?channel_binding=require" },
    );
    assert.equal(received?.length, 0);
  }
});

const BROKEN: Array<[what: string, bytes: Buffer, text: RegExp]> = [
  ["something else than the protocol", Buffer.from("HTTP/1.1 400 Bad Request\r\n\r\n"), /length field says/],
  ["an impossible length", Buffer.from("R\0\0\0\x03"), /length field says 3 bytes/],
  ["an authentication without a code", Buffer.from("R\0\0\0\x04"), /./],
];

for (const [what, bytes, text] of BROKEN) {
  test(`a login that is answered with ${what} fails`, async () => {
    await assert.rejects(
      succeeds(async (peer) => {
        await peer.startup();
        peer.send(bytes);
      }),
      text,
    );
  });
}

test("a server that closes during the login is a passing fault", async () => {
  await fails(
    async (peer) => {
      await peer.startup();
      peer.end();
    },
    TransientError,
    /the connection to PostgreSQL at 127\.0\.0\.1:\d+ was lost/,
  );
});

test("a login ends with its signal, also where that came first", async () => {
  const controller = new AbortController();
  await fails(
    async (peer) => {
      await peer.startup();
      controller.abort(new Error("time is up"));
    },
    TransientError,
    /was lost: time is up/,
    { signal: controller.signal },
  );
  await fails(async () => {}, TransientError, /failed: time is up/, { signal: controller.signal });
});

const TLS_ANSWERS: Array<[what: string, answer: Buffer, kind: new (...args: never[]) => Error, text: RegExp]> = [
  ["N", Buffer.from("N"), TlsNotOfferedError, /the server does not offer TLS, which sslmode asks for/],
  ["a letter that means nothing", Buffer.from("X"), TransientError, /its answer to SSLRequest is malformed/],
  ["an error message", REFUSAL, TransientError, /its answer to SSLRequest is malformed/],
  ["S and more bytes (CVE-2021-23222)", Buffer.concat([Buffer.from("S"), OK, READY]), TransientError, /malformed/],
  ["N and more bytes", Buffer.concat([Buffer.from("N"), OK, READY]), TransientError, /malformed/],
];

for (const [what, answer, kind, text] of TLS_ANSWERS) {
  test(`SSLRequest that is answered with ${what} ends the attempt`, async () => {
    let request = "";
    await fails(
      async (peer) => {
        request = (await peer.take(8)).toString("hex");
        peer.send(answer);
      },
      kind,
      text,
      { encryption: "tls" },
    );
    assert.equal(request, "0000000804d2162f");
  });
}

test("a server that takes TLS and then talks something else, or closes, ends the attempt", async () => {
  await fails(
    async (peer) => {
      await peer.take(8);
      peer.send(Buffer.from("S"));
      await peer.take(1);
      peer.send(OK, READY, Buffer.alloc(64));
    },
    TransientError,
    /TLS with PostgreSQL at 127\.0\.0\.1:\d+ failed/,
    { encryption: "tls" },
  );
  await fails(
    async (peer) => {
      await peer.take(8);
      peer.end();
    },
    TransientError,
    /the server closed the connection/,
    { encryption: "tls" },
  );
});

const loggedIn: Script = async (peer) => {
  await peer.startup();
  peer.send(OK, READY);
};

test("a query that waits is told when the connection says goodbye, is lost, or is closed already", async () => {
  await logIn(loggedIn, {}, async (connection) => {
    const waiting = connection.query("select 1");
    connection.terminate();
    await assert.rejects(waiting, TransientError);
    await assert.rejects(connection.query("select 1"), TransientError);
    assert.match((await connection.lost).message, /was lost: closed/);
  });
  const script: Script = async (peer) => {
    await loggedIn(peer);
    await peer.message();
    peer.end();
  };
  await logIn(script, {}, async (connection) => {
    await assert.rejects(connection.query("select 1"), TransientError);
  });
});

test("a data row that does not fit ends the connection", async () => {
  const script: Script = async (peer) => {
    await loggedIn(peer);
    await peer.message();
    peer.send(message("T", Buffer.alloc(2)), message("D", Buffer.from([0, 9, 0, 0, 0, 99])), READY);
  };
  await logIn(script, {}, async (connection) => {
    await assert.rejects(connection.query("select 1"), /was lost: .*DataRow/);
  });
});

test("an error after the login, with no command waiting, ends the connection and tells why", async () => {
  const script: Script = async (peer) => {
    await loggedIn(peer);
    peer.send(errorResponse("57P01", "terminating connection due to administrator command"));
  };
  await logIn(script, {}, async (connection) => {
    assert.match((await connection.lost).message, /administrator command/);
  });
});
