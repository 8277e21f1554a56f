/** What each kind of upstream allows in the name of a target, as a user writes it and as placeholders fill it in. */

import { Buffer } from "node:buffer";
import { type Clean, SUBSTITUTE } from "../core/target_template.ts";
import type { UpstreamKind } from "./config.ts";

export interface TargetRule {
  /** Makes the value of a placeholder fit: replaces the characters that the protocol forbids. */
  readonly clean: Clean;
  /** Why a name, placeholders filled in, cannot be one; undefined if it can. */
  readonly problem: (name: string) => string | undefined;
}

/** Exchange and queue names are short strings (AMQP 0.9.1, section 4.2.5.3). */
const MAX_AMQP_NAME_BYTES = 255;
/** UTF-8 strings have a length of two bytes (MQTT 3.1.1, section 1.5.3). */
const MAX_MQTT_TOPIC_BYTES = 65_535;

/** U+0000 to U+001F and U+007F to U+009F. */
const CONTROL_CHARACTERS = /\p{Cc}/gu;
/** Wildcards, and control characters, over which a server may end the connection (MQTT 5, sections 4.7.1 and 1.5.4). */
const MQTT_FORBIDDEN = /[+#\p{Cc}]/gu;

export const TARGET_RULES: Readonly<Record<UpstreamKind, TargetRule>> = {
  amqp: {
    // RabbitMQ takes any UTF-8 in names (www.rabbitmq.com/docs/queues#names), and drops line breaks when it declares them.
    clean: replacing(CONTROL_CHARACTERS),
    problem: (name) => tooLong(name, MAX_AMQP_NAME_BYTES, "name", "AMQP"),
  },
  mqtt: {
    clean: replacing(MQTT_FORBIDDEN),
    problem: (name) =>
      tooLong(name, MAX_MQTT_TOPIC_BYTES, "topic", "MQTT") ??
        // A broker drops the client that publishes to one of these (MQTT 3.1.1, [MQTT-3.3.2-2] and [MQTT-1.5.3-2]).
        (/[+#]/.test(name) ? "the topic holds + or #, which MQTT allows in subscriptions only" : undefined),
  },
  // Channels and keys are binary safe (redis.io/docs/latest/develop/use/keyspace).
  redis: { clean: unchanged, problem: () => undefined },
  stdout: { clean: unchanged, problem: () => undefined },
};

/** With each character that `forbidden`, a global expression, finds replaced. */
export function replacing(forbidden: RegExp): Clean {
  return (value) => value.replace(forbidden, SUBSTITUTE);
}

function unchanged(value: string): string {
  return value;
}

/** `what` the name is, and whose limit that is. */
export function tooLong(name: string, maxBytes: number, what: string, whose: string): string | undefined {
  const bytes = Buffer.byteLength(name);
  return bytes > maxBytes ? `the ${what} has ${bytes} bytes; ${whose} allows ${maxBytes}` : undefined;
}
