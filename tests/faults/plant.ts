/** Real servers of a test's own, to be stopped, killed and frozen. */

import type { BrokerKind } from "../support/broker_frames.ts";
import {
  type PostgresServer,
  type Server,
  startMosquitto,
  startPostgres,
  startRabbitmq,
  startRedis,
} from "../support/servers.ts";

export const ALL_KINDS: readonly BrokerKind[] = ["amqp", "mqtt", "redis"];

/** What the faults have to outlast. */
export const WAL_SENDER_TIMEOUT_MS = 3_000;

export interface PlantOptions {
  readonly kinds?: readonly BrokerKind[];
  readonly postgresSettings?: Readonly<Record<string, string>>;
  readonly brokerConfig?: Partial<Record<BrokerKind, readonly string[]>>;
}

export class Plant {
  readonly postgres: PostgresServer;
  readonly #brokers: ReadonlyMap<BrokerKind, Server>;

  private constructor(postgres: PostgresServer, brokers: ReadonlyMap<BrokerKind, Server>) {
    this.postgres = postgres;
    this.#brokers = brokers;
  }

  static async start({ kinds = ALL_KINDS, postgresSettings, brokerConfig = {} }: PlantOptions = {}): Promise<Plant> {
    const settings = { wal_sender_timeout: `${WAL_SENDER_TIMEOUT_MS}ms`, ...postgresSettings };
    const [postgres, ...brokers] = await Promise.allSettled([
      startPostgres({ settings }),
      ...kinds.map((kind) => STARTERS[kind](brokerConfig[kind] ?? [])),
    ]);
    const failed = [postgres, ...brokers].find((result) => result.status === "rejected");
    if (failed !== undefined || postgres.status === "rejected") {
      const started = [postgres, ...brokers].filter((result) => result.status === "fulfilled");
      await Promise.all(started.map(({ value }) => value.stop()));
      throw failed?.reason;
    }
    const servers = brokers.map((result, i) => [kinds[i]!, (result as PromiseFulfilledResult<Server>).value] as const);
    return new Plant(postgres.value, new Map(servers));
  }

  get kinds(): readonly BrokerKind[] {
    return [...this.#brokers.keys()];
  }

  broker(kind: BrokerKind): Server {
    const broker = this.#brokers.get(kind);
    if (broker === undefined) throw new Error(`this plant has no ${kind} broker`);
    return broker;
  }

  async stop(): Promise<void> {
    await Promise.all([this.postgres, ...this.#brokers.values()].map((server) => server.stop()));
  }
}

const STARTERS: Readonly<Record<BrokerKind, (config: readonly string[]) => Promise<Server>>> = {
  amqp: (config) => startRabbitmq({ config }),
  // It tells MQTT 5 clients to send no more than this at once: its default of 20 makes for little on the way.
  mqtt: (config) => startMosquitto({ config: ["max_inflight_messages 500", ...config] }),
  redis: (config) => startRedis({ config }),
};
