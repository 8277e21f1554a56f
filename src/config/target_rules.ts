/** What each kind of upstream allows in the name of a target, as a user writes it and as placeholders fill it in. */

import { Buffer } from "node:buffer";
import { type Clean, SUBSTITUTE } from "../core/target_template.ts";
import { type AwsKind, awsTargetProblem } from "./aws.ts";
import type { UpstreamKind } from "./config.ts";

export interface TargetRule {
  /** Makes the value of a placeholder fit: replaces the characters that the protocol forbids. */
  readonly clean: Clean;
  /** Why a name, filled in from `template`, cannot be one; undefined if it can. */
  readonly problem: (name: string, template: string) => string | undefined;
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
  webhook: { clean: pathSegment, problem: urlProblem },
  awssns: { clean: unchanged, problem: awsProblem("awssns") },
  awssqs: { clean: unchanged, problem: awsProblem("awssqs") },
  awslambda: { clean: unchanged, problem: awsProblem("awslambda") },
};

/** Each queue, topic or function is asked for at the start, before any event could fill its name in. */
function awsProblem(kind: AwsKind): TargetRule["problem"] {
  return (name, template) =>
    name === template ? awsTargetProblem(kind, name) : `placeholders are not supported for ${kind}; write a fixed name`;
}

/** A value never becomes more than one segment of a path, or one parameter of a query. */
function pathSegment(value: string): string {
  // `..` would climb, percent-encoded as well (url.spec.whatwg.org, "double-dot URL path segment").
  return /^\.+$/.test(value) ? replacing(/\./g)(value) : encodeURIComponent(value.toWellFormed());
}

function urlProblem(name: string, template: string): string | undefined {
  const wanted = "wanted https://host/path";
  if (!/^https?:\/\//i.test(name)) return `the target is no URL of HTTP; ${wanted}`;
  let url: URL;
  try {
    url = new URL(name);
  } catch {
    return `the target cannot be parsed as a URL; ${wanted}`;
  }
  if (url.username !== "" || url.password !== "") {
    return "the URL holds a user or a password, which the log would show; set token or extra_headers instead";
  }
  if (url.hash !== "") return "the URL holds a #, and what follows would not be sent; write %23, or leave it out";
  // What an event says must not decide which server gets it.
  if (/^[^:]*:\/\/[^/?]*[{}]/.test(template)) return "the URL holds a placeholder before its path; write a fixed host";
  return undefined;
}

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
