/**
 * Random faults on all three brokers, on PostgreSQL, on the network and on the program itself, at the same time, while
 * writes go on.
 *
 *     bun tests/faults/soak.ts [minutes] [--seed N]
 */

import process from "node:process";
import { setTimeout as delay } from "node:timers/promises";
import { parseArgs } from "node:util";
import type { Proxy } from "../support/proxy.ts";
import { Scope } from "../support/scenario.ts";
import { freeze, isAlive, restartBroker, restartPostgres, terminateWalsender } from "./faults.ts";
import { Plant } from "./plant.ts";
import { describeFault, type Fault, type Place, type PlannedFault, planSoak, type Track } from "./soak_plan.ts";
import { Trial } from "./trial.ts";
import { complaints, summary } from "./verdict.ts";

const LARGE_ROWS = 15_000;
const FINISH_TIMEOUT_MS = 240_000;
const MIB = 2 ** 20;

const { values, positionals } = parseArgs({ allowPositionals: true, options: { seed: { type: "string" } } });
const minutes = Number(positionals[0] ?? 15);
const seed = Number(values.seed ?? Math.floor(Math.random() * 1e6));
if (!(minutes > 0) || !Number.isSafeInteger(seed)) throw new Error("usage: soak.ts [minutes] [--seed N]");

const startMs = performance.now();
let largeTransactions = 0;
const scope = new Scope();
const interrupted = new AbortController();
for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => interrupted.abort());
let exitCode = 1;
try {
  exitCode = await soak();
} catch (error) {
  say(String((scope.withLogs(error) as Error)?.stack ?? error));
} finally {
  await scope.close().catch((error: unknown) => {
    say(String(error));
    exitCode = 1;
  });
}
process.exit(exitCode);

function say(line: string): void {
  const seconds = (performance.now() - startMs) / 1000;
  process.stdout.write(`${seconds.toFixed(1).padStart(7)}  ${line}\n`);
}

async function soak(): Promise<number> {
  say(`seed ${seed}, ${minutes} minutes; to repeat: scripts/soak ${minutes} --seed ${seed}`);
  const plant = scope.keep(await Plant.start());
  const trial = await Trial.start(scope, plant);
  const program = new Program(trial);
  program.start();
  await program.ready();
  const writers = trial.startWriters({ seed, pauseMs: 200 });
  say("PostgreSQL, RabbitMQ, Mosquitto, Redis and the program run, writes go on");
  const plan = planSoak(seed, minutes * 60_000);
  const counts = new Map<string, number>();
  const begunMs = performance.now();
  const tracks = Map.groupBy(plan, ({ track }) => track);
  await Promise.all([...tracks].map(([track, faults]) => runTrack(track, faults, trial, program, begunMs, counts)));
  say("the last fault is over, waiting for what is on its way");
  trial.ways.heal();
  await program.ready();
  await writers.stop();
  await trial.passMarker(FINISH_TIMEOUT_MS);
  await trial.confirmed(60_000);
  return report(trial, writers.rows, counts, program);
}

async function runTrack(
  track: Track,
  faults: readonly PlannedFault[],
  trial: Trial,
  program: Program,
  begunMs: number,
  counts: Map<string, number>,
): Promise<void> {
  for (const { atMs, fault } of faults) {
    await delay(Math.max(0, begunMs + atMs - performance.now()), undefined, { signal: interrupted.signal }).catch(
      () => {},
    );
    if (interrupted.signal.aborted) return;
    const faultMs = performance.now();
    say(describeFault(fault));
    await make(fault, trial, program);
    counts.set(fault.kind, (counts.get(fault.kind) ?? 0) + 1);
    const tookMs = performance.now() - faultMs;
    if (tookMs > 1_000) say(`  ${track}: over after ${(tookMs / 1000).toFixed(1)} s: ${describeFault(fault)}`);
    program.checkAlive();
  }
}

async function make(fault: Fault, trial: Trial, program: Program): Promise<void> {
  const { plant, ways } = trial;
  const relayTo = (place: Place) => place === "postgres" ? ways.postgres : ways.to(place).relay;
  switch (fault.kind) {
    case "program killed":
    case "program stopped":
    case "program taken over":
      return await program.make(fault.kind);
    case "program frozen":
      return await program.freeze(fault.durationMs);
    case "broker killed":
      return await restartBroker(trial, fault.broker, "kill");
    case "broker shut down":
      return await restartBroker(trial, fault.broker, "shutdown");
    case "broker frozen":
      return await freeze(plant.broker(fault.broker), fault.durationMs);
    case "PostgreSQL stopped fast":
      return void await restartPostgres(plant.postgres, "fast");
    case "PostgreSQL stopped immediately":
      return void await restartPostgres(plant.postgres, "immediate");
    case "PostgreSQL killed":
      return void await restartPostgres(plant.postgres, "kill");
    case "PostgreSQL frozen":
      return await freeze(plant.postgres, fault.durationMs);
    case "walsender terminated":
      return void await terminateWalsender(trial);
    case "large transaction":
      largeTransactions++;
      return void await trial.sql`
        insert into orders select ${
        -100 - largeTransactions
      }::int, i, 'large' from generate_series(1, ${LARGE_ROWS}::int) i`;
    case "connections cut":
      return relayTo(fault.place).cut();
    case "connections half open":
      return relayTo(fault.place).swallow();
    case "connections refused":
      relayTo(fault.place).refuse();
      break;
    case "a trickle to the server":
      relayTo(fault.place).throttle("toServer", 2_000);
      break;
    case "a trickle to the client":
      relayTo(fault.place).throttle("toClient", 2_000);
      break;
    case "acknowledgements withheld":
      ways.to(fault.broker).withholding.on = true;
      break;
  }
  await delay(fault.durationMs);
  if (fault.kind === "acknowledgements withheld") {
    // What was withheld never comes: the connection has to be made anew.
    ways.to(fault.broker).relay.cut();
    ways.to(fault.broker).withholding.on = false;
  } else {
    relayTo(fault.place).heal();
  }
}

/** The program, and whoever has to take its place. */
class Program {
  readonly #trial: Trial;
  readonly #all: Proxy[] = [];

  constructor(trial: Trial) {
    this.#trial = trial;
  }

  get peakRssBytes(): number {
    return Math.max(...this.#all.map((proxy) => proxy.peakRssBytes()));
  }

  get #active(): Proxy {
    return this.#all.at(-1)!;
  }

  start(): void {
    this.#all.push(scope.proxy(this.#trial.proxyOptions()));
  }

  ready(): Promise<void> {
    return this.#active.waitForReady(FINISH_TIMEOUT_MS);
  }

  async make(fault: "program killed" | "program stopped" | "program taken over"): Promise<void> {
    const before = this.#active;
    switch (fault) {
      case "program killed":
        await before.kill("SIGKILL");
        this.start();
        break;
      case "program stopped": {
        // Before it has begun, a signal ends it by itself.
        await before.waitForLog(/ starts with /, FINISH_TIMEOUT_MS);
        const { code, signal } = await before.kill("SIGTERM");
        if (code !== 0) throw new Error(`the program ended with ${code ?? signal} after SIGTERM`);
        this.start();
        break;
      }
      case "program taken over":
        this.start();
        // Both run for a while; where a server is away at this moment, it has not come as far as standing by.
        await this.#active.waitForLog(/stands by/, 3_000).catch(() => {});
        await before.kill("SIGKILL");
    }
  }

  async freeze(durationMs: number): Promise<void> {
    const { pid } = this.#active;
    process.kill(pid, "SIGSTOP");
    await delay(durationMs);
    process.kill(pid, "SIGCONT");
  }

  /** The program may never end by itself. */
  checkAlive(): void {
    if (!isAlive(this.#active.pid)) {
      throw new Error(`the program has ended by itself:\n${this.#active.stderr.slice(-3_000)}`);
    }
  }
}

async function report(
  trial: Trial,
  rows: number,
  counts: ReadonlyMap<string, number>,
  program: Program,
): Promise<number> {
  const verdicts = await trial.judge();
  const total = [...counts.values()].reduce((sum, count) => sum + count, 0);
  say(`seed ${seed}: ${total} faults`);
  for (const [kind, count] of [...counts].sort()) say(`  ${String(count).padStart(4)} ${kind}`);
  say(`${rows} rows written by the writers, ${largeTransactions} large transactions of ${LARGE_ROWS} rows`);
  for (const [kind, verdict] of verdicts) say(summary(kind, verdict));
  say(`highest memory of a program: ${(program.peakRssBytes / MIB).toFixed(0)} MiB`);
  const faults = [...verdicts].flatMap(([kind, verdict]) => complaints(kind, verdict));
  for (const fault of faults) say(`FAILED: ${fault}`);
  if (interrupted.signal.aborted) say("interrupted: fewer faults than planned");
  say(faults.length === 0 ? "passed: nothing was lost" : "failed");
  return faults.length === 0 ? 0 : 1;
}
