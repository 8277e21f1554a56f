/** What `/metrics` tells, against Prometheus' own checker and against what consumers counted. */

import assert from "node:assert/strict";
import { test } from "node:test";
import mqtt from "mqtt";
import { consumeMqtt, type MqttMessage } from "../support/consumers.ts";
import { httpBase, LISTEN_ENV, metricIn, scrape } from "../support/http.ts";
import { promtool, promtoolMissing } from "../support/promtool.ts";
import { bridgeEnv, scenario, uniqueName } from "../support/scenario.ts";
import { startMosquitto } from "../support/servers.ts";
import { TcpRelay } from "../support/tcp_relay.ts";
import { until } from "../support/wait.ts";

/** Of one transaction: rows, BEGIN and COMMIT. */
const EVENTS = 2_002;

scenario("counters agree with what consumers counted, through a killed broker and a killed proxy", async (scope) => {
  const [mosquitto, database] = await Promise.all([startMosquitto(), scope.database()]);
  scope.keep(mosquitto);
  const relay = scope.keep(await TcpRelay.start({ targetPort: mosquitto.port }));
  const slot = uniqueName("slot");
  scope.defer(() => database.sql`select pg_drop_replication_slot(${slot})`);
  await database.sql`create table t (id int, filler text)`;
  const insert = () => database.sql`insert into t select i, repeat('x', 100) from generate_series(1, ${EVENTS - 2}) i`;
  /** The program and its consumer, with a topic that no other has. */
  const start = async (topic: string) => {
    const arrivals: string[] = [];
    const bytesById = new Map<string, number>();
    let probes = 0;
    const onMessage = ({ properties, payload }: MqttMessage) => {
      const id = properties?.userProperties?.id;
      if (typeof id !== "string") return void probes++;
      arrivals.push(id);
      bytesById.set(id, payload.length);
    };
    scope.keep(await consumeMqtt(mosquitto.uri, topic, { protocolVersion: 5, onMessage }));
    const proxy = await scope.readyProxy({
      env: {
        ...bridgeEnv({
          uri: database.uri,
          slot,
          params: `"format-version" '2', "include-timestamp" '1'`,
          kind: "mqtt",
          upstreamUri: relay.uriOf(mosquitto.uri),
          bindings: `wal2json->topic:${topic}`,
          more: { protocol_version: "5" },
        }),
        ...LISTEN_ENV,
      },
    });
    scope.defer(() => proxy.stop());
    const base = await httpBase(proxy);
    const counted = async (name: string) => metricIn(await scrape(base), `pg_event_proxy_${name}`) ?? 0;
    const delivered = (events: number) =>
      until(async () => await counted("delivered_events_total") >= events, {
        what: `${events} events to be delivered`,
      });
    return { proxy, base, arrivals, bytesById, counted, delivered, probes: () => probes };
  };

  const first = await start("first");
  await insert();
  await first.delivered(EVENTS);
  await until(() => first.bytesById.size === EVENTS, { what: "the consumer to have the first transaction" });
  mosquitto.freeze();
  await insert();
  await until(async () => await first.counted("in_flight_events") > 0, { what: "events to be on the way" });
  await mosquitto.kill();
  relay.refuse();
  await mosquitto.start();
  // What is published before the consumer is back is lost by the rules of MQTT, and would tell nothing.
  const publisher = await mqtt.connectAsync(mosquitto.uri);
  await until(async () => {
    await publisher.publishAsync("first", "are you back?");
    return first.probes() > 0;
  }, { what: "the consumer to come back", intervalMs: 50 });
  await publisher.endAsync(true);
  relay.heal();
  await first.delivered(2 * EVENTS);
  await until(() => first.bytesById.size === 2 * EVENTS, { what: "the consumer to have everything" });
  const text = await scrape(first.base);
  const of = (name: string, labels = {}) => metricIn(text, `pg_event_proxy_${name}`, labels);
  assert.equal(of("delivered_events_total", { channel: "wal2json", kind: "mqtt" }), 2 * EVENTS);
  assert.equal(of("received_events_total", { channel: "wal2json" }), 2 * EVENTS);
  assert.equal(of("delivered_bytes_total"), [...first.bytesById.values()].reduce((sum, bytes) => sum + bytes, 0));
  const repeats = first.arrivals.length - 2 * EVENTS;
  const resent = of("resent_events_total") ?? 0;
  assert.ok(resent > 0 && repeats <= resent, `${repeats} repeats arrived, ${resent} events were sent again`);
  assert.equal(of("dropped_events_total"), 0);
  assert.equal(of("in_flight_events"), 0);
  assert.equal(of("pending_bytes"), 0);
  assert.equal(of("upstream_up"), 1);
  assert.ok((of("upstream_reconnects_total") ?? 0) >= 1);
  for (const bucket of ["count", "bucket"]) {
    const labels = bucket === "count" ? {} : { le: "+Inf" };
    assert.equal(of(`delivery_latency_seconds_${bucket}`, { since: "commit", ...labels }), 2 * EVENTS);
  }
  assert.equal(of("delivery_latency_seconds_count", { since: "receipt" }), undefined);

  await insert();
  await first.delivered(2 * EVENTS + 1);
  await first.proxy.kill();
  const second = await start("second");
  await insert();
  const all = () => new Set([...first.bytesById.keys(), ...second.bytesById.keys()]);
  await until(() => all().size === 4 * EVENTS, {
    what: () => `all events to arrive; ${all().size} did`,
    intervalMs: 100,
  });
  await second.delivered(second.bytesById.size);
  assert.equal(second.arrivals.length, second.bytesById.size, "nothing was repeated since the second start");
  assert.equal(await second.counted("delivered_events_total"), second.arrivals.length);
  assert.equal(await second.counted("received_events_total"), second.arrivals.length);
  assert.equal(await second.counted("resent_events_total"), 0);
});

const missing = promtoolMissing();
if (missing !== undefined) {
  test("promtool finds nothing", { skip: missing }, () => {});
} else {
  scenario("promtool finds nothing in the metrics", async (scope) => {
    const { uri, sql } = await scope.database();
    const channel = 'odd "name" \\ here';
    const proxy = await scope.readyProxy({
      env: { ...bridgeEnv({ uri, kind: "stdout", bindings: `${channel}->topic:t` }), ...LISTEN_ENV },
    });
    const base = await httpBase(proxy);
    await sql.unsafe(`notify "${channel.replaceAll('"', '""')}", 'text'`);
    const text = await until(async () => {
      const scraped = await scrape(base);
      return metricIn(scraped, "pg_event_proxy_delivered_events_total") === 1 ? scraped : undefined;
    }, { what: "a notification to be counted" });
    promtool(["check", "metrics"], text);
    assert.throws(() => promtool(["check", "metrics"], `${text}a_counter{ 1\n`), "it does find faults");
  });
}
