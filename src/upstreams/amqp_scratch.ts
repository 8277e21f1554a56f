/** Questions to RabbitMQ, each on a channel of its own, since a refusal closes the channel. */

import type { ChannelModel, ConfirmChannel } from "amqplib";
import { errorText, TransientError } from "../core/errors.ts";
import { APPLICATION_NAME, contentType, type Event } from "../core/event.ts";
import type { Permission, Target } from "../core/upstream.ts";

/** Reply codes (AMQP 0-9-1, section 1.2). */
const ACCESS_REFUSED = 403;
const PRECONDITION_FAILED = 406;

export interface Refusal {
  readonly code: number;
  readonly text: string;
}

/** A refusal closes the channel it came on (AMQP 0-9-1, section 1.7.2), so each question gets one of its own. */
export async function onScratchChannel(
  connection: ChannelModel,
  ask: (channel: ConfirmChannel) => Promise<void>,
): Promise<Refusal | undefined> {
  const channel = await connection.createConfirmChannel();
  let refusal: Refusal | undefined;
  channel.on("error", (error: Error & { code?: unknown }) => {
    refusal = { code: Number(error.code), text: serverText(error) };
  });
  try {
    await ask(channel);
    await channel.close();
    return undefined;
  } catch (error) {
    const code = Number((error as { code?: unknown }).code);
    if (refusal === undefined && Number.isNaN(code)) throw error;
    return refusal ?? { code, text: serverText(error) };
  }
}

/** `404 (NOT-FOUND) with message "…"` without amqplib's words around it. */
export function serverText(error: unknown): string {
  const text = errorText(error);
  return /message "(.*)"$/.exec(text)?.[1] ?? text;
}

/** Where an event of this routing key goes: a queue is reached by the default exchange. */
function addressOf({ type, name }: Target, routingKey: string): readonly [exchange: string, routingKey: string] {
  return type === "queue" ? ["", name] : [name, routingKey];
}

/**
 * RabbitMQ looks at the rights before the properties (rabbit_channel.erl, handle_method basic.publish), so a message that
 * can never be accepted tells: another user's `user-id`, and an `expiration` that is no number.
 */
export async function askPermission(
  connection: ChannelModel,
  target: Target,
  routingKey: string,
): Promise<Permission> {
  const [exchange, key] = addressOf(target, routingKey);
  const refusal = await onScratchChannel(connection, async (channel) => {
    channel.publish(exchange, key, Buffer.alloc(0), {
      userId: `not a user of ${APPLICATION_NAME}`,
      expiration: "never",
    });
    await channel.waitForConfirms();
  });
  if (refusal === undefined || refusal.code === PRECONDITION_FAILED) return { kind: "allowed" };
  if (refusal.code !== ACCESS_REFUSED) return { kind: "unknown", reason: refusal.text };
  const isAboutKey = /access to topic/.test(refusal.text);
  // The routing keys of notifications are not known beforehand.
  if (isAboutKey && routingKey === "") return { kind: "unknown", reason: refusal.text };
  const remedy = isAboutKey
    ? "rabbitmqctl set_topic_permissions has to allow the routing keys of the events"
    : "rabbitmqctl set_permissions has to grant write on it (amq.default is the exchange by which queues are reached)";
  return { kind: "refused", reason: refusal.text, remedy };
}

/** Whether any queue got it. */
export async function publishAndTell(connection: ChannelModel, event: Event, target: Target): Promise<boolean> {
  const [exchange, key] = addressOf(target, event.routingKey);
  let returned = false;
  const refusal = await onScratchChannel(connection, async (channel) => {
    channel.on("return", () => returned = true);
    channel.publish(exchange, key, Buffer.from(event.payload), {
      mandatory: true,
      messageId: event.id,
      contentType: contentType(event),
      appId: APPLICATION_NAME,
      type: event.type,
    });
    await channel.waitForConfirms();
  });
  if (refusal !== undefined) throw new TransientError(refusal.text);
  return !returned;
}
