import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { Framer, FramingError, MAX_MESSAGE_BYTES } from "../../src/postgres/framer.ts";

interface Message {
  readonly type: string;
  readonly body: string;
}

/** A message as the server sends it; `length` other than the true one makes it hostile. */
function message(type: string, body: Uint8Array, length = body.length + 4): Buffer {
  const header = Buffer.alloc(5);
  header.write(type, 0, "latin1");
  header.writeInt32BE(length | 0, 1);
  return Buffer.concat([header, body]);
}

/** Login, a query and the beginning of a copy, as PostgreSQL 15 sends them; empty bodies among them. */
const RECORDED: readonly (readonly [type: string, body: Buffer])[] = [
  ["R", Buffer.from([0, 0, 0, 0])],
  ["S", Buffer.from("client_encoding\0UTF8\0")],
  ["S", Buffer.from("server_version\x0015.20 (Debian 15.20-0+deb12u1)\0")],
  ["K", Buffer.from([0, 0, 0x12, 0x34, 0xde, 0xad, 0xbe, 0xef])],
  ["Z", Buffer.from("I")],
  ["T", Buffer.from("\0\x01setting\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0", "latin1")],
  ["D", Buffer.from("\0\x01\0\0\0\x07logical", "latin1")],
  ["D", Buffer.from("\0\x01\xff\xff\xff\xff", "latin1")],
  ["C", Buffer.from("SELECT 2\0")],
  ["I", Buffer.alloc(0)],
  ["Z", Buffer.from("I")],
  ["W", Buffer.from([0, 0, 0])],
  ["d", Buffer.concat([Buffer.from("w"), Buffer.alloc(24, 7), Buffer.from(`{"action":"B"}`)])],
  ["d", Buffer.alloc(0)],
  ["c", Buffer.alloc(0)],
];
const BYTES = Buffer.concat(RECORDED.map(([type, body]) => message(type, body)));
const EXPECTED: Message[] = RECORDED.map(([type, body]) => ({ type, body: body.toString("hex") }));

class Collector {
  readonly messages: Message[] = [];
  readonly buffers: Buffer[] = [];
  readonly framer = new Framer((type, buffer, start, end) => {
    assert.ok(start >= 0 && end >= start && end <= buffer.length);
    this.buffers.push(buffer);
    this.messages.push({ type: String.fromCharCode(type), body: buffer.toString("hex", start, end) });
  });

  push(...chunks: readonly Buffer[]): this {
    for (const chunk of chunks) this.framer.push(chunk);
    return this;
  }
}

test("the framer cuts a chunk into messages without copying them", () => {
  const collector = new Collector().push(BYTES);
  assert.deepEqual(collector.messages, EXPECTED);
  assert.ok(collector.buffers.every((buffer) => buffer === BYTES));
  assert.equal(collector.framer.partial, false);
});

test("the framer gives the same messages at every split point", () => {
  for (let split = 0; split <= BYTES.length; split++) {
    const collector = new Collector().push(BYTES.subarray(0, split), BYTES.subarray(split));
    assert.deepEqual(collector.messages, EXPECTED, `split at ${split}`);
    assert.equal(collector.framer.partial, false);
  }
});

test("the framer gives the same messages at every pair of split points", () => {
  const bytes = BYTES.subarray(0, 90);
  const expected = new Collector().push(bytes).messages;
  for (let first = 0; first <= bytes.length; first++) {
    for (let second = first; second <= bytes.length; second++) {
      const collector = new Collector().push(
        bytes.subarray(0, first),
        bytes.subarray(first, second),
        bytes.subarray(second),
      );
      assert.deepEqual(collector.messages, expected, `split at ${first} and ${second}`);
    }
  }
});

test("the framer takes the stream one byte at a time, with empty chunks in between", () => {
  const collector = new Collector();
  for (const byte of BYTES) collector.push(Buffer.of(byte), Buffer.alloc(0));
  assert.deepEqual(collector.messages, EXPECTED);
});

test("the framer says whether it holds a part of a message", () => {
  const collector = new Collector();
  const states = [...message("Z", Buffer.from("I"))].map((byte) => collector.push(Buffer.of(byte)).framer.partial);
  assert.deepEqual(states, [true, true, true, true, true, false]);
});

test("the framer is indifferent to how any messages are cut into chunks", () => {
  const type = fc.constantFrom(..."RSKZTDCIWdcEN");
  const body = fc.oneof({ weight: 4, arbitrary: fc.uint8Array({ maxLength: 40 }) }, {
    weight: 1,
    arbitrary: fc.integer({ min: 60_000, max: 200_000 }).map((size) => new Uint8Array(size).fill(size & 0xff)),
  });
  const messages = fc.array(fc.tuple(type, body), { maxLength: 12 });
  const sizes = fc.array(fc.oneof(fc.integer({ min: 1, max: 9 }), fc.integer({ min: 1, max: 70_000 })), {
    minLength: 1,
    maxLength: 30,
  });
  fc.assert(fc.property(messages, sizes, (sent, chunkSizes) => {
    const bytes = Buffer.concat(sent.map(([type, body]) => message(type, body)));
    const collector = new Collector();
    for (let offset = 0, i = 0; offset < bytes.length; i++) {
      // Beyond the drawn sizes the chunks are large, so that a run stays short.
      const size = i < chunkSizes.length ? chunkSizes[i]! : 65_536;
      collector.push(Buffer.from(bytes.subarray(offset, offset + size)));
      offset += size;
    }
    assert.deepEqual(
      collector.messages,
      sent.map(([type, body]) => ({ type, body: Buffer.from(body).toString("hex") })),
    );
    assert.equal(collector.framer.partial, false);
  }));
});

test("a message that spans chunks stays valid after the chunks are overwritten", () => {
  const bodies: (() => string)[] = [];
  const framer = new Framer((_type, buffer, start, end) => bodies.push(() => buffer.toString("latin1", start, end)));
  const bytes = Buffer.concat([message("d", Buffer.from("first")), message("d", Buffer.from("second"))]);
  const chunks = [
    Buffer.from(bytes.subarray(0, 8)),
    Buffer.from(bytes.subarray(8, 12)),
    Buffer.from(bytes.subarray(12)),
  ];
  for (const chunk of chunks) framer.push(chunk);
  chunks[0]!.fill(0);
  chunks[1]!.fill(0);
  assert.deepEqual(bodies.map((body) => body()), ["first", "second"]);
});

const IMPOSSIBLE = [0, 1, 2, 3, -1, -2, -(2 ** 31), 2 ** 31 - 1, MAX_MESSAGE_BYTES + 5];

for (const length of IMPOSSIBLE) {
  test(`the framer refuses a length field of ${length}, wherever the chunks end`, () => {
    const bytes = Buffer.concat([message("Z", Buffer.from("I")), message("d", Buffer.alloc(3), length)]);
    for (let split = 0; split <= bytes.length; split++) {
      const collector = new Collector();
      assert.throws(
        () => collector.push(bytes.subarray(0, split), bytes.subarray(split)),
        (error) => error instanceof FramingError && error.message.includes(`says ${length | 0} bytes`),
        `split at ${split}`,
      );
      assert.deepEqual(collector.messages, [{ type: "Z", body: "49" }]);
    }
  });
}

/** The sizes of the buffers that are allocated while `body` runs. */
function allocations(body: () => void): number[] {
  const sizes: number[] = [];
  const { alloc, allocUnsafe, allocUnsafeSlow } = Buffer;
  const counted = (allocate: (size: number) => Buffer<ArrayBuffer>) => (size: number) => {
    sizes.push(size);
    return allocate(size);
  };
  Object.assign(Buffer, {
    alloc: counted(alloc),
    allocUnsafe: counted(allocUnsafe),
    allocUnsafeSlow: counted(allocUnsafeSlow),
  });
  try {
    body();
  } finally {
    Object.assign(Buffer, { alloc, allocUnsafe, allocUnsafeSlow });
  }
  return sizes;
}

test("the framer takes the largest length that PostgreSQL can send, and allocates no more than what has arrived", () => {
  const collector = new Collector();
  const bytes = message("d", Buffer.alloc(300_000), MAX_MESSAGE_BYTES + 4);
  const sizes = [1000, 1000, 100_000, bytes.length].map((end, i, ends) => {
    return Math.max(0, ...allocations(() => collector.push(bytes.subarray(i === 0 ? 0 : ends[i - 1], end))));
  });
  assert.equal(collector.framer.partial, true);
  assert.deepEqual(collector.messages, []);
  assert.deepEqual(
    sizes.map((size, i) => size <= [65_536, 0, 200_000, 600_000][i]!),
    [true, true, true, true],
    `${sizes}`,
  );
});

test("the buffer of a message in many chunks is grown a few times only, and is as long as the message", () => {
  const body = Buffer.alloc(4 * 1024 * 1024, 1);
  const bytes = message("d", body);
  const collector = new Collector();
  const sizes = allocations(() => {
    for (let offset = 0; offset < bytes.length; offset += 4096) collector.push(bytes.subarray(offset, offset + 4096));
  });
  assert.ok(sizes.length <= 8, `${sizes.length} allocations`);
  assert.equal(collector.messages.length, 1);
  assert.equal(collector.buffers[0]!.length, body.length);
});

test("random bytes give messages or a FramingError, and nothing else", () => {
  fc.assert(fc.property(fc.array(fc.uint8Array({ maxLength: 200 }), { maxLength: 10 }), (chunks) => {
    try {
      new Collector().push(...chunks.map((chunk) => Buffer.from(chunk)));
    } catch (error) {
      assert.ok(error instanceof FramingError, String(error));
    }
  }));
});
