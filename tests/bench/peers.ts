/** Others that do the same job, on the same changes, brokers and machine. */

import { Redis } from "ioredis";
import amqp from "amqplib";
import { setTimeout as delay } from "node:timers/promises";
import { type Bench, say, untilIdle } from "./bench.ts";
import { type Dataset, dropDataset, readSlot, withSlotCopy, writeDataset } from "./dataset.ts";
import { EXCHANGE, type Peer, PEERS, PUBLICATIONS } from "./peer_programs.ts";
import { ProcessMeter } from "./process_figures.ts";
import type { Program } from "./program.ts";
import { figure, megabytes, type Section, type Table, type Verdict } from "./report.ts";
import { median } from "./statistics.ts";
import { emptyQueue, QUEUE, STREAM, upstreamCase, withChannel } from "./upstream_cases.ts";
import { proxyEnv } from "./wal_run.ts";

const POLL_MS = 20;
const TIMEOUT_MS = 15 * 60_000;
/** How long a slot may lag behind what the broker has already. */
const CONFIRM_PATIENCE_MS = 15_000;

interface Pass {
  /** From the start of the process until the broker has the first event. */
  readonly startSeconds: number;
  /** From the first event to the last. */
  readonly seconds: number;
  readonly clientCpuMs: number;
  readonly peakRssBytes: number;
  /** Whether the slot was confirmed up to the last commit within 15 s after the last event. */
  readonly confirmed: boolean;
}

interface Contender {
  readonly name: string;
  readonly promise: string;
  readonly acknowledgesFirst: boolean;
  /** Name of the case of ours that it is compared with; undefined for ours. */
  readonly counterpart: string | undefined;
  readonly passes: Pass[];
  run(): Promise<Pass>;
}

export async function peersSection(bench: Bench): Promise<Section> {
  const { peers, leftOut } = await available();
  await bench.broker("rabbitmq");
  await bench.broker("redis");
  for (const name of PUBLICATIONS) await bench.sql.unsafe(`create publication "${name}" for all tables`);
  const rows = bench.settings.rows ?? (bench.quick ? 20_000 : 200_000);
  const dataset = await writeDataset(bench, { rows, rowsPerTransaction: 100, pgoutput: true });
  const contenders = [
    await ours(bench, dataset, "amqp-2", "at least once"),
    await ours(bench, dataset, "amqp-1", "at least once, messages transient"),
    await ours(bench, dataset, "redis-stream", "at least once"),
    await ours(bench, dataset, "redis", "at least once to the server (PUBLISH)"),
    ...peers.map((peer) => peerContender(bench, dataset, peer)),
  ];
  for (let round = 0; round < (bench.settings.pairs ?? (bench.quick ? 1 : 3)); round++) {
    for (const contender of contenders) {
      const pass = await contender.run();
      contender.passes.push(pass);
      say(`${contender.name}: first event after ${figure(pass.startSeconds)} s, then ${figure(rows / pass.seconds)}/s`);
    }
  }
  await dropDataset(bench, dataset);
  return {
    name: "peers",
    tables: [peersTable(dataset, contenders), ...leftOut.length > 0 ? [leftOutTable(leftOut)] : []],
    verdicts: contenders.flatMap((contender) => verdictsOf(dataset, contender, contenders)),
    raw: { rows, leftOut, contenders: contenders.map(({ name, passes }) => ({ name, passes })) },
  };
}

interface LeftOut {
  readonly name: string;
  readonly reason: string;
}

async function available(): Promise<{ readonly peers: Peer[]; readonly leftOut: LeftOut[] }> {
  const peers: Peer[] = [];
  const leftOut: LeftOut[] = [];
  for (const peer of PEERS) {
    try {
      await peer.install();
      peers.push(peer);
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      say(`${peer.name} is left out: ${reason}`);
      leftOut.push({ name: peer.name, reason });
    }
  }
  return { peers, leftOut };
}

/** Only rows are sent, as the others do. */
async function ours(bench: Bench, dataset: Dataset, name: string, promise: string): Promise<Contender> {
  const upstream = await upstreamCase(bench, name);
  const kind = upstream.config["kind"];
  const bound = kind === "amqp"
    ? { ...upstream, config: { ...upstream.config, bridge_channels: `wal2json->exchange:${EXCHANGE}` } }
    : upstream;
  return {
    name: `pg-event-proxy, ${upstream.label.replace("queue", "exchange and queue")}`,
    promise,
    acknowledgesFirst: false,
    counterpart: undefined,
    passes: [],
    run: () =>
      withSlotCopy(bench, dataset.slot, async (slot) => {
        const arrival = kind === "amqp"
          ? await queueArrival(bench)
          : name === "redis-stream"
          ? await streamArrival(bench, STREAM)
          : await publishArrival(bench);
        return await follow(bench, dataset, slot, arrival, () =>
          bench.home.startProxy(bench.settings.runtime, {
            env: {
              ...proxyEnv(bench, slot, [bound]),
              "PGPROXY_DATABASE-WAL2JSON_PARAMS":
                `"format-version" '2', "include-types" '0', "include-transaction" '0'`,
              ...bench.settings.proxyEnv,
            },
          }));
      }),
  };
}

function peerContender(bench: Bench, dataset: Dataset, peer: Peer): Contender {
  const original = peer.plugin === "pgoutput" ? dataset.pgoutputSlot ?? "" : dataset.slot;
  return {
    name: `${peer.name} (${peer.version})`,
    promise: peer.promise,
    acknowledgesFirst: peer.acknowledgesFirst,
    counterpart: peer.counterpart,
    passes: [],
    run: () =>
      withSlotCopy(bench, original, async (slot) => {
        const arrival = peer.arrivesAt === "queue"
          ? await queueArrival(bench)
          : await streamArrival(bench, peer.redisStream ?? "");
        const { command, env } = await peer.start(bench, slot);
        return await follow(bench, dataset, slot, arrival, () => bench.home.start(command, { env: { ...env } }));
      }),
  };
}

/** What the broker has got, as it counts itself. */
interface Arrival {
  count(): Promise<number>;
  close(): Promise<void>;
}

async function queueArrival(bench: Bench): Promise<Arrival> {
  const { uri, pid } = await bench.broker("rabbitmq");
  await emptyQueue(uri, pid);
  await withChannel(uri, async (channel) => {
    await channel.assertExchange(EXCHANGE, "topic", { durable: true });
    await channel.bindQueue(QUEUE, EXCHANGE, "#");
  });
  const connection = await amqp.connect(uri);
  const channel = await connection.createChannel();
  return {
    count: async () => (await channel.checkQueue(QUEUE)).messageCount,
    close: async () => {
      await connection.close();
      await emptyQueue(uri, pid);
    },
  };
}

async function streamArrival(bench: Bench, stream: string): Promise<Arrival> {
  const { uri, pid } = await bench.broker("redis");
  const client = new Redis(uri);
  await client.del(stream);
  return {
    count: () => client.xlen(stream),
    close: async () => {
      await client.del(stream);
      await client.quit();
      await untilIdle(pid);
    },
  };
}

async function publishArrival(bench: Bench): Promise<Arrival> {
  const client = new Redis((await bench.broker("redis")).uri);
  const published = async () => Number(/cmdstat_publish:calls=(\d+)/.exec(await client.info("commandstats"))?.[1] ?? 0);
  const before = await published();
  return { count: async () => await published() - before, close: async () => void (await client.quit()) };
}

async function follow(
  bench: Bench,
  dataset: Dataset,
  slot: string,
  arrival: Arrival,
  start: () => Program,
): Promise<Pass> {
  const program = start();
  const deadline = performance.now() + TIMEOUT_MS;
  try {
    const until = async (count: number) => {
      while (await arrival.count() < count) {
        program.assertRunning();
        if (performance.now() > deadline) throw new Error(`${program.command[0]} did not come to the end`);
        await delay(POLL_MS);
      }
      return performance.now();
    };
    const firstAtMs = await until(1);
    const meter = new ProcessMeter(program.pid, true);
    const lastAtMs = await until(dataset.rows);
    meter.finish();
    return {
      startSeconds: (firstAtMs - program.startedAtMs) / 1000,
      seconds: (lastAtMs - firstAtMs) / 1000,
      clientCpuMs: meter.cpuMs,
      peakRssBytes: meter.peakRssBytes,
      confirmed: await confirmed(bench, dataset, slot),
    };
  } finally {
    await program.stop();
    await arrival.close();
  }
}

async function confirmed(bench: Bench, dataset: Dataset, slot: string): Promise<boolean> {
  const deadline = performance.now() + CONFIRM_PATIENCE_MS;
  while (performance.now() < deadline) {
    if ((await readSlot(bench.sql, slot, dataset.endLsn)).passed) return true;
    await delay(POLL_MS);
  }
  return false;
}

function rate(dataset: Dataset, { passes }: Contender): number {
  return median(passes.map(({ seconds }) => dataset.rows / seconds));
}

function cpuUs(dataset: Dataset, { passes }: Contender): number {
  return (median(passes.map(({ clientCpuMs }) => clientCpuMs)) * 1000) / dataset.rows;
}

function peersTable(dataset: Dataset, contenders: readonly Contender[]): Table {
  return {
    title: "Peers side by side",
    note:
      `${dataset.rows.toLocaleString("en-US")} rows in transactions of 100, into one durable queue behind a topic ` +
      "exchange, or into Redis. Events per second and CPU from the first event at the broker to the last, so that nobody's " +
      "start counts. An asterisk: acknowledges before delivery.",
    columns: ["", "events/s", "µs CPU each", "start s", "peak RSS MB", "slot confirmed:", "promise:"],
    rows: contenders.map((contender) => {
      const { name, passes, promise, acknowledgesFirst } = contender;
      return [
        acknowledgesFirst ? `${name} *` : name,
        figure(rate(dataset, contender)),
        figure(cpuUs(dataset, contender)),
        figure(median(passes.map(({ startSeconds }) => startSeconds))),
        megabytes(Math.max(...passes.map(({ peakRssBytes }) => peakRssBytes))),
        passes.every((pass) => pass.confirmed) ? "yes" : `not within ${CONFIRM_PATIENCE_MS / 1000} s`,
        promise,
      ];
    }),
  };
}

function leftOutTable(leftOut: readonly LeftOut[]): Table {
  return { title: "Left out", columns: ["", "reason:"], rows: leftOut.map(({ name, reason }) => [name, reason]) };
}

function verdictsOf(dataset: Dataset, peer: Contender, contenders: readonly Contender[]): Verdict[] {
  const labels: Readonly<Record<string, string>> = {
    "amqp-1": "mode 1",
    "amqp-2": "mode 2",
    "redis-stream": "Redis stream",
  };
  const label = labels[peer.counterpart ?? ""];
  const own = contenders.find(({ name, counterpart }) => counterpart === undefined && name.includes(label ?? "none"));
  if (label === undefined || own === undefined) return [];
  const times = rate(dataset, own) / rate(dataset, peer);
  const share = cpuUs(dataset, own) / cpuUs(dataset, peer);
  return [
    { name: `Events/s to ${peer.name}, ${label}`, target: "> 1×", seen: `${figure(times)}×`, met: times > 1 },
    { name: `CPU per event to ${peer.name}, ${label}`, target: "< 1×", seen: `${figure(share)}×`, met: share < 1 },
  ];
}
