/** The events that wait for a request, in chains: within one the order is kept, chains go side by side. */

import { orderKey } from "../core/event.ts";
import type { Delivery } from "../core/upstream.ts";

/** Events that must follow each other. */
export interface Chain {
  readonly key: string;
  readonly waiting: Delivery[];
  /** Those before it are taken. */
  next: number;
}

export class WebhookQueue {
  readonly #keyOf: (delivery: Delivery) => string;
  /** Those with something waiting or on its way. */
  readonly #chains = new Map<string, Chain>();
  /** Those with something waiting and nothing on its way. */
  #ready: Chain[] = [];

  /** With `concurrency` 1 there is one chain. */
  constructor(concurrency: number) {
    this.#keyOf = concurrency === 1 ? () => "" : chainKey;
  }

  push(delivery: Delivery): void {
    const key = this.#keyOf(delivery);
    let chain = this.#chains.get(key);
    if (chain === undefined) {
      chain = { key, waiting: [], next: 0 };
      this.#chains.set(key, chain);
      this.#ready.push(chain);
    }
    chain.waiting.push(delivery);
  }

  /** The next chain that may send; `release` it when the answer has come. */
  take(): Chain | undefined {
    return this.#ready.shift();
  }

  /** Up to `count` events of one target, in order. */
  takeFrom(chain: Chain, count: number): Delivery[] {
    const { waiting, next } = chain;
    const { name } = waiting[next]!.target;
    let end = next + 1;
    while (end < waiting.length && end - next < count && waiting[end]!.target.name === name) end++;
    const taken = waiting.slice(next, end);
    chain.next = end;
    if (end === waiting.length) {
      waiting.length = 0;
      chain.next = 0;
    } else if (end > 1024 && end * 2 > waiting.length) {
      waiting.splice(0, end);
      chain.next = 0;
    }
    return taken;
  }

  release(chain: Chain): void {
    if (chain.next < chain.waiting.length) this.#ready.push(chain);
    else this.#chains.delete(chain.key);
  }
}

function chainKey({ event, target }: Delivery): string {
  return `${target.name} ${orderKey(event)}`;
}
