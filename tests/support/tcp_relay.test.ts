import assert from "node:assert/strict";
import { connect, createServer, type Socket } from "node:net";
import { test } from "node:test";
import { TcpRelay } from "./tcp_relay.ts";
import { until } from "./wait.ts";

interface Peer {
  readonly socket: Socket;
  text: string;
  closed: boolean;
}

function peer(socket: Socket): Peer {
  const seen: Peer = { socket, text: "", closed: false };
  socket.on("data", (chunk) => seen.text += chunk);
  socket.on("error", () => {});
  socket.on("close", () => seen.closed = true);
  return seen;
}

/** A server that greets, a relay before it, and clients through the relay. */
async function withRelay(run: (relay: TcpRelay, dial: () => Promise<[Peer, Peer]>) => Promise<void>): Promise<void> {
  const accepted: Peer[] = [];
  const server = createServer((socket) => {
    accepted.push(peer(socket));
    socket.write("hello");
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  assert.ok(address !== null && typeof address === "object");
  const relay = await TcpRelay.start({ targetPort: address.port });
  const clients: Peer[] = [];
  try {
    await run(relay, async () => {
      const client = peer(connect(relay.port, "127.0.0.1"));
      clients.push(client);
      await until(() => client.text === "hello" || client.closed, { what: "the greeting" });
      return [client, accepted.at(-1)!];
    });
  } finally {
    await relay.close();
    for (const { socket } of [...clients, ...accepted]) socket.destroy();
    await new Promise((resolve) => server.close(resolve));
  }
}

test("passes both directions and the end", async () => {
  await withRelay(async (relay, dial) => {
    const [client, server] = await dial();
    client.socket.write("question");
    await until(() => server.text === "question", { what: "the question" });
    server.socket.end("answer");
    await until(() => client.text === "helloanswer" && client.closed, { what: "the answer and the end" });
    await until(() => relay.connections === 0, { what: "the relay to forget the connection" });
  });
});

test("cuts both sides, and refuses until it is healed", async () => {
  await withRelay(async (relay, dial) => {
    const [client, server] = await dial();
    relay.refuse();
    await until(() => client.closed && server.closed, { what: "both sides to end" });
    const [refused] = await dial();
    assert.ok(refused.closed);
    relay.heal();
    const [again] = await dial();
    assert.equal(again.text, "hello");
  });
});

test("half open: loses what is said, and the end, of the connections there were", async () => {
  await withRelay(async (relay, dial) => {
    const [client, server] = await dial();
    relay.swallow();
    client.socket.write("lost");
    server.socket.write("lost");
    const [other, otherServer] = await dial();
    other.socket.write("passes");
    await until(() => otherServer.text === "passes", { what: "the new connection to pass" });
    client.socket.destroy();
    await until(() => client.closed, { what: "the client to end" });
    assert.deepEqual([client.text, server.text, server.closed], ["hello", "", false]);
  });
});

test("one direction only", async () => {
  await withRelay(async (relay, dial) => {
    const [client, server] = await dial();
    relay.swallow(["toClient"]);
    server.socket.write("lost");
    client.socket.write("passes");
    await until(() => server.text === "passes", { what: "the other direction" });
    assert.equal(client.text, "hello");
  });
});

test("half open from a certain word on", async () => {
  await withRelay(async (relay, dial) => {
    const [client, server] = await dial();
    relay.silenceAt("magic");
    client.socket.write("before");
    await until(() => server.text === "before", { what: "what is said before" });
    client.socket.write("the magic word");
    const [other, otherServer] = await dial();
    other.socket.write("magic again");
    await until(() => otherServer.text === "magic again", { what: "the second to say it" });
    assert.deepEqual([server.text, server.closed], ["before", false]);
  });
});

test("slows to a trickle, losing nothing", async () => {
  await withRelay(async (relay, dial) => {
    const [client, server] = await dial();
    relay.throttle("toServer", 2_000);
    const text = "x".repeat(1_000);
    const startMs = performance.now();
    client.socket.write(text);
    await until(() => server.text === text, { what: "all of it" });
    assert.ok(performance.now() - startMs >= 350, `took ${performance.now() - startMs} ms for 0.5 s of data`);
    client.socket.write("y".repeat(100_000));
    relay.heal();
    client.socket.write("end");
    await until(() => server.text.length === 101_003 && server.text.endsWith("yend"), {
      what: "the rest at full speed",
    });
  });
});
