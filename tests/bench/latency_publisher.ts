/**
 * Publishes at a steady rate, without PostgreSQL: what the broker and the consumer take by themselves.
 *
 *   bun tests/bench/latency_publisher.ts redis|stream|mqtt|amqp|webhook URI TARGET RATE SECONDS DELIVERY_MODE_OR_QOS
 */

import process from "node:process";
import amqp from "amqplib";
import { Redis } from "ioredis";
import mqtt from "mqtt";
import { tickMessage, WallClock } from "./wall_clock.ts";

const [kind, uri = "", target = "", rate = "200", seconds = "10", mode = "1"] = process.argv.slice(2);
const clock = new WallClock();

interface Publisher {
  publish(message: string): void;
  close(): Promise<unknown>;
}

async function connect(): Promise<Publisher> {
  if (kind === "redis") {
    const client = new Redis(uri);
    return { publish: (message) => void client.publish(target, message), close: () => client.quit() };
  }
  if (kind === "stream") {
    const client = new Redis(uri);
    return { publish: (message) => void client.xadd(target, "*", "payload", message), close: () => client.quit() };
  }
  if (kind === "webhook") {
    let last: Promise<unknown> = Promise.resolve();
    const post = async (body: string) => void await (await fetch(uri, { method: "POST", body })).arrayBuffer();
    return { publish: (message) => void (last = last.then(() => post(message))), close: () => last };
  }
  if (kind === "mqtt") {
    const client = await mqtt.connectAsync(uri);
    const qos = mode === "0" ? 0 : 1;
    return { publish: (message) => void client.publish(target, message, { qos }), close: () => client.endAsync() };
  }
  const connection = await amqp.connect(uri, { noDelay: true });
  const channel = await connection.createConfirmChannel();
  const properties = { deliveryMode: Number(mode), contentType: "application/json", appId: "pg-event-proxy" };
  return {
    publish: (message) => void channel.publish("", target, Buffer.from(message), properties),
    close: async () => {
      await channel.waitForConfirms();
      await connection.close();
    },
  };
}

const publisher = await connect();
const total = Number(rate) * Number(seconds);
const startedAtMs = performance.now();
let sent = 0;
await new Promise<void>((resolve) => {
  const timer = setInterval(() => {
    const due = Math.min(total, Math.floor(((performance.now() - startedAtMs) / 1000) * Number(rate)));
    while (sent < due) publisher.publish(tickMessage(++sent, clock.nowMs()));
    if (sent < total) return;
    clearInterval(timer);
    resolve();
  }, 1);
});
await publisher.close();
process.exit(0);
