/** The relays between the program and its servers, each trial's own. */

import {
  type BrokerKind,
  observeAcknowledgements,
  type OnAcknowledged,
  withholdAcknowledgements,
  type Withholding,
} from "../support/broker_frames.ts";
import { type Filter, TcpRelay } from "../support/tcp_relay.ts";
import { digest } from "./history.ts";
import type { Plant } from "./plant.ts";

export interface WayToBroker {
  readonly relay: TcpRelay;
  /** Whether the broker's acknowledgements are kept from the program. */
  readonly withholding: Withholding;
  /** Ids (MQTT) or digests (Redis) of the messages that it acknowledged. RabbitMQ, which keeps them, needs none. */
  readonly acknowledged: ReadonlySet<string>;
}

export class Ways {
  readonly postgres: TcpRelay;
  readonly #toBrokers: ReadonlyMap<BrokerKind, WayToBroker>;

  private constructor(postgres: TcpRelay, toBrokers: ReadonlyMap<BrokerKind, WayToBroker>) {
    this.postgres = postgres;
    this.#toBrokers = toBrokers;
  }

  static async open(plant: Plant, kinds: readonly BrokerKind[]): Promise<Ways> {
    const postgres = await TcpRelay.start({ targetPort: plant.postgres.port });
    const toBrokers = kinds.map(async (kind) => [kind, await wayTo(kind, plant.broker(kind).port)] as const);
    return new Ways(postgres, new Map(await Promise.all(toBrokers)));
  }

  to(kind: BrokerKind): WayToBroker {
    const way = this.#toBrokers.get(kind);
    if (way === undefined) throw new Error(`this trial has no ${kind} broker`);
    return way;
  }

  get all(): readonly TcpRelay[] {
    return [this.postgres, ...[...this.#toBrokers.values()].map(({ relay }) => relay)];
  }

  /** Undoes every fault. */
  heal(): void {
    for (const relay of this.all) relay.heal();
    for (const { withholding } of this.#toBrokers.values()) withholding.on = false;
  }

  async close(): Promise<void> {
    await Promise.all(this.all.map((relay) => relay.close()));
  }
}

async function wayTo(kind: BrokerKind, targetPort: number): Promise<WayToBroker> {
  const withholding: Withholding = { on: false };
  const acknowledged = new Set<string>();
  const note: OnAcknowledged = (id, payload) => acknowledged.add(id ?? digest(payload));
  const relay = await TcpRelay.start({
    targetPort,
    filters: () => {
      const withhold = withholdAcknowledgements(kind, withholding);
      if (kind === "amqp") return { toClient: withhold };
      const observer = observeAcknowledgements(kind, note);
      return { toServer: observer.toServer, toClient: inTurn(observer.toClient, withhold) };
    },
  });
  return { relay, withholding, acknowledged };
}

function inTurn(first: Filter, second: Filter): Filter {
  return (chunk) => second(first(chunk));
}
