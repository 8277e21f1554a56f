/** The encoder, read back by the rules of the protocol: arrays of bulk strings. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { CommandEncoder } from "../../src/upstreams/redis_commands.ts";

function readCommands(bytes: Buffer): Buffer[][] {
  const commands: Buffer[][] = [];
  let at = 0;
  const line = (mark: string): number => {
    const end = bytes.indexOf("\r\n", at);
    const text = bytes.toString("latin1", at, end);
    assert.match(text, /^[*$]\d+$/);
    assert.equal(text[0], mark);
    at = end + 2;
    return Number(text.slice(1));
  };
  while (at < bytes.length) {
    const args: Buffer[] = [];
    for (let count = line("*"); count > 0; count--) {
      const length = line("$");
      args.push(bytes.subarray(at, at + length));
      at += length;
      assert.equal(bytes.toString("latin1", at, at + 2), "\r\n");
      at += 2;
    }
    commands.push(args);
  }
  return commands;
}

test("commands of all sizes and any bytes are read back as they were given", () => {
  const chunks: Uint8Array[] = [];
  const encoder = new CommandEncoder((bytes) => chunks.push(bytes));
  const wanted: (string | Uint8Array)[][] = [];
  const payloads = [0, 1, 9, 10, 255, 256, 257, 16_384, 16_385, 100_000, 0, 5].map((n) => Buffer.alloc(n, "\r\n$5"));
  for (let round = 0; round < 30; round++) {
    for (const [index, payload] of payloads.entries()) {
      const channel = index % 3 === 0 ? "ключ" : "orders";
      encoder.publish(channel, payload);
      wanted.push(["PUBLISH", channel, payload]);
      if (index % 4 !== 0) continue;
      const args = ["XADD", "stream", "*", "id", `0/${round}`, "payload", payload, "empty", ""];
      encoder.command(args);
      wanted.push(args);
    }
    if (round % 7 === 0) encoder.flush();
  }
  encoder.flush();
  const commands = readCommands(Buffer.concat(chunks));
  assert.equal(commands.length, wanted.length);
  for (const [index, args] of commands.entries()) {
    assert.deepEqual(
      args.map((arg) => arg.toString("latin1")),
      wanted[index]!.map((arg) => Buffer.from(arg as string).toString("latin1")),
    );
  }
  encoder.flush();
  assert.equal(readCommands(Buffer.concat(chunks)).length, wanted.length, "nothing is written twice");
});
