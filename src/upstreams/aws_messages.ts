/** A message as SQS and SNS take it: size, attributes, groups, and the answers to a batch. */

import { isUtf8 } from "node:buffer";
import { createHash } from "node:crypto";
import { contentType, type Event } from "../core/event.ts";
import { bufferOf, textOf } from "../core/payload.ts";
import type { MessageFault } from "./aws.ts";

/** SendMessageBatch and PublishBatch take up to ten messages (SQS and SNS API references). */
export const MAX_BATCH_ENTRIES = 10;

export interface MessageAttribute {
  DataType: "String" | "Number";
  StringValue: string;
}

/** The properties of a message, as SQS and SNS take them; `type` is its content type. */
export function attributesOf(event: Event, type = contentType(event)): Record<string, MessageAttribute> {
  const attributes: Record<string, MessageAttribute> = {
    id: { DataType: "String", StringValue: event.id },
    type: { DataType: "String", StringValue: event.type },
    content_type: { DataType: "String", StringValue: type },
    timestamp: { DataType: "Number", StringValue: String(event.receivedAtMs) },
  };
  // A value must not be empty.
  if (event.routingKey !== "") attributes.routing_key = { DataType: "String", StringValue: event.routingKey };
  return attributes;
}

/** Names, types and values count towards the size of a message (SQS developer guide, "Amazon SQS message metadata"). */
function attributesBytes(event: Event, type?: string): number {
  let bytes = 0;
  for (const [name, { DataType, StringValue }] of Object.entries(attributesOf(event, type))) {
    bytes += name.length + DataType.length + Buffer.byteLength(StringValue);
  }
  return bytes;
}

/** All but these are refused or replaced (SQS API reference, SendMessage: #x9 | #xA | #xD | #x20 to #xD7FF | …). */
const FORBIDDEN = /[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\u{10000}-\u{10FFFF}]/u;

/** What the message and its attributes add up to, or the reason why a service that takes text cannot carry it. */
export function measureText(event: Event, maxBytes: number, type?: string): number | string {
  const { payload, routingKey } = event;
  if (payload.length === 0) return "it is empty, and a message must have at least one character";
  const bytes = payload.length + attributesBytes(event, type);
  if (bytes > maxBytes) return `it has ${bytes} bytes with its attributes; the limit is ${maxBytes}`;
  const buffer = bufferOf(payload);
  if (!isUtf8(buffer)) return "it is not UTF-8";
  const character = FORBIDDEN.exec(buffer.toString())?.[0] ?? FORBIDDEN.exec(routingKey)?.[0];
  if (character === undefined) return bytes;
  return `it holds the character U+${
    character.codePointAt(0)!.toString(16).toUpperCase().padStart(4, "0")
  }, which is ` +
    "not allowed in a message";
}

/** The bytes as they are: invalid UTF-8 must have been sorted out. */
export function messageText(event: Event): string {
  return textOf(event.payload);
}

/** Up to 128 letters, digits and punctuation marks (SQS and SNS API references, MessageGroupId). */
const GROUP_ID = /^[\x21-\x7e]{1,128}$/;
/** In place of an empty routing key. */
const NO_KEY = "none";

export function fifoIds(event: Event): { MessageGroupId: string; MessageDeduplicationId: string } {
  return { MessageGroupId: groupId(event.routingKey), MessageDeduplicationId: event.id };
}

function groupId(routingKey: string): string {
  if (routingKey === "") return NO_KEY;
  if (GROUP_ID.test(routingKey)) return routingKey;
  return createHash("sha256").update(routingKey).digest("hex");
}

/** Puts the answers to a batch, whose entries are numbered, in the order of its entries. */
export function batchAnswers(count: number, result: BatchResult): (MessageFault | undefined)[] {
  const answers: (MessageFault | undefined)[] = Array.from({ length: count }, () => NOT_MENTIONED);
  for (const { Id } of result.Successful ?? []) answers[Number(Id)] = undefined;
  for (const { Id, Code, Message, SenderFault } of result.Failed ?? []) {
    answers[Number(Id)] = { code: Code ?? "unknown", text: Message ?? "", sendersFault: SenderFault === true };
  }
  return answers;
}

const NOT_MENTIONED: MessageFault = {
  code: "unknown",
  text: "the answer does not mention it",
  sendersFault: false,
};

interface BatchResult {
  readonly Successful?: readonly { readonly Id?: string | undefined }[] | undefined;
  readonly Failed?:
    | readonly {
      readonly Id: string | undefined;
      readonly Code: string | undefined;
      readonly Message?: string | undefined;
      readonly SenderFault: boolean | undefined;
    }[]
    | undefined;
}
