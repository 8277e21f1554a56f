/** Storms of notifications beyond the buffer: what could not be held is counted exactly. */

import assert from "node:assert/strict";
import { after } from "node:test";
import { consumeRedis } from "../support/consumers.ts";
import type { Proxy } from "../support/proxy.ts";
import { bridgeEnv, scenario, type Scope, type TestDatabase, uniqueName } from "../support/scenario.ts";
import { startPostgres, startRedis } from "../support/servers.ts";
import { TcpRelay } from "../support/tcp_relay.ts";
import { until } from "../support/wait.ts";

const STORM = 20_000;
const BUFFER = "128KiB";

const servers = Promise.all([startPostgres(), startRedis()]);
after(async () => await Promise.all((await servers).map((server) => server.stop())));

interface Storm {
  readonly proxy: Proxy;
  readonly relay: TcpRelay;
  readonly database: TestDatabase;
  readonly received: () => number[];
}

async function begin(scope: Scope): Promise<Storm> {
  const [postgres, redis] = await servers;
  const database = await scope.database(postgres);
  const relay = await TcpRelay.start({ targetPort: redis.port });
  scope.defer(() => relay.close());
  const channel = uniqueName("storm");
  const consumer = scope.keep(await consumeRedis(redis.uri, channel));
  const env = bridgeEnv({
    uri: database.uri,
    kind: "redis",
    upstreamUri: relay.uriOf(redis.uri),
    bindings: `storm->topic:${channel}`,
  });
  const proxy = await scope.readyProxy({
    env: { ...env, "PGPROXY_LOCAL-NOTIFY_BUFFER_BYTES": BUFFER, "PGPROXY_LOCAL-SHUTDOWN_TIMEOUT": "1" },
  });
  return { proxy, relay, database, received: () => consumer.received.map(({ text }) => Number(text)) };
}

async function notify({ database }: Storm, from: number, to: number): Promise<void> {
  await database.sql`select pg_notify('storm', i::text) from generate_series(${from}::int, ${to}::int) i`;
}

/** The total of the newest line that counts dropped notifications. */
function dropped({ proxy }: Storm): number {
  const lines = proxy.log.filter(({ json }) => String(json?.message).startsWith("dropped "));
  return Number(lines.at(-1)?.json?.total ?? 0);
}

scenario(
  "a storm while the broker is away: sent = received + dropped, the oldest are kept, in order",
  async (scope) => {
    const storm = await begin(scope);
    await notify(storm, 1, 10);
    await until(() => storm.received().length === 10, { what: "what is sent before" });
    storm.relay.refuse();
    await notify(storm, 11, STORM);
    await storm.proxy.waitForLog(/dropped \d+ notifications/);
    // What arrives when there is room again would be kept, behind a gap.
    await allRead(storm);
    storm.relay.heal();
    await until(() => storm.received().length + dropped(storm) === STORM, {
      what: () => `sent = received + dropped; ${STORM}, ${storm.received().length}, ${dropped(storm)}`,
      timeoutMs: 30_000,
    });
    assert.ok(dropped(storm) > STORM / 2, `the buffer of ${BUFFER} held too much: only ${dropped(storm)} dropped`);
    assert.deepEqual(storm.received(), Array.from(storm.received(), (_, i) => i + 1));
    // The room is free again.
    await notify(storm, STORM + 1, STORM + 100);
    await until(() => storm.received().at(-1) === STORM + 100, { what: "what is sent afterwards" });
    assert.equal(storm.received().length + dropped(storm), STORM + 100);
  },
);

/** Nothing is left in PostgreSQL's queue, and the program has come to rest: dropping shows in nothing else. */
async function allRead({ database, proxy }: Storm): Promise<void> {
  let lastCpuMs = -1;
  await until(async () => {
    const [row] = await database.sql<{ usage: number }[]>`select pg_notification_queue_usage() as usage`;
    const cpuMs = proxy.cpuMs();
    const rests = row?.usage === 0 && cpuMs === lastCpuMs;
    lastCpuMs = cpuMs;
    return rests;
  }, { what: "the program to have read the storm", intervalMs: 400 });
}

scenario("what a stopped program has dropped is counted before it ends", async (scope) => {
  const storm = await begin(scope);
  storm.relay.refuse();
  await notify(storm, 1, STORM);
  await storm.proxy.waitForLog(/dropped \d+ notifications/);
  await allRead(storm);
  const { code } = await storm.proxy.stop();
  assert.equal(code, 0);
  // What stays for the next start is none: notifications are kept in memory only. 256 bytes and one to three digits each.
  const kept = STORM - dropped(storm);
  assert.ok(kept > 500 && kept < 512, `${kept} of ${STORM} kept in ${BUFFER}`);
});
