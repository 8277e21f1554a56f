/**
 * A TCP relay in front of a server, by which a test makes the faults that a network has: refused, cut, half open, silent,
 * slow. What passes can be watched and changed on the way.
 */

import { connect, createServer, type Server, type Socket } from "node:net";

export type Direction = "toServer" | "toClient";

const DIRECTIONS: readonly Direction[] = ["toServer", "toClient"];

/** Takes what arrived and gives what passes on; nothing may pass, and more than arrived. */
export type Filter = (chunk: Buffer) => Buffer;

export interface RelayOptions {
  /** On 127.0.0.1. */
  readonly targetPort: number;
  /** Called once per connection; each direction without a filter passes as it is. */
  readonly filters?: () => Partial<Record<Direction, Filter>>;
}

/** How often a throttled direction passes a piece on. */
const PIECE_INTERVAL_MS = 50;

export class TcpRelay {
  readonly port: number;
  readonly #server: Server;
  readonly #options: RelayOptions;
  readonly #links = new Set<Link>();
  readonly #bytesPerSecond: Partial<Record<Direction, number>> = {};
  #refusing = false;
  #swallowNew = false;
  readonly #silenceAt = new Set<string>();
  /** Connections taken since the start, those that were refused not among them. */
  accepted = 0;

  private constructor(server: Server, port: number, options: RelayOptions) {
    this.#server = server;
    this.port = port;
    this.#options = options;
    server.on("connection", (client) => this.#accept(client));
  }

  static start(options: RelayOptions): Promise<TcpRelay> {
    return new Promise((resolve, reject) => {
      const server = createServer({ noDelay: true });
      server.once("error", reject);
      server.listen(0, "127.0.0.1", () => {
        const address = server.address();
        if (address === null || typeof address === "string") return reject(new Error("the relay has no port"));
        resolve(new TcpRelay(server, address.port, options));
      });
    });
  }

  /** `uri` with the relay's host and port in place of the server's. */
  uriOf(uri: string): string {
    return uri.replace(/127\.0\.0\.1:\d+/, `127.0.0.1:${this.port}`);
  }

  /** Connections that are open on the client's side. */
  get connections(): number {
    return [...this.#links].filter((link) => link.clientOpen).length;
  }

  /** Ends every connection on both sides. */
  cut(): void {
    for (const link of this.#links) link.destroy();
  }

  /** Ends every connection, and each new one at once, until `heal`. */
  refuse(): void {
    this.#refusing = true;
    this.cut();
  }

  /**
   * Half open: what the connections of this moment say in `directions` from now on is taken and lost, and neither side
   * learns of the end of the other. New connections pass, unless `alsoNew`.
   */
  swallow(directions: readonly Direction[] = DIRECTIONS, alsoNew = false): void {
    this.#swallowNew = alsoNew;
    for (const link of this.#links) link.swallow(directions);
  }

  /** The next connection that says `text` to the server becomes half open with that. May be called for several texts. */
  silenceAt(text: string): void {
    this.#silenceAt.add(text);
  }

  /** Of all connections, these and new ones, until `heal`. */
  throttle(direction: Direction, bytesPerSecond: number): void {
    this.#bytesPerSecond[direction] = bytesPerSecond;
    for (const link of this.#links) link.throttle(direction, bytesPerSecond);
  }

  /** New connections pass, and those that were slowed. What was swallowed stays lost, and its connections dead. */
  heal(): void {
    this.#refusing = false;
    this.#swallowNew = false;
    this.#silenceAt.clear();
    for (const direction of DIRECTIONS) {
      delete this.#bytesPerSecond[direction];
      for (const link of this.#links) link.throttle(direction, undefined);
    }
  }

  async close(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    this.cut();
    await closed;
  }

  #accept(client: Socket): void {
    if (this.#refusing) {
      client.on("error", () => {});
      client.destroy();
      return;
    }
    this.accepted++;
    const server = connect({ port: this.#options.targetPort, host: "127.0.0.1", noDelay: true });
    const { toServer = (chunk: Buffer) => chunk, toClient } = this.#options.filters?.() ?? {};
    const watched: Filter = (chunk) => {
      if (this.#endsWith(chunk)) link.swallow(DIRECTIONS);
      return toServer(chunk);
    };
    const link = new Link(client, server, { toServer: watched, toClient }, () => this.#links.delete(link));
    this.#links.add(link);
    if (this.#swallowNew) link.swallow(DIRECTIONS);
    for (const direction of DIRECTIONS) link.throttle(direction, this.#bytesPerSecond[direction]);
  }

  #endsWith(chunk: Buffer): boolean {
    const said = [...this.#silenceAt].find((text) => chunk.includes(text));
    return said !== undefined && this.#silenceAt.delete(said);
  }
}

/** One connection through the relay. */
class Link {
  readonly #client: Socket;
  readonly #server: Socket;
  readonly #pipes: Readonly<Record<Direction, Pipe>>;

  constructor(client: Socket, server: Socket, filters: Record<Direction, Filter | undefined>, onEnd: () => void) {
    this.#client = client;
    this.#server = server;
    this.#pipes = {
      toServer: new Pipe(client, server, filters.toServer),
      toClient: new Pipe(server, client, filters.toClient),
    };
    const onClose = () => {
      if (client.destroyed && server.destroyed) onEnd();
    };
    for (const socket of [client, server]) {
      socket.on("error", () => {});
      socket.on("close", onClose);
    }
  }

  get clientOpen(): boolean {
    return !this.#client.destroyed;
  }

  destroy(): void {
    for (const pipe of Object.values(this.#pipes)) pipe.stop();
    this.#client.destroy();
    this.#server.destroy();
  }

  swallow(directions: readonly Direction[]): void {
    for (const direction of directions) this.#pipes[direction].swallow();
  }

  throttle(direction: Direction, bytesPerSecond: number | undefined): void {
    this.#pipes[direction].throttle(bytesPerSecond);
  }
}

/** One direction of a connection. */
class Pipe {
  readonly #from: Socket;
  readonly #to: Socket;
  readonly #filter: Filter;
  #swallowing = false;
  #bytesPerSecond: number | undefined;
  /** What a throttled pipe has yet to pass on. */
  #held: Buffer = Buffer.alloc(0);
  #timer: ReturnType<typeof setInterval> | undefined;

  constructor(from: Socket, to: Socket, filter: Filter = (chunk) => chunk) {
    this.#from = from;
    this.#to = to;
    this.#filter = filter;
    from.on("data", (chunk: Buffer) => this.#pass(chunk));
    from.on("close", () => {
      if (!this.#swallowing && this.#held.length === 0) to.end();
    });
    to.on("drain", () => {
      if (this.#held.length === 0) from.resume();
    });
    to.on("close", () => this.stop());
  }

  swallow(): void {
    this.#swallowing = true;
    this.stop();
    this.#from.resume();
  }

  throttle(bytesPerSecond: number | undefined): void {
    this.#bytesPerSecond = bytesPerSecond;
    if (bytesPerSecond === undefined) this.#flush(Infinity);
  }

  stop(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
    this.#held = Buffer.alloc(0);
  }

  #pass(chunk: Buffer): void {
    const passing = this.#filter(chunk);
    if (this.#swallowing || this.#to.destroyed || passing.length === 0) return;
    if (this.#bytesPerSecond !== undefined || this.#held.length > 0) {
      this.#held = Buffer.concat([this.#held, passing]);
      this.#from.pause();
      this.#timer ??= setInterval(() => this.#flush(this.#pieceBytes()), PIECE_INTERVAL_MS);
    } else if (!this.#to.write(passing)) {
      this.#from.pause();
    }
  }

  #pieceBytes(): number {
    if (this.#bytesPerSecond === undefined) return Infinity;
    return Math.max(1, Math.round(this.#bytesPerSecond * PIECE_INTERVAL_MS / 1000));
  }

  #flush(bytes: number): void {
    if (this.#held.length === 0) return;
    const piece = this.#held.subarray(0, Math.min(bytes, this.#held.length));
    this.#held = this.#held.subarray(piece.length);
    this.#to.write(piece);
    if (this.#held.length > 0) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
    if (this.#from.destroyed) this.#to.end();
    else this.#from.resume();
  }
}
