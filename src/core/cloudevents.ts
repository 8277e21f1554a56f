/**
 * CloudEvents 1.0 (github.com/cloudevents/spec, cloudevents/spec.md): the attributes of an event, for protocols that have
 * a place for them, and the JSON event format (formats/json-format.md) for the others.
 */

import { Buffer, isUtf8 } from "node:buffer";
import { contentType, type Event } from "./event.ts";
import { bufferOf } from "./payload.ts";

export const CLOUDEVENTS_CONTENT_TYPE = "application/cloudevents+json";
export const CLOUDEVENTS_BATCH_CONTENT_TYPE = "application/cloudevents-batch+json";

/**
 * Context attributes without `datacontenttype`, in the order of the specification. `source` tells events of different
 * databases apart, whose ids may be equal.
 */
export function attributesOf(event: Event, source: string): Record<string, string> {
  const attributes: Record<string, string> = {
    specversion: "1.0",
    id: event.id,
    source,
    type: typeOf(event),
    time: new Date(event.receivedAtMs).toISOString(),
    // An extension: names have lower-case letters and digits only.
    channel: event.channel,
  };
  // An empty subject is not allowed.
  if (event.routingKey !== "") attributes.subject = event.routingKey;
  return attributes;
}

/** `pg_event_proxy.notify`, or what happened to a row or a transaction: `pg_event_proxy.insert`. */
function typeOf({ type, routingKey }: Event): string {
  if (type === "notify") return "pg_event_proxy.notify";
  return `pg_event_proxy.${routingKey.slice(routingKey.lastIndexOf(".") + 1) || "wal"}`;
}

/** The event as one line of JSON; a JSON payload stands in it byte for byte, but for line breaks between its tokens. */
export function structuredEvent(event: Event, source: string): Event {
  const { id, type, channel, routingKey, receivedAtMs } = event;
  const attributes = { ...attributesOf(event, source), datacontenttype: contentType(event) };
  const head = JSON.stringify(attributes).slice(0, -1);
  return {
    id,
    type,
    channel,
    routingKey,
    receivedAtMs,
    json: true,
    payload: Buffer.concat([
      Buffer.from(head),
      ...dataMember(event),
      Buffer.from("}"),
    ]),
  };
}

function dataMember({ json, payload }: Event): Uint8Array[] {
  if (json) return [Buffer.from(',"data":'), onOneLine(payload)];
  const bytes = bufferOf(payload);
  const member = isUtf8(bytes)
    ? `,"data":${JSON.stringify(bytes.toString())}`
    : `,"data_base64":"${bytes.toString("base64")}"`;
  return [Buffer.from(member)];
}

const LINE_FEED = 0x0a;
const CARRIAGE_RETURN = 0x0d;
const SPACE = 0x20;

/** In JSON line breaks are allowed between tokens only (RFC 8259, section 7): there a blank is as good. */
function onOneLine(json: Uint8Array): Uint8Array {
  if (json.indexOf(LINE_FEED) === -1 && json.indexOf(CARRIAGE_RETURN) === -1) return json;
  return json.map((byte) => byte === LINE_FEED || byte === CARRIAGE_RETURN ? SPACE : byte);
}
