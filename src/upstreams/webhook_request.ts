/** What a webhook sends: bodies, headers and signatures. */

import { Buffer } from "node:buffer";
import { createHmac } from "node:crypto";
import type { WebhookConfig } from "../config/config.ts";
import { secretBytes } from "../config/webhook_secret.ts";
import { attributesOf, CLOUDEVENTS_BATCH_CONTENT_TYPE } from "../core/cloudevents.ts";
import { APPLICATION_NAME, contentType, type Event } from "../core/event.ts";
import { textOf } from "../core/payload.ts";
import type { Delivery } from "../core/upstream.ts";
import { VERSION } from "../version.ts";

type MutableHeaders = Record<string, string>;

export interface WebhookMessage {
  readonly deliveries: readonly Delivery[];
  readonly url: URL;
  /** For `webhook-id`: the same whenever the same events are sent again. */
  readonly id: string;
  readonly headers: Readonly<MutableHeaders>;
  readonly body: Uint8Array;
}

/** Makes requests of events, by one configuration. */
export class WebhookRequests {
  readonly #config: WebhookConfig;
  readonly #keys: readonly Buffer[];
  readonly #common: Readonly<MutableHeaders>;

  constructor(config: WebhookConfig) {
    this.#config = config;
    this.#keys = config.secrets.map(secretBytes);
    this.#common = {
      "user-agent": `${APPLICATION_NAME}/${VERSION}`,
      ...Object.fromEntries(Object.entries(config.extraHeaders).map(([name, value]) => [name.toLowerCase(), value])),
      ...config.token === undefined ? {} : { authorization: `Bearer ${config.token}` },
    };
  }

  /** Headers of every request. */
  get common(): Readonly<MutableHeaders> {
    return this.#common;
  }

  /** All of `deliveries` go to `url`; one is there at least. */
  message(deliveries: readonly Delivery[], url: URL): WebhookMessage {
    const [{ event }] = deliveries as [Delivery, ...Delivery[]];
    const { batch, cloudEventsSource: source } = this.#config;
    if (batch > 1) {
      const type = source === undefined ? "application/json" : CLOUDEVENTS_BATCH_CONTENT_TYPE;
      const events = deliveries.map((delivery) => delivery.event);
      return {
        deliveries,
        url,
        id: `${event.id}+${deliveries.length - 1}`,
        headers: { ...this.#common, "content-type": type },
        body: arrayOf(events.map((one) => source === undefined ? elementOf(one) : one.payload)),
      };
    }
    const own = source === undefined ? ownHeaders(event) : cloudEventsHeaders(event, source);
    const headers = { ...this.#common, ...own, "content-type": contentType(event) };
    return { deliveries, url, id: event.id, headers, body: event.payload };
  }

  /**
   * The headers of one attempt (github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md): its time, and
   * a signature for each secret.
   */
  headersOf({ id, headers, body }: WebhookMessage, nowMs: number): MutableHeaders {
    const timestamp = String(Math.floor(nowMs / 1000));
    const attempt: MutableHeaders = { ...headers, "webhook-id": id, "webhook-timestamp": timestamp };
    if (this.#keys.length === 0) return attempt;
    const signatures = this.#keys.map((key) =>
      `v1,${createHmac("sha256", key).update(`${id}.${timestamp}.`).update(body).digest("base64")}`
    );
    attempt["webhook-signature"] = signatures.join(" ");
    return attempt;
  }
}

function ownHeaders({ type, channel, routingKey }: Event): MutableHeaders {
  return {
    "pg-event-type": type,
    "pg-event-channel": headerText(channel),
    "pg-event-key": headerText(routingKey),
  };
}

/** Binary mode (cloudevents/bindings/http-protocol-binding.md, section 3.1.3). */
function cloudEventsHeaders(event: Event, source: string): MutableHeaders {
  return Object.fromEntries(
    Object.entries(attributesOf(event, source)).map(([name, value]) => [`ce-${name}`, headerText(value)]),
  );
}

/**
 * Percent-encoded, but for the printable characters of ASCII without blank, quote and percent sign (the same section of
 * the binding, 3.1.3.2): header values cannot hold others.
 */
function headerText(text: string): string {
  return text.toWellFormed().replace(/[^\x21\x23\x24\x26-\x7e]+/gu, encodeAll);
}

function encodeAll(text: string): string {
  return [...Buffer.from(text)].map((byte) => `%${byte.toString(16).toUpperCase().padStart(2, "0")}`).join("");
}

/** As the upstream stdout prints it; JSON stands in it byte for byte. */
function elementOf({ id, type, channel, routingKey, payload, json }: Event): Uint8Array {
  const head = JSON.stringify({ id, type, channel, routing_key: routingKey }).slice(0, -1);
  const data = json ? payload : Buffer.from(JSON.stringify(textOf(payload)));
  return Buffer.concat([Buffer.from(`${head},"payload":`), data, Buffer.from("}")]);
}

function arrayOf(elements: readonly Uint8Array[]): Uint8Array {
  const parts = elements.flatMap((element, i) => [i === 0 ? OPEN : COMMA, element]);
  return Buffer.concat([...parts, CLOSE]);
}

const OPEN = Buffer.from("[");
const COMMA = Buffer.from(",\n");
const CLOSE = Buffer.from("]");
