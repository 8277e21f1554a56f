/** What the AWS kinds share: address, credentials, the meaning of errors, and the session with its requests. */

import { type AwsAddress, readAwsUri } from "../config/aws.ts";
import { CLOUDEVENTS_CONTENT_TYPE } from "../core/cloudevents.ts";
import { ChannelRejectedError, errorText, type OperatorError, PermanentError, TransientError } from "../core/errors.ts";
import { APPLICATION_NAME, type Event, orderKey } from "../core/event.ts";
import type { Delivery, Session, Target, Upstream } from "../core/upstream.ts";
import { attemptConnect, CONNECT_TIMEOUT_MS } from "./endpoint.ts";

/** How many deliveries a session holds, those that wait for a request of their own included. */
const DEFAULT_MAX_IN_FLIGHT = 100;
/** A request that gets no answer is given up: its events are then sent again. */
const REQUEST_TIMEOUT_MS = 30_000;

export interface AwsConfigBase {
  readonly name: string;
  readonly uri: string;
  readonly maxInFlight: number | undefined;
  readonly concurrency: number;
  readonly cloudEventsSource: string | undefined;
}

/** Options that every client of the SDK understands. */
export type ClientOptions = ReturnType<typeof clientOptions>;

function clientOptions({ region, endpoint }: AwsAddress, requestTimeoutMs: number) {
  return {
    region,
    ...(endpoint === undefined ? {} : { endpoint }),
    // The lane sends again, in order and with its own pauses.
    maxAttempts: 1,
    userAgentAppId: APPLICATION_NAME,
    requestHandler: {
      connectionTimeout: CONNECT_TIMEOUT_MS,
      requestTimeout: requestTimeoutMs,
      throwOnRequestTimeout: true,
    },
  };
}

/** A fault that the service reports for one message of a request. */
export interface MessageFault {
  /** The service's name for it: `InvalidMessageContents`. */
  readonly code: string;
  readonly text: string;
  /** Whether the service holds the sender responsible. */
  readonly sendersFault: boolean;
}

/** A queue, topic or function that was found to be there. */
export interface AwsTarget {
  readonly maxEntries: number;
  readonly maxRequestBytes: number;
  /** What the event adds to a request, in bytes, or the reason why it cannot be carried. */
  measure(event: Event): number | string;
  /** One request. The answers stand in the order of `deliveries`; undefined: taken. Throws if the request as a whole failed. */
  send(deliveries: readonly Delivery[], signal: AbortSignal): Promise<readonly (MessageFault | undefined)[]>;
}

export abstract class AwsUpstream<Client extends { destroy(): void }> implements Upstream {
  abstract readonly kind: string;
  readonly name: string;
  readonly maxInFlight: number;
  readonly #address: AwsAddress;
  readonly #service: Service;
  readonly #concurrency: number;

  /** `product`: `Amazon SQS`; `actions`: what the credentials must be allowed, for the remedy. */
  constructor(config: AwsConfigBase, product: string, actions: string) {
    this.name = config.name;
    this.maxInFlight = config.maxInFlight ?? DEFAULT_MAX_IN_FLIGHT;
    const address = readAwsUri(config.uri);
    if (typeof address === "string") throw new PermanentError(`uri ${address}`);
    this.#address = address;
    this.#concurrency = config.concurrency;
    this.contentType = config.cloudEventsSource === undefined ? undefined : CLOUDEVENTS_CONTENT_TYPE;
    this.#service = { product, actions, at: `${product} at ${address.text}` };
  }

  /** Of every message, where they are CloudEvents; undefined: that of the event. */
  protected readonly contentType: string | undefined;

  /** How long a request may take, in milliseconds. */
  protected requestTimeoutMs: number = REQUEST_TIMEOUT_MS;

  /** Whether the address is that of an emulator. */
  protected get emulated(): boolean {
    return this.#address.endpoint !== undefined;
  }

  protected abstract makeClient(options: ClientOptions): Client;
  /** Asks the service for the target; throws what the SDK throws. */
  protected abstract openTarget(client: Client, name: string, signal: AbortSignal): Promise<AwsTarget>;

  async connect(targets: readonly Target[], onLost: (cause: Error) => void, signal: AbortSignal): Promise<Session> {
    const client = this.makeClient(clientOptions(this.#address, this.requestTimeoutMs));
    const requests = new AbortController();
    const end = () => {
      requests.abort();
      client.destroy();
    };
    return await attemptConnect(this.#service.product, this.#address, signal, async () => {
      const opened = new Map<string, AwsTarget>();
      for (const { type, name } of targets) {
        if (!opened.has(name)) opened.set(name, await this.#open(client, `${type}:${name}`, name, requests.signal));
      }
      return new AwsSession(this.#service, opened, this.#concurrency, requests.signal, end, onLost);
    }, end);
  }

  async #open(client: Client, what: string, name: string, signal: AbortSignal): Promise<AwsTarget> {
    try {
      return await this.openTarget(client, name, signal).catch((error: unknown) => {
        // The SDK has learned how far this machine's clock is off, and signs with the right time from now on.
        if (metadataOf(error).clockSkewCorrected !== true) throw error;
        return this.openTarget(client, name, signal);
      });
    } catch (error) {
      // Without an answer it is the connection's fault, which the caller can tell.
      if (metadataOf(error).httpStatusCode === undefined && !isCredentialsError(error)) throw error;
      const fault = faultOf(error);
      throw operatorError(this.#service, fault, `answered for ${what}: ${describe(error)}`, error) ??
        new PermanentError(`${this.#service.at} refused ${what}: ${describe(error)}; correct bridge_channels`);
    }
  }
}

// --- errors ----------------------------------------------------------------------------------------------------------

interface Service {
  readonly product: string;
  readonly actions: string;
  readonly at: string;
}

type Fault = "credentials" | "access" | "missing" | "passing" | "message";

const CREDENTIALS_CODES =
  /UnrecognizedClient|InvalidClientTokenId|InvalidAccessKeyId|InvalidSecurity|Signature|ExpiredToken|RequestExpired|MissingAuthentication|AuthFailure|InvalidToken/i;
const ACCESS_CODES = /AccessDenied|AuthorizationError|Unauthorized|NotAuthorized|OptIn|^KMS|\.KMS|AccountProblem/i;
const MISSING_CODES = /DoesNotExist|NonExistent|NotFound|QueueDeletedRecently/i;
const PASSING_CODES =
  /Throttl|TooManyRequests|LimitExceeded|SlowDown|PriorRequestNotComplete|Conflict|NotReady|Timeout|Unavailable|Internal/i;
/** Status codes of client errors that pass: Request Timeout, Conflict, Too Early, Too Many Requests (RFC 9110, 8470, 6585). */
const PASSING_STATUS: readonly number[] = [408, 409, 425, 429];

/**
 * What an error code means. Only what is about the message itself may count as a refusal: with `on_reject=drop`, taking a
 * missing right or a throttled account for one would cost events.
 */
function faultOfCode(code: string, sendersFault: boolean): Fault {
  if (PASSING_CODES.test(code) || !sendersFault) return "passing";
  if (CREDENTIALS_CODES.test(code)) return "credentials";
  if (ACCESS_CODES.test(code)) return "access";
  if (MISSING_CODES.test(code)) return "missing";
  return "message";
}

function faultOf(error: unknown): Fault {
  if (isCredentialsError(error)) return "credentials";
  const status = metadataOf(error).httpStatusCode;
  const sendersFault = status !== undefined && status >= 400 && status < 500 && !PASSING_STATUS.includes(status);
  return faultOfCode(codeOf(error), sendersFault);
}

/** The SDK's credential providers have errors of their own: CredentialsProviderError, TokenProviderError. */
function isCredentialsError(error: unknown): boolean {
  return error instanceof Error && /ProviderError$/.test(error.name);
}

function metadataOf(error: unknown): { httpStatusCode?: number; clockSkewCorrected?: boolean } {
  const metadata = (error as { $metadata?: unknown } | null)?.$metadata;
  return typeof metadata === "object" && metadata !== null ? metadata : {};
}

function codeOf(error: unknown): string {
  return error instanceof Error ? error.name : "";
}

/** `AccessDenied: User … is not authorized …`. */
function describe(error: unknown): string {
  const code = codeOf(error);
  const text = errorText(error);
  return text.includes(code) ? text : `${code}: ${text}`;
}

/** Undefined for a fault of the message. `text` follows the name of the service. */
function operatorError(service: Service, fault: Fault, text: string, error: unknown): OperatorError | undefined {
  switch (fault) {
    case "credentials":
      // The service's own words may hold the whole request, session token included.
      return isCredentialsError(error)
        ? new PermanentError(
          `no credentials for ${service.at}: ${
            errorText(error)
          }; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a ` +
            "profile by AWS_PROFILE, or give this machine a role, as for the AWS CLI",
        )
        : new PermanentError(
          `${service.at} refused a login: ${codeOf(error)}; correct the access key, its secret and its session token`,
        );
    case "access":
      return new PermanentError(`${service.at} ${text}; allow these credentials ${service.actions}`);
    case "missing":
      return new PermanentError(`${service.at} ${text}; create it, or correct bridge_channels and the region in uri`);
    case "passing":
      return new TransientError(`${service.at} ${text}`);
    case "message":
      return undefined;
  }
}

// --- the session -----------------------------------------------------------------------------------------------------

interface Waiting {
  readonly delivery: Delivery;
  readonly bytes: number;
}

/** The requests of a target that follow one another: each waits for the answer to the one before. */
class Turn {
  readonly target: AwsTarget;
  readonly waiting: Waiting[] = [];
  busy = false;

  constructor(target: AwsTarget) {
    this.target = target;
  }

  /** The oldest deliveries, as many as fit into a request. */
  take(): Delivery[] {
    const { maxEntries, maxRequestBytes } = this.target;
    let count = 0;
    let bytes = 0;
    while (count < this.waiting.length && count < maxEntries) {
      bytes += this.waiting[count]!.bytes;
      if (count > 0 && bytes > maxRequestBytes) break;
      count++;
    }
    return this.waiting.splice(0, count).map(({ delivery }) => delivery);
  }
}

/**
 * There is no connection to lose: the session ends when a request fails for a reason that is not the message's. What was
 * not taken is then sent again by the lane, oldest first, also where the service took a later message of the same batch.
 */
class AwsSession implements Session {
  readonly #service: Service;
  readonly #turns = new Map<string, readonly Turn[]>();
  readonly #signal: AbortSignal;
  readonly #end: () => void;
  readonly #onLost: (cause: Error) => void;
  #ended = false;

  constructor(
    service: Service,
    targets: ReadonlyMap<string, AwsTarget>,
    concurrency: number,
    signal: AbortSignal,
    end: () => void,
    onLost: (cause: Error) => void,
  ) {
    this.#service = service;
    for (const [name, target] of targets) {
      this.#turns.set(name, Array.from({ length: concurrency }, () => new Turn(target)));
    }
    this.#signal = signal;
    this.#end = end;
    this.#onLost = onLost;
  }

  publish(delivery: Delivery): void {
    if (this.#ended) return;
    const turns = this.#turns.get(delivery.target.name);
    const turn = turns?.[turns.length === 1 ? 0 : hash(orderKey(delivery.event)) % turns.length];
    if (turn === undefined) {
      delivery.refuse(this, `${delivery.target.type}:${delivery.target.name} was not checked at the start`);
      return;
    }
    const bytes = turn.target.measure(delivery.event);
    if (typeof bytes === "string") delivery.refuse(this, bytes);
    else turn.waiting.push({ delivery, bytes });
  }

  flush(): void {
    for (const turns of this.#turns.values()) for (const turn of turns) if (!turn.busy) this.#next(turn);
  }

  close(): Promise<void> {
    this.#ended = true;
    this.#end();
    return Promise.resolve();
  }

  #next(turn: Turn): void {
    if (this.#ended || turn.waiting.length === 0) return;
    const deliveries = turn.take();
    turn.busy = true;
    turn.target.send(deliveries, this.#signal).then(
      (answers) => this.#answered(turn, deliveries, answers),
      (error: unknown) => this.#failed(turn, deliveries, error),
    );
  }

  #answered(turn: Turn, deliveries: readonly Delivery[], answers: readonly (MessageFault | undefined)[]): void {
    turn.busy = false;
    let lost: OperatorError | undefined;
    for (const [i, delivery] of deliveries.entries()) {
      if (this.#ended) return;
      const answer = answers[i];
      if (answer === undefined) {
        delivery.acknowledge(this);
        continue;
      }
      const text = `did not take an event: ${answer.code}: ${answer.text}`;
      const error = operatorError(this.#service, faultOfCode(answer.code, answer.sendersFault), text, undefined);
      if (error === undefined) {
        delivery.refuse(this, `${this.#service.product} refused it: ${answer.code}: ${answer.text}`);
      } else {
        lost ??= error;
      }
    }
    if (lost !== undefined) this.#lost(lost);
    else this.#next(turn);
  }

  #failed(turn: Turn, deliveries: readonly Delivery[], error: unknown): void {
    if (this.#ended) return;
    turn.busy = false;
    const answered = metadataOf(error).httpStatusCode !== undefined || isCredentialsError(error);
    const text = answered ? `failed: ${describe(error)}` : `did not answer: ${errorText(error)}`;
    const cause = operatorError(this.#service, answered ? faultOf(error) : "passing", text, error);
    if (cause !== undefined) {
      this.#lost(cause);
    } else if (deliveries.length === 1) {
      deliveries[0]!.refuse(this, `${this.#service.product} refused it: ${describe(error)}`);
      this.#next(turn);
    } else {
      this.#lost(new ChannelRejectedError(`${this.#service.at} refused a batch: ${describe(error)}`));
    }
  }

  #lost(cause: Error): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#end();
    this.#onLost(cause);
  }
}

/** FNV-1a, over UTF-16 units. */
function hash(text: string): number {
  let value = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) value = Math.imul(value ^ text.charCodeAt(i), 0x01000193);
  return value >>> 0;
}
