/** What scripts/listen_events.sh runs. */

import process from "node:process";
import { parseArgs } from "node:util";
import { consumeAmqp, consumeMqtt, consumeRedis, type Message } from "../tests/support/consumers.ts";

const COMPOSE_URIS = ["amqp://guest:guest@127.0.0.1:5672", "mqtt://127.0.0.1:1883", "redis://127.0.0.1:6379"];
const USAGE = "wanted: scripts/listen_events.sh [amqp://… | mqtt://… | redis://… …] [--count MESSAGES]";
const BROKERS = { amqp: "RabbitMQ", mqtt: "MQTT", redis: "Redis" } as const;
const KEY_WIDTH = 22;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { count: { type: "string", default: "Infinity" } },
});
let wanted = Number(values.count);
if (!(wanted > 0)) fail(USAGE, 2);
process.on("SIGINT", () => process.exit(130));

try {
  await Promise.all((positionals.length > 0 ? positionals : COMPOSE_URIS).map(listen));
  process.stderr.write("listen_events.sh: listening\n");
} catch (error) {
  fail(`${error instanceof Error ? error.message : error}; are the brokers up, and their URIs right?`, 1);
}

async function listen(uri: string): Promise<unknown> {
  const scheme = /^(amqp|mqtt|redis)s?:\/\//.exec(uri)?.[1] as keyof typeof BROKERS | undefined;
  const onMessage = (message: Message) => show(BROKERS[scheme ?? "amqp"], message);
  switch (scheme) {
    case "amqp":
      return await consumeAmqp(uri, { exchange: "amq.topic", onMessage });
    case "mqtt":
      return await consumeMqtt(uri, "#", { onMessage });
    case "redis":
      return await consumeRedis(uri, { pattern: "*" }, { onMessage });
    case undefined:
      return fail(`${JSON.stringify(uri)} is no URI of a broker; ${USAGE}`, 2);
  }
}

function show(broker: string, { key, text }: Message): void {
  process.stdout.write(`${broker.padEnd(8)} ${key.padEnd(KEY_WIDTH)} ${text}\n`);
  wanted -= 1;
  if (wanted <= 0) process.exit(0);
}

function fail(text: string, code: number): never {
  process.stderr.write(`listen_events.sh: ${text}\n`);
  process.exit(code);
}
