/** The header table of a message: what a notification begins with (`headers=true`), and the attributes of a CloudEvent. */

import { Buffer } from "node:buffer";
import { attributesOf } from "../core/cloudevents.ts";
import { contentType, type Event } from "../core/event.ts";
import { splitHeaders } from "../core/message_headers.ts";
import { isJson, looksLikeJson } from "../core/notification.ts";
import { textOf } from "../core/payload.ts";

/**
 * Application properties of the AMQP binding (cloudevents/bindings/amqp-protocol-binding.md, section 3.1.3.1), which
 * RabbitMQ maps to headers and back.
 */
const CLOUDEVENTS_PREFIX = "cloudEvents_";

/** amqplib 2.3.1 encodes all properties of a message in a buffer of 64 KiB. */
const MAX_HEADERS_BYTES = 32 * 1024;
/** A field name is a short string (AMQP 0-9-1, section 4.2.5.5). */
const MAX_NAME_BYTES = 255;

export interface DressedMessage {
  readonly headers: Readonly<Record<string, string>>;
  readonly payload: Uint8Array;
  readonly contentType: string;
  /** Why it cannot be sent; undefined if it can. */
  readonly fault: string | undefined;
}

export interface DressOptions {
  /** Whether notifications may begin with headers. */
  readonly headers: boolean;
  readonly cloudEventsSource: string | undefined;
}

/** Undefined where messages go without headers. */
export function dresser(options: DressOptions): ((event: Event) => DressedMessage) | undefined {
  const { headers, cloudEventsSource } = options;
  if (!headers && cloudEventsSource === undefined) return undefined;
  return (event) => {
    const plain = { headers: {}, payload: event.payload, contentType: contentType(event) };
    const own = headers && event.type === "notify" ? undress(event.payload) ?? plain : plain;
    if (cloudEventsSource === undefined) return { ...own, fault: faultOf(own.headers) };
    const all = { ...own.headers, ...cloudEventsHeaders(event, cloudEventsSource) };
    return { ...own, headers: all, fault: faultOf(all) };
  };
}

function undress(payload: Uint8Array): Omit<DressedMessage, "fault"> | undefined {
  const text = textOf(payload);
  // Such a payload was never split.
  const headed = looksLikeJson(text) ? undefined : splitHeaders(text);
  if (headed === undefined) return undefined;
  const { headers, message } = headed;
  return { headers, payload: Buffer.from(message), contentType: contentType({ json: isJson(message) }) };
}

function cloudEventsHeaders(event: Event, source: string): Record<string, string> {
  return Object.fromEntries(
    Object.entries(attributesOf(event, source)).map(([name, value]) => [CLOUDEVENTS_PREFIX + name, value]),
  );
}

function faultOf(headers: Readonly<Record<string, string>>): string | undefined {
  let bytes = 0;
  for (const [name, value] of Object.entries(headers)) {
    const nameBytes = Buffer.byteLength(name);
    if (nameBytes > MAX_NAME_BYTES) return `the name of a header has ${nameBytes} bytes; AMQP allows ${MAX_NAME_BYTES}`;
    bytes += nameBytes + Buffer.byteLength(value) + 6;
  }
  return bytes > MAX_HEADERS_BYTES ? `its headers have ${bytes} bytes; allowed are ${MAX_HEADERS_BYTES}` : undefined;
}
