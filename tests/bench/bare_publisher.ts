/**
 * What RabbitMQ takes from one client that does nothing but publish: the messages and properties that the proxy sends,
 * to the same queue, with a window of unconfirmed ones, and without PostgreSQL. A program of its own:
 *
 *   bun tests/bench/bare_publisher.ts URI QUEUE DELIVERY_MODE COUNT SAMPLE_FILE [WINDOW]
 *
 * amqplib with the settings that measured best: no Nagle, a window of 2,000, one writev per pass of its multiplexer.
 */

import { readFileSync } from "node:fs";
import process from "node:process";
import type { Writable } from "node:stream";
import amqp from "amqplib";

const [uri = "", queue = "", deliveryMode = "1", count = "0", sampleFile = "", window = "2000"] = process.argv.slice(2);

interface AmqplibInternals {
  readonly muxer: { _readIncoming: () => void };
  readonly stream: Writable;
}

async function main(): Promise<void> {
  const sample = (JSON.parse(readFileSync(sampleFile, "utf8")) as string[]).map((text) => Buffer.from(text));
  const connection = await amqp.connect(uri, { noDelay: true });
  corkWrites(connection.connection as unknown as AmqplibInternals);
  const channel = await connection.createConfirmChannel();
  await publishAll(channel, sample, Number(count), Number(window));
  await connection.close();
}

function publishAll(
  channel: amqp.ConfirmChannel,
  sample: readonly Buffer[],
  total: number,
  limit: number,
): Promise<void> {
  return new Promise((resolve, reject) => {
    let published = 0;
    let confirmed = 0;
    const confirms = new Confirms();
    const timestamp = Math.floor(Date.now() / 1000);
    const fill = () => {
      while (published < total && published - confirmed < limit) {
        channel.publish("", queue, sample[published % sample.length] ?? Buffer.alloc(0), {
          mandatory: true,
          deliveryMode: Number(deliveryMode),
          messageId: `0/15D2A3C8-${published}`,
          contentType: "application/json",
          appId: "pg-event-proxy",
          type: "wal",
          timestamp,
        });
        published++;
      }
    };
    channel.on("ack", ({ deliveryTag, multiple }: { deliveryTag: number; multiple: boolean }) => {
      confirmed = confirms.add(deliveryTag, multiple);
      if (confirmed >= total) resolve();
      else fill();
    });
    channel.on("error", reject);
    channel.on("return", () => reject(new Error(`queue ${queue} is missing`)));
    fill();
  });
}

/** Counts confirms: single ones may come out of turn, and be covered once more by a later `multiple`. */
class Confirms {
  #upTo = 0;
  readonly #beyond = new Set<number>();

  add(tag: number, multiple: boolean): number {
    if (!multiple) this.#beyond.add(tag);
    else if (tag > this.#upTo) {
      this.#upTo = tag;
      for (const single of this.#beyond) if (single <= tag) this.#beyond.delete(single);
    }
    while (this.#beyond.delete(this.#upTo + 1)) this.#upTo++;
    return this.#upTo + this.#beyond.size;
  }
}

function corkWrites({ muxer, stream }: AmqplibInternals): void {
  const pass = muxer._readIncoming;
  muxer._readIncoming = () => {
    stream.cork();
    pass.call(muxer);
    stream.uncork();
  };
}

await main();
