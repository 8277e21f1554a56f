/**
 * Receives from a broker and notes how old each message is. A program of its own, so that nothing else delays it:
 *
 *   bun tests/bench/latency_consumer.ts redis|stream|mqtt|amqp|webhook URI TARGET
 *
 * Prints "ready", and when it gets SIGTERM an array of the ages in microseconds, in the order of arrival.
 */

import { createServer } from "node:http";
import process from "node:process";
import amqp from "amqplib";
import { Redis } from "ioredis";
import mqtt from "mqtt";
import { sentMsOf, WallClock } from "./wall_clock.ts";

const [kind, uri = "", target = ""] = process.argv.slice(2);
const clock = new WallClock();
const agesUs: number[] = [];

function received(text: string): void {
  const sentMs = sentMsOf(text);
  if (sentMs !== undefined) agesUs.push(Math.round((clock.nowMs() - sentMs) * 1000));
}

async function subscribe(): Promise<void> {
  if (kind === "redis") {
    const client = new Redis(uri);
    client.on("message", (_channel, text) => received(text));
    await client.subscribe(target);
  } else if (kind === "stream") {
    void followStream(new Redis(uri));
  } else if (kind === "webhook") {
    const server = createServer((request, response) => {
      const chunks: Uint8Array[] = [];
      request.on("data", (chunk: Uint8Array) => chunks.push(chunk));
      request.on("end", () => {
        received(Buffer.concat(chunks).toString());
        response.end();
      });
    });
    await new Promise<void>((resolve) => server.listen(Number(new URL(uri).port), "127.0.0.1", resolve));
  } else if (kind === "mqtt") {
    const client = await mqtt.connectAsync(uri);
    client.on("message", (_topic, payload) => received(payload.toString()));
    await client.subscribeAsync(target, { qos: 1 });
  } else {
    const connection = await amqp.connect(uri, { noDelay: true });
    const channel = await connection.createChannel();
    await channel.consume(target, (message) => {
      if (message !== null) received(message.content.toString());
    }, { noAck: true });
  }
}

async function followStream(client: Redis): Promise<void> {
  for (let last = "$";;) {
    const reply = await client.xread("COUNT", 1_000, "BLOCK", 0, "STREAMS", target, last);
    for (const [id, fields] of reply?.[0]?.[1] ?? []) {
      last = id;
      received(fields[fields.indexOf("payload") + 1] ?? "");
    }
  }
}

process.on("SIGTERM", () => process.stdout.write(JSON.stringify(agesUs) + "\n", () => process.exit(0)));
await subscribe();
process.stdout.write("ready\n");
