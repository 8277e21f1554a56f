/** Redis publish/subscribe and streams, by PUBLISH and XADD, many at a time (redis.io/docs/latest/commands). */

import { type Command, Redis, type RedisOptions } from "ioredis";
import type { RedisConfig } from "../config/config.ts";
import { errorText, PermanentError, TransientError } from "../core/errors.ts";
import { APPLICATION_NAME, type Event } from "../core/event.ts";
import type { Delivery, Permission, Session, Target, Upstream } from "../core/upstream.ts";
import { attemptConnect, CONNECT_TIMEOUT_MS, type Endpoint, parseEndpoint, percentDecode } from "./endpoint.ts";
import { CommandEncoder } from "./redis_commands.ts";
import { tlsOptions } from "./tls.ts";

const PRODUCT = "Redis";
const DEFAULT_MAX_IN_FLIGHT = 2000;
/** A server that owes a reply and sends nothing for this long is given up. */
const REPLY_TIMEOUT_MS = 30_000;

/** First words of error replies (redis.io/docs/latest/develop/reference/protocol-spec, "Simple errors"). */
const LOGIN_ERRORS = /^(WRONGPASS|NOAUTH|ERR invalid password|ERR AUTH |ERR Client sent AUTH)/;
const DATABASE_ERRORS = /^ERR (DB index|invalid DB index|SELECT)/;
/** The server's state, not the event: it passes. */
const PASSING_ERRORS =
  /^(LOADING|READONLY|MASTERDOWN|OOM|CLUSTERDOWN|TRYAGAIN|BUSY|MISCONF|NOREPLICAS|UNBLOCKED|NOAUTH|WRONGPASS)\b/;

export class RedisUpstream implements Upstream {
  readonly kind = "redis";
  readonly name: string;
  readonly maxInFlight: number;
  readonly #config: RedisConfig;
  readonly #endpoint: Endpoint;
  readonly #database: number;

  constructor(config: RedisConfig) {
    this.name = config.name;
    this.maxInFlight = config.maxInFlight ?? DEFAULT_MAX_IN_FLIGHT;
    this.#config = config;
    this.#endpoint = parseEndpoint(config.uri, { redis: 6379, rediss: 6379 });
    this.#database = databaseOf(this.#endpoint);
  }

  async connect(targets: readonly Target[], onLost: (cause: Error) => void, signal: AbortSignal): Promise<Session> {
    let redis: Redis | undefined;
    return await attemptConnect(PRODUCT, this.#endpoint, signal, async () => {
      const options = await this.#options();
      signal.throwIfAborted();
      redis = new Redis(options);
      const loss = watchLoss(redis);
      await this.#logIn(redis, loss);
      await checkStreams(redis, targets);
      return new RedisSession(redis, this.#config.maxlen, loss, onLost);
    }, () => destroy(redis));
  }

  async #options(): Promise<RedisOptions & { replyMapping?: "legacy" }> {
    const { scheme, host, port, username, password } = this.#endpoint;
    const secure = scheme === "rediss" ? { tls: await tlsOptions(this.#config.tls, host) } : {};
    return {
      ...secure,
      host,
      port,
      ...(username === undefined ? {} : { username }),
      ...(password === undefined ? {} : { password }),
      connectionName: APPLICATION_NAME,
      protocol: 2,
      noDelay: true,
      lazyConnect: true,
      connectTimeout: CONNECT_TIMEOUT_MS,
      // One timer for the connection; `commandTimeout` would make one for each command.
      socketTimeout: REPLY_TIMEOUT_MS,
      // The lane connects again and sends again: here nothing is kept beyond the connection.
      retryStrategy: () => null,
      maxRetriesPerRequest: null,
      enableOfflineQueue: false,
      autoResendUnfulfilledCommands: false,
      autoResubscribe: false,
      // It asks for INFO, which a user who may only publish is not allowed; PING tells as much.
      enableReadyCheck: false,
    };
  }

  async #logIn(redis: Redis, loss: Loss): Promise<void> {
    try {
      await redis.connect();
      // Asked here, since the library's own SELECT fails in silence. Publishing does not depend on the database.
      await (this.#database === 0 ? redis.ping() : redis.select(this.#database));
    } catch (error) {
      // `connect` fails with "Connection is closed.", whatever the reason was.
      const fault = isReply(error) ? error : loss.fault ?? error;
      const text = errorText(fault);
      // A user who may publish and nothing else is logged in all the same.
      if (text.startsWith("NOPERM ")) return;
      throw this.#refusal(text) ?? fault;
    }
  }

  #refusal(text: string): PermanentError | undefined {
    const at = `${PRODUCT} at ${this.#endpoint.text}`;
    if (LOGIN_ERRORS.test(text)) {
      const { username, password } = this.#endpoint;
      const who = password === undefined
        ? "a login without a password"
        : `the login of user "${username ?? "default"}"`;
      return new PermanentError(
        `${at} refused ${who}: ${text}; correct the user name and password in uri (redis://user:password@host)`,
      );
    }
    if (DATABASE_ERRORS.test(text)) {
      return new PermanentError(`${at} refused database ${this.#database}: ${text}; correct the path of uri`);
    }
    return undefined;
  }
}

/** A key of another type would refuse every event. */
async function checkStreams(redis: Redis, targets: readonly Target[]): Promise<void> {
  for (const { type, name } of targets) {
    if (type !== "stream") continue;
    // A user who may run XADD and nothing else finds out when it comes to that.
    const found = await redis.type(name).catch((error: unknown) => {
      if (isReply(error) && error.message.startsWith("NOPERM ")) return "none";
      throw error;
    });
    if (found === "stream" || found === "none") continue;
    throw new PermanentError(
      `${PRODUCT} holds a ${found} under the key "${name}", which stream:${name} writes to; remove it, or name another key`,
    );
  }
}

function databaseOf({ path, query }: Endpoint): number {
  const text = percentDecode(path.replace(/^\//, ""), "the database in uri") || (query.get("db") ?? "0");
  if (/^\d{1,9}$/.test(text)) return Number(text);
  throw new PermanentError(`the path of uri is "${text}"; write the number of the database, as in redis://host:6379/0`);
}

type NetStream = NonNullable<Parameters<Redis["sendCommand"]>[1]>;

interface Loss {
  fault: Error | undefined;
  ended: boolean;
  notify: () => void;
}

function watchLoss(redis: Redis): Loss {
  const loss: Loss = { fault: undefined, ended: false, notify: () => {} };
  redis.on("error", (error: Error) => loss.fault ??= error);
  redis.on("end", () => {
    loss.ended = true;
    loss.notify();
  });
  return loss;
}

/** Ends the connection at once. */
function destroy(redis: Redis | undefined): void {
  // For a connection that has ended, `disconnect` would only set a timer of two seconds.
  if (redis === undefined || redis.status === "end") return;
  redis.disconnect();
  // Not set before the first attempt to connect.
  const stream: Redis["stream"] | undefined = redis.stream;
  stream?.destroy();
}

/** What ioredis asks of a stream that it writes a command to: here nothing, the session writes by itself. */
const NOWHERE = { write: () => true };

/**
 * A command that the session has encoded already. It takes its place in ioredis' queue of commands that wait for a reply,
 * and gets what ioredis gives those: the reply, an error reply, or the loss of the connection.
 */
class SentCommand {
  readonly name: string;
  readonly args: readonly never[] = [];
  readonly promise = undefined;
  /** Bun's diagnostics channels never say that nobody listens: ioredis would trace every command. */
  readonly isTraced = true;
  readonly #session: RedisSession;
  readonly #delivery: Delivery;

  constructor(name: string, session: RedisSession, delivery: Delivery) {
    this.name = name;
    this.#session = session;
    this.#delivery = delivery;
  }

  setReplyContext(): void {}

  toWritable(): string {
    return "";
  }

  resolve(): void {
    this.#session.replied(this.#delivery);
  }

  reject(error: Error): void {
    this.#session.failed(this.#delivery, error);
  }
}

class RedisSession implements Session {
  readonly #redis: Redis;
  readonly #maxlen: number | undefined;
  readonly #loss: Loss;
  readonly #onLost: (cause: Error) => void;
  readonly #encoder: CommandEncoder;
  #ended = false;

  constructor(redis: Redis, maxlen: number | undefined, loss: Loss, onLost: (cause: Error) => void) {
    this.#redis = redis;
    this.#maxlen = maxlen;
    this.#loss = loss;
    this.#onLost = onLost;
    this.#encoder = new CommandEncoder((bytes) => redis.stream.write(bytes));
    loss.notify = () => this.#lost(loss.fault ?? "the server closed it");
    if (loss.ended) throw loss.fault ?? new Error("the server closed the connection");
  }

  publish(delivery: Delivery): void {
    if (this.#ended) return;
    const { event, target } = delivery;
    const isStream = target.type === "stream";
    const command = new SentCommand(isStream ? "xadd" : "publish", this, delivery);
    this.#redis.sendCommand(command as unknown as Command, NOWHERE as unknown as NetStream);
    // Where the connection is lost already, the command was rejected, and with it the session has ended.
    if (this.#ended) return;
    if (isStream) this.#encoder.command(this.#xadd(event, target.name));
    else this.#encoder.publish(target.name, event.payload);
  }

  flush(): void {
    if (!this.#ended) this.#encoder.flush();
  }

  /** `~`: whole nodes of the stream are removed, which costs next to nothing. */
  #xadd({ id, routingKey, payload, type }: Event, stream: string): (string | Uint8Array)[] {
    const limit = this.#maxlen === undefined ? [] : ["MAXLEN", "~", String(this.#maxlen)];
    return ["XADD", stream, ...limit, "*", "id", id, "key", routingKey, "payload", payload, "type", type];
  }

  async close(deadlineMs: number): Promise<void> {
    this.#ended = true;
    if (this.#loss.ended) return;
    const { promise: ended, resolve } = Promise.withResolvers<void>();
    this.#loss.notify = resolve;
    const deadline = setTimeout(() => destroy(this.#redis), deadlineMs);
    this.#redis.disconnect();
    await ended;
    clearTimeout(deadline);
  }

  /** Redis looks at the rights when a command is queued in a transaction, which is then discarded (ACL.md, MULTI). */
  async askPermission({ type, name }: Target): Promise<Permission> {
    try {
      await this.#redis.multi({ pipeline: false });
    } catch (error) {
      return { kind: "unknown", reason: errorText(error) };
    }
    try {
      await (type === "stream" ? this.#redis.xadd(name, "*", "id", "") : this.#redis.publish(name, ""));
      return { kind: "allowed" };
    } catch (error) {
      if (!isReply(error)) throw error;
      const reason = errorText(error);
      if (!reason.startsWith("NOPERM")) return { kind: "unknown", reason };
      return {
        kind: "refused",
        reason,
        remedy: `ACL SETUSER … ${type === "stream" ? `+xadd ~${name}` : `+publish &${name}`}`,
      };
    } finally {
      await this.#redis.discard();
    }
  }

  replied(delivery: Delivery): void {
    if (!this.#ended) delivery.acknowledge(this);
  }

  failed(delivery: Delivery, error: Error): void {
    if (this.#ended) return;
    // What follows was perhaps published, but is sent again, so that it does not overtake this one.
    if (!isReply(error) || PASSING_ERRORS.test(error.message)) this.#lost(error);
    else delivery.refuse(this, `${PRODUCT} refused it: ${errorText(error)}`);
  }

  #lost(reason: unknown): void {
    if (this.#ended) return;
    this.#ended = true;
    destroy(this.#redis);
    this.#onLost(new TransientError(`the connection to ${PRODUCT} was lost: ${errorText(reason)}`));
  }
}

/** Error replies, as against faults of the connection, have this name (redis-errors). */
function isReply(error: unknown): error is Error {
  return error instanceof Error && error.name === "ReplyError";
}
