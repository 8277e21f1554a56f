import assert from "node:assert/strict";
import { after, test } from "node:test";
import { Webhook } from "standardwebhooks";
import type { TlsConfig, WebhookConfig } from "../../src/config/config.ts";
import { PermanentError } from "../../src/core/errors.ts";
import type { Event } from "../../src/core/event.ts";
import type { Target } from "../../src/core/upstream.ts";
import type { Consumer } from "../support/consumers.ts";
import { RunningLane } from "../support/running_lane.ts";
import {
  COMMON_CONFIG,
  NO_TLS,
  notifyEvent,
  TestLane,
  upstreamContract,
  walEvent,
} from "../support/upstream_contract.ts";
import { until } from "../support/wait.ts";
import {
  type Behaviour,
  consumeWebhook,
  type ReceivedRequest,
  startWebhookReceiver,
  type WebhookReceiver,
} from "../support/webhook_receiver.ts";

const PATH = "/contract";

function config(more: Partial<WebhookConfig> = {}): WebhookConfig {
  return {
    ...COMMON_CONFIG,
    kind: "webhook",
    secrets: [],
    token: undefined,
    extraHeaders: {},
    batch: 1,
    concurrency: 1,
    requestTimeoutMs: 30_000,
    allowPrivateAddresses: true,
    tls: NO_TLS,
    ...more,
  };
}

function urlAt(uri: string, path = PATH) {
  return { type: "url", name: uri + path };
}

const receivers = new Map<string, WebhookReceiver>();
async function startServer(options: Parameters<typeof startWebhookReceiver>[0] = {}): Promise<WebhookReceiver> {
  const receiver = await startWebhookReceiver(options);
  receivers.set(receiver.uri, receiver);
  return receiver;
}

upstreamContract({
  title: "webhook",
  target: urlAt("https://unused.example"),
  targetAt: (uri) => urlAt(uri),
  startServer,
  config: (_uri: string, tls: TlsConfig = NO_TLS) => config({ tls }),
  consume: async (uri) => consumeWebhook(receivers.get(uri)!),
  keyOf: ({ routingKey }) => routingKey,
  clientCertificateConfig: ["requestCert"],
  hangsUpOnStrangers: true,
  refusedLogin: async () => {
    const receiver = await startWebhookReceiver();
    await receiver.behave({ authorization: "Bearer the-right-one" });
    return {
      config: config({ token: "a-wr0ng-s3cret" }),
      target: urlAt(receiver.uri),
      secret: "a-wr0ng-s3cret",
      close: () => receiver.stop(),
    };
  },
});

const TIMEOUT = { timeout: 180_000 };
const SECRETS = [
  "whsec_bmV3IHNlY3JldCBvZiB0aGlydHktdHdvIGJ5dGVzLi4=",
  "whsec_b2xkIHNlY3JldCBvZiB0aGlydHktdHdvIGJ5dGVzLi4=",
];

let shared: Promise<WebhookReceiver> | undefined;
after(async () => {
  await (await shared)?.stop();
});

/** A receiver that behaves as told, a consumer of its own path, and a lane, all cleared away afterwards. */
async function withLane(
  behaviour: Behaviour,
  more: Partial<WebhookConfig>,
  run: (
    given: { lane: RunningLane; consumer: Consumer<ReceivedRequest>; url: Target; receiver: WebhookReceiver },
  ) => Promise<void>,
  filter?: (request: ReceivedRequest) => boolean,
): Promise<void> {
  const receiver = await (shared ??= startWebhookReceiver());
  await receiver.behave(behaviour);
  const consumer = consumeWebhook(receiver, filter === undefined ? {} : { filter });
  const url = urlAt(receiver.uri, "/hook?a=b");
  const lane = await RunningLane.start(config(more), [url]);
  try {
    await run({ lane, consumer, url, receiver });
  } finally {
    await lane.stop();
    await consumer.close();
  }
}

function numbered(count: number, fields: (i: number) => Partial<Event> = () => ({})): Event[] {
  return Array.from({ length: count }, (_, i) => walEvent(`{"n":${i}}`, fields(i)));
}

function texts(events: readonly Event[]): string[] {
  return events.map(({ payload }) => String(payload));
}

test("webhook: requests carry signatures that the standardwebhooks package verifies", TIMEOUT, async () => {
  const more = { secrets: SECRETS, token: "t0ken", extraHeaders: { "X-Api-Key": "k=1", "User-Agent": "mine" } };
  await withLane({}, more, async ({ lane, consumer, url }) => {
    const events = [
      walEvent('{"ü":1.0e5}'),
      notifyEvent("no JSON, 🐘", { routingKey: "sign up/ü%", channel: "größe" }),
      notifyEvent(new Uint8Array(0)),
    ];
    lane.push(url, ...events);
    const received = await consumer.waitFor(3);
    for (const [i, { headers, text, path }] of received.entries()) {
      for (const secret of SECRETS) {
        // It parses what it has verified, in case it is JSON.
        assert.doesNotThrow(() => verify(secret, text, headers), secret);
      }
      assert.throws(() => verify(SECRETS[0]!, `${text} `, headers), /No matching signature/);
      assert.throws(() => verify(`whsec_${"A".repeat(44)}`, text, headers), /No matching signature/);
      assert.equal(headers["webhook-id"], events[i]!.id);
      assert.equal(path, "/hook?a=b");
      assert.equal(headers["authorization"], "Bearer t0ken");
      assert.equal(headers["x-api-key"], "k=1");
      assert.equal(headers["user-agent"], "mine");
    }
    const [row, notification] = received;
    assert.equal(row!.headers["content-type"], "application/json");
    assert.equal(row!.headers["pg-event-type"], "wal");
    assert.equal(notification!.headers["content-type"], "text/plain; charset=utf-8");
    assert.equal(notification!.headers["pg-event-key"], "sign%20up/%C3%BC%25");
    assert.equal(decodeURIComponent(notification!.headers["pg-event-channel"]!), "größe");
  });
});

function verify(secret: string, body: string, headers: Readonly<Record<string, string>>): void {
  try {
    new Webhook(secret).verify(body, { ...headers });
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
  }
}

test("webhook: a batch is one signed JSON array, in order, and no batch mixes targets", TIMEOUT, async () => {
  const secrets = SECRETS.slice(0, 1);
  await withLane({}, { batch: 100, secrets }, async ({ lane, consumer, url, receiver }) => {
    const events = [...numbered(250), notifyEvent('say "hi"\n', { routingKey: "k" })];
    const other = walEvent('{"other":true}');
    lane.push(url, ...events);
    lane.push(urlAt(receiver.uri, "/other"), other);
    await lane.settled(252);
    const requests = await consumer.waitFor((received) => received.some(({ path }) => path === "/other"));
    const elements = requests.flatMap(({ text, path }) =>
      JSON.parse(text).map((element: Record<string, unknown>) => ({ ...element, path }))
    );
    assert.deepEqual(elements.map(({ id }) => id), [...events, other].map(({ id }) => id));
    assert.deepEqual(elements[7].payload, { n: 7 });
    assert.deepEqual(elements[250], {
      id: events[250]!.id,
      type: "notify",
      channel: "events",
      routing_key: "k",
      payload: 'say "hi"\n',
      path: "/hook?a=b",
    });
    assert.ok(requests.length < 20, `${requests.length} requests`);
    for (const { headers, text } of requests) new Webhook(secrets[0]!).verify(text, { ...headers });
    const [first] = requests;
    assert.equal(first!.headers["webhook-id"], `${events[0]!.id}+${JSON.parse(first!.text).length - 1}`);
  });
});

test("webhook: what passes is sent again with the same id, in order, not before Retry-After", TIMEOUT, async () => {
  const events = numbered(20);
  const rules = [
    { status: 503, headers: { "retry-after": "1" }, times: 1, contains: '{"n":3}' },
    ...[500, 408, 425, 429].map((status) => ({ status, times: 1, contains: '{"n":7}' })),
    { status: 502, times: 1, contains: '{"n":8}' },
  ];
  await withLane({ rules }, {}, async ({ lane, consumer, url }) => {
    lane.push(url, ...events);
    await lane.settled(20);
    const requests = await consumer.waitFor((received) => received.filter(({ status }) => status === 204).length >= 20);
    const accepted = requests.filter(({ status }) => status === 204);
    assert.deepEqual(accepted.map(({ text }) => text), texts(events), "each once, in order");
    assert.equal(requests.length, 26);
    const third = requests.filter(({ text }) => text === '{"n":3}');
    assert.ok(third[1]!.receivedAtMs - third[0]!.receivedAtMs >= 950, "it came back before Retry-After");
    assert.deepEqual(third.map(({ headers }) => headers["webhook-id"]), [events[3]!.id, events[3]!.id]);
    assert.ok(
      lane.log.texts.some((text) => /POST http:.*\/hook was answered 503/.test(text)),
      lane.log.texts.join("\n"),
    );
    assert.equal(lane.lane.counts.dropped, 0);
  }, ({ method }) => method === "POST");
});

test("webhook: a request that takes too long is sent again", TIMEOUT, async () => {
  const rules = [{ status: 204, delayMs: 5_000, times: 1, contains: "slow" }];
  await withLane({ rules }, { requestTimeoutMs: 300 }, async ({ lane, consumer, url }) => {
    lane.push(url, walEvent("quick"), walEvent("slow"), walEvent("last"));
    await lane.settled(3);
    const received = await consumer.waitFor(4);
    assert.deepEqual(received.map(({ text }) => text), ["quick", "slow", "slow", "last"]);
    assert.ok(lane.log.texts.some((text) => text.includes("no answer within 0.3 s")), lane.log.texts.join("\n"));
  });
});

for (const batch of [1, 10]) {
  test(`webhook: on_reject=drop drops the refused event and no other, batch ${batch}`, TIMEOUT, async () => {
    const rules = [{ status: 422, contains: '{"n":13}' }];
    await withLane({ rules }, { onReject: "drop", batch }, async ({ lane, consumer, url }) => {
      const events = numbered(40);
      lane.push(url, ...events);
      await lane.settled(40);
      const wanted = texts(events).filter((_, i) => i !== 13);
      const all = () => consumer.received.flatMap(({ text }) => text.match(/\{"n":\d+\}/g) ?? []);
      await until(() => all().length >= 39, { what: "39 events" });
      assert.deepEqual(all(), wanted);
      assert.equal(lane.lane.counts.dropped, 1);
      const [line] = lane.log.texts.filter((text) => text.includes("on_reject=drop"));
      assert.match(line ?? "", new RegExp(`event ${events[13]!.id} .*POST http://.*/hook was answered 422`));
    });
  });
}

test("webhook: on_reject=stop holds the refused event, and nothing overtakes it", TIMEOUT, async () => {
  const rules = [{ status: 400, contains: '{"n":5}' }];
  await withLane({ rules }, {}, async ({ lane, consumer, url, receiver }) => {
    const events = numbered(12);
    lane.push(url, ...events);
    const held = () => lane.log.texts.some((text) => /it is held and tried again/.test(text));
    await until(held, { what: () => `the event to be held\n${lane.log.texts.join("\n")}` });
    assert.equal(lane.released.length, 5);
    await receiver.behave({});
    await lane.settled(12);
    await consumer.waitFor(12);
    assert.deepEqual(consumer.received.map(({ text }) => text), texts(events));
  });
});

test("webhook: a redirect is not followed", TIMEOUT, async () => {
  const rules = [{ status: 307, headers: { location: "/elsewhere?token=s3cret" }, path: "/hook?a=b" }];
  await withLane({ rules }, { onReject: "drop", token: "t0ken" }, async ({ lane, consumer, url }) => {
    lane.push(url, walEvent("1"));
    await lane.settled(1);
    assert.ok(!consumer.received.some(({ path }) => path.startsWith("/elsewhere")));
    const text = lane.log.texts.join("\n");
    assert.match(text, /was answered 307 to http:\/\/.*\/elsewhere; redirects are not followed: correct the target/);
    assert.doesNotMatch(text, /s3cret|t0ken/);
  }, ({ method }) => method === "POST");
});

test("webhook: concurrency keeps the order of each key, and sends different ones side by side", TIMEOUT, async () => {
  const rules = [{ status: 204, delayMs: 20 }];
  await withLane({ rules }, { concurrency: 8 }, async ({ lane, consumer, url }) => {
    const verbs = ["insert", "update", "delete"];
    const events = numbered(200, (i) => ({ routingKey: `public.t${i % 8}.${verbs[i % 3]}` }));
    const startMs = performance.now();
    lane.push(url, ...events);
    await lane.settled(200);
    const tookMs = performance.now() - startMs;
    await consumer.waitFor(200);
    for (let table = 0; table < 8; table++) {
      const own = consumer.received.map(({ text }) => JSON.parse(text).n).filter((n) => n % 8 === table);
      assert.deepEqual(own, Array.from({ length: 25 }, (_, i) => i * 8 + table), `table ${table}`);
    }
    assert.ok(tookMs < 200 * 20 * 0.7, `200 requests of 20 ms took ${tookMs} ms`);
  });
});

test("webhook: an endless answer ends, and a connection that the server has closed is no outage", TIMEOUT, async () => {
  const rules = [
    { status: 200, answer: "x".repeat(300_000), times: 2 },
    { status: 200, headers: { connection: "close" }, times: 3 },
  ];
  await withLane({ rules }, {}, async ({ lane, consumer, url }) => {
    const events = numbered(10);
    lane.push(url, ...events);
    await lane.settled(10);
    assert.deepEqual((await consumer.waitFor(10)).map(({ text }) => text), texts(events));
    assert.deepEqual(lane.log.texts.filter((text) => text.includes("not available")), []);
  });
});

test("webhook: private addresses are refused, by address and by name, unless allowed", TIMEOUT, async () => {
  const receiver = await (shared ??= startWebhookReceiver());
  for (const host of ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0x7f.1"]) {
    const url = { type: "url", name: `http://${host}:${receiver.port}/` };
    await assert.rejects(TestLane.open(config({ allowPrivateAddresses: false }), [url]), (error) => {
      assert.ok(error instanceof PermanentError, `${host}: ${error}`);
      assert.match(error.message, /private address.*set allow_private_addresses=true/);
      return true;
    });
  }
});
