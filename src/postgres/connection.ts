/** One connection that speaks the protocol itself: login, simple queries, and the two-way copy of replication. */

import type { Socket } from "node:net";
import { errorText, PermanentError, TransientError } from "../core/errors.ts";
import { type ChannelBinding, md5Password, ScramClient, ScramError, tlsServerEndPoint } from "./auth.ts";
import type { ConnectionParams, Host } from "./connection_uri.ts";
import { Framer } from "./framer.ts";
import {
  Backend,
  cString,
  parseDataRow,
  parseErrorFields,
  parseSaslMechanisms,
  passwordMessage,
  query,
  saslInitialResponse,
  saslResponse,
  startupMessage,
  TERMINATE,
} from "./protocol.ts";
import { missingPassword, ServerError } from "./server_error.ts";
import { destroySocket, type Encryption, hostText, isUnixSocket, openSocket, type ServerSocket } from "./socket.ts";

export type Row = readonly (string | null)[];

/** Receives the body of each CopyData of a two-way copy. */
export type CopyHandler = (buffer: Buffer, start: number, end: number) => void;

/** Why the socket is not read; a bit each. */
export const enum PauseReason {
  /** A lane holds more than its bound. */
  Congestion = 1,
  /** The walsender is given time to fill the socket. */
  Rest = 2,
}

/** What the connection is waiting for. */
type Waiting =
  | { readonly kind: "login"; resolve(): void; reject(error: Error): void }
  | { readonly kind: "rows"; rows: Row[]; failure?: Error; resolve(rows: Row[]): void; reject(error: Error): void }
  | { readonly kind: "copy"; readonly onData: CopyHandler; resolve(): void; reject(error: Error): void }
  | { readonly kind: "nothing" };

/** Codes of Authentication messages: "Message Formats". */
const AUTH_OK = 0;
const AUTH_CLEARTEXT = 3;
const AUTH_MD5 = 5;
const AUTH_SASL = 10;
const AUTH_SASL_CONTINUE = 11;
const AUTH_SASL_FINAL = 12;

/** How long the server may take to read our goodbye, in milliseconds. */
const FAREWELL_MS = 1_000;

export class ServerConnection {
  readonly #params: ConnectionParams;
  readonly #host: Host;
  readonly #server: ServerSocket;
  readonly #socket: Socket;
  readonly #framer = new Framer((type, buffer, start, end) => this.#receive(type, buffer, start, end));
  readonly #lost = Promise.withResolvers<Error>();
  #waiting: Waiting = { kind: "nothing" };
  #copy: CopyHandler | undefined;
  #copyEnded = Promise.withResolvers<void>();
  #scram: ScramClient | undefined;
  /** Set at once when the server asks for SASL: the answer to it takes a moment. */
  #saslAsked = false;
  #scramVerified = false;
  #channelBound = false;
  #authenticated = false;
  #closed = false;
  #pauseReasons = 0;
  /** Called before and after the messages of each chunk that the socket delivered. */
  onChunkStart: () => void = () => {};
  onChunkEnd: (bytes: number) => void = () => {};
  /** Called for each NoticeResponse. */
  onNotice: (notice: Readonly<Record<string, string>>) => void = () => {};

  private constructor(params: ConnectionParams, host: Host, server: ServerSocket) {
    this.#params = params;
    this.#host = host;
    this.#server = server;
    this.#socket = server.socket;
    this.#socket.on("data", (chunk: Buffer) => this.#onData(chunk));
    this.#socket.on("error", (error: Error) => this.#fail(`${errorText(error)}`));
    this.#socket.on("close", () => this.#fail("the server closed the connection"));
  }

  /** Logs in. Throws ServerError for what the server says, PermanentError and TransientError for the rest. */
  static async open(
    params: ConnectionParams,
    host: Host,
    encryption: Encryption,
    startup: Readonly<Record<string, string>>,
    signal: AbortSignal,
  ): Promise<ServerConnection> {
    const server = await openSocket(params, host, encryption, signal);
    const connection = new ServerConnection(params, host, server);
    const onAbort = () => connection.#fail(errorText(signal.reason));
    signal.addEventListener("abort", onAbort);
    if (signal.aborted) onAbort();
    try {
      await connection.#login({ user: params.user, database: params.database, client_encoding: "UTF8", ...startup });
      return connection;
    } catch (error) {
      connection.destroy();
      throw error;
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
  }

  /** Resolves with the cause when the connection is gone, also after `terminate`. */
  get lost(): Promise<Error> {
    return this.#lost.promise;
  }

  get where(): string {
    return hostText(this.#host);
  }

  get host(): Host {
    return this.#host;
  }

  /** What was negotiated, `TLSv1.3 TLS_AES_256_GCM_SHA384`; undefined without TLS. */
  get tls(): string | undefined {
    return this.#server.tls;
  }

  /** Whether the login was bound to the TLS channel (SCRAM-SHA-256-PLUS). */
  get channelBound(): boolean {
    return this.#channelBound;
  }

  /** Bytes that were read off the socket while it was paused: the next chunk. */
  get unreadBytes(): number {
    return this.#socket.readableLength;
  }

  /** Runs one statement by the simple query protocol and returns its rows as text. Throws ServerError. */
  query(sql: string): Promise<Row[]> {
    return new Promise((resolve, reject) => {
      if (this.#closed) return reject(this.#error("the connection is closed"));
      this.#waiting = { kind: "rows", rows: [], resolve, reject };
      this.#socket.write(query(sql));
    });
  }

  /** Sends a command that the server answers with CopyBothResponse; resolves when it has. Throws ServerError. */
  copyBoth(sql: string, onData: CopyHandler): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.#closed) return reject(this.#error("the connection is closed"));
      this.#waiting = { kind: "copy", onData, resolve, reject };
      this.#socket.write(query(sql));
    });
  }

  /** Resolves when the server has ended the copy and is ready for the next command. */
  get copyEnded(): Promise<void> {
    return this.#copyEnded.promise;
  }

  write(bytes: Uint8Array): void {
    if (!this.#closed) this.#socket.write(bytes);
  }

  /** Stops reading until every reason that was given is taken back by `resume`. */
  pause(reason: PauseReason): void {
    this.#pauseReasons |= reason;
    this.#socket.pause();
  }

  resume(reason: PauseReason): void {
    this.#pauseReasons &= ~reason;
    if (this.#pauseReasons === 0 && !this.#closed) this.#socket.resume();
  }

  /** Whether reading from it costs the server a wake-up for each packet: not so on a Unix socket, which has no packets. */
  get hasPackets(): boolean {
    return !isUnixSocket(this.#host);
  }

  /** Says goodbye and closes. */
  terminate(): void {
    if (this.#closed) return;
    this.#end("closed");
    this.#socket.removeAllListeners();
    this.#socket.on("error", () => {});
    // A server that does not read would keep the socket open.
    const timer = setTimeout(() => this.#socket.destroy(), FAREWELL_MS);
    this.#socket.end(TERMINATE, () => {
      clearTimeout(timer);
      this.#socket.destroy();
    });
    this.#socket.resume();
  }

  /** Closes without a word; whoever waits is told `reason`. */
  destroy(reason = "closed"): void {
    this.#fail(reason);
  }

  #onData(chunk: Buffer): void {
    if (this.#closed) return;
    this.onChunkStart();
    try {
      this.#framer.push(chunk);
    } catch (error) {
      this.#fail(errorText(error));
      return;
    }
    this.onChunkEnd(chunk.length);
  }

  #error(reason: string): TransientError {
    return new TransientError(`the connection to PostgreSQL at ${this.where} was lost: ${reason}`);
  }

  #fail(reason: string): void {
    if (this.#closed) return;
    destroySocket(this.#socket);
    this.#end(reason);
  }

  /** Tells whoever waits. */
  #end(reason: string): void {
    this.#closed = true;
    const error = this.#error(reason);
    const waiting = this.#waiting;
    this.#waiting = { kind: "nothing" };
    if (waiting.kind !== "nothing") waiting.reject(error);
    this.#lost.resolve(error);
  }

  #login(parameters: Readonly<Record<string, string>>): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.#closed) return reject(this.#error("the connection is closed"));
      this.#waiting = { kind: "login", resolve, reject };
      this.#socket.write(startupMessage(parameters));
      this.#socket.resume();
    });
  }

  #receive(type: number, buffer: Buffer, start: number, end: number): void {
    if (this.#closed) return;
    if (type === Backend.CopyData) {
      this.#copy?.(buffer, start, end);
      return;
    }
    switch (type) {
      case Backend.Authentication:
        this.#authenticate(buffer, start, end).catch((error: Error) => this.#reject(error));
        break;
      case Backend.ReadyForQuery:
        this.#ready();
        break;
      case Backend.DataRow:
        if (this.#waiting.kind === "rows") this.#waiting.rows.push(parseDataRow(buffer, start, end));
        break;
      case Backend.RowDescription:
        if (this.#waiting.kind === "rows") this.#waiting.rows = [];
        break;
      case Backend.CopyBothResponse:
        if (this.#waiting.kind === "copy") {
          this.#copy = this.#waiting.onData;
          this.#copyEnded = Promise.withResolvers<void>();
          this.#waiting.resolve();
          this.#waiting = { kind: "nothing" };
        }
        break;
      case Backend.ErrorResponse:
        this.#serverError(new ServerError(parseErrorFields(buffer, start, end)));
        break;
      case Backend.NoticeResponse:
        this.onNotice(parseErrorFields(buffer, start, end));
        break;
    }
  }

  #ready(): void {
    if (this.#copy !== undefined) {
      this.#copy = undefined;
      this.#copyEnded.resolve();
    }
    const waiting = this.#waiting;
    // What a failed authentication step throws arrives a moment later; until then a login is not complete.
    if (waiting.kind === "login" && !this.#authenticated) return;
    this.#waiting = { kind: "nothing" };
    if (waiting.kind === "login") waiting.resolve();
    else if (waiting.kind === "rows") {
      if (waiting.failure === undefined) waiting.resolve(waiting.rows);
      else waiting.reject(waiting.failure);
    }
  }

  #serverError(error: ServerError): void {
    const waiting = this.#waiting;
    switch (waiting.kind) {
      case "rows":
        waiting.failure = error;
        break;
      case "login":
      case "copy":
        this.#reject(error);
        break;
      case "nothing":
        this.#fail(error.message);
    }
  }

  #reject(error: Error): void {
    const waiting = this.#waiting;
    this.#waiting = { kind: "nothing" };
    if (waiting.kind === "nothing") this.#fail(errorText(error));
    else waiting.reject(error);
  }

  async #authenticate(buffer: Buffer, start: number, end: number): Promise<void> {
    const code = buffer.readInt32BE(start);
    const channelBinding = this.#params.channelBinding;
    if (channelBinding === "require" && (code === AUTH_CLEARTEXT || code === AUTH_MD5)) throw this.#noChannelBinding();
    switch (code) {
      case AUTH_OK:
        if (channelBinding === "require" && !this.#saslAsked) throw this.#noChannelBinding();
        if (this.#saslAsked && !this.#scramVerified) {
          throw new PermanentError(`the server at ${this.where} did not prove that it knows the password`);
        }
        this.#authenticated = true;
        return;
      case AUTH_CLEARTEXT:
        this.write(passwordMessage(this.#password()));
        return;
      case AUTH_MD5:
        this.write(
          passwordMessage(md5Password(this.#params.user, this.#password(), buffer.subarray(start + 4, start + 8))),
        );
        return;
      case AUTH_SASL:
        this.#saslAsked = true;
        return await this.#startScram(parseSaslMechanisms(buffer, start + 4, end));
      case AUTH_SASL_CONTINUE:
        this.write(saslResponse(await this.#scramStep((scram) => scram.clientFinal(text(buffer, start + 4, end)))));
        return;
      case AUTH_SASL_FINAL:
        return await this.#scramStep((scram) => {
          scram.verify(text(buffer, start + 4, end));
          this.#scramVerified = true;
        });
      default:
        throw new PermanentError(
          `the server at ${this.where} asks for authentication method ${code}, which is not supported; supported are ` +
            "scram-sha-256, md5, password, cert, peer and trust: change pg_hba.conf for this user",
        );
    }
  }

  async #startScram(mechanisms: readonly string[]): Promise<void> {
    const offered = mechanisms.includes("SCRAM-SHA-256-PLUS");
    if (!offered && !mechanisms.includes("SCRAM-SHA-256")) {
      throw new PermanentError(
        `the server at ${this.where} offers the SASL mechanisms ${
          mechanisms.join(", ")
        }; SCRAM-SHA-256 is supported: ` +
          "change pg_hba.conf for this user",
      );
    }
    const binding = await this.#channelBinding(offered);
    if (this.#params.channelBinding === "require" && binding.kind !== "tls-server-end-point") {
      throw this.#noChannelBinding();
    }
    const password = this.#password();
    this.#scram = new ScramClient(password, binding);
    this.#channelBound = binding.kind === "tls-server-end-point";
    const mechanism = this.#channelBound ? "SCRAM-SHA-256-PLUS" : "SCRAM-SHA-256";
    this.write(saslInitialResponse(mechanism, this.#scram.clientFirst()));
  }

  async #channelBinding(offered: boolean): Promise<ChannelBinding> {
    const { certificate } = this.#server;
    if (certificate === undefined || this.#params.channelBinding === "disable") return { kind: "unsupported" };
    const data = await tlsServerEndPoint(certificate);
    if (data === undefined) return { kind: "unsupported" };
    return offered ? { kind: "tls-server-end-point", data } : { kind: "not-offered" };
  }

  #noChannelBinding(): PermanentError {
    return new PermanentError(
      `the server at ${this.where} does not offer channel binding, which channel_binding=require in the connection URI ` +
        "asks for: it needs TLS and scram-sha-256 on the server",
    );
  }

  async #scramStep<T>(step: (scram: ScramClient) => T | Promise<T>): Promise<T> {
    if (this.#scram === undefined) {
      throw new TransientError(`the server at ${this.where} sent SASL messages out of turn`);
    }
    try {
      return await step(this.#scram);
    } catch (error) {
      if (error instanceof ScramError) throw new PermanentError(`logging in to ${this.where} failed: ${error.message}`);
      throw error;
    }
  }

  #password(): string {
    const password = this.#params.password(this.#host);
    if (password === undefined) {
      throw missingPassword(this.where, this.#params.user);
    }
    return password;
  }
}

function text(buffer: Buffer, start: number, end: number): string {
  return cString(buffer, start, end).value;
}
