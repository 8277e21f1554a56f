/** Which fault comes when in a soak: made of nothing but the seed, so that a run can be repeated. */

import type { BrokerKind } from "../support/broker_frames.ts";
import { ALL_KINDS } from "./plant.ts";
import { between, pick, type Random, randomFrom } from "./random.ts";

/** Faults of different tracks are there at the same time, those of one track follow each other. */
export type Track = "program" | "brokers" | "postgres" | "network";

export type Place = "postgres" | BrokerKind;

export type Fault =
  | { readonly kind: "program killed" | "program stopped" | "program taken over" }
  | { readonly kind: "program frozen"; readonly durationMs: number }
  | { readonly kind: "broker killed" | "broker shut down"; readonly broker: BrokerKind }
  | { readonly kind: "broker frozen"; readonly broker: BrokerKind; readonly durationMs: number }
  | { readonly kind: "PostgreSQL stopped fast" | "PostgreSQL stopped immediately" | "PostgreSQL killed" }
  | { readonly kind: "PostgreSQL frozen"; readonly durationMs: number }
  | { readonly kind: "walsender terminated" | "large transaction" }
  | { readonly kind: "connections cut" | "connections half open"; readonly place: Place }
  | {
    readonly kind: "connections refused" | "a trickle to the server" | "a trickle to the client";
    readonly place: Place;
    readonly durationMs: number;
  }
  | { readonly kind: "acknowledgements withheld"; readonly broker: BrokerKind; readonly durationMs: number };

export interface PlannedFault {
  /** Since the start of the soak; one that is due before the last of its track has ended waits for that. */
  readonly atMs: number;
  readonly track: Track;
  readonly fault: Fault;
}

const PLACES: readonly Place[] = ["postgres", ...ALL_KINDS];

const TRACKS: Readonly<Record<Track, { readonly meanGapMs: number; make(random: Random): Fault }>> = {
  program: {
    meanGapMs: 8_000,
    make: (random) => {
      const kind = pick(
        random,
        ["program killed", "program killed", "program stopped", "program taken over", "program frozen"] as const,
      );
      return kind === "program frozen" ? { kind, durationMs: between(random, 500, 7_000) } : { kind };
    },
  },
  brokers: {
    meanGapMs: 15_000,
    make: (random) => {
      const broker = pick(random, ALL_KINDS);
      const kind = pick(random, ["broker killed", "broker shut down", "broker frozen"] as const);
      return kind === "broker frozen" ? { kind, broker, durationMs: between(random, 1_000, 9_000) } : { kind, broker };
    },
  },
  postgres: {
    meanGapMs: 20_000,
    make: (random) => {
      const kind = pick(
        random,
        [
          "PostgreSQL stopped fast",
          "PostgreSQL stopped immediately",
          "PostgreSQL killed",
          "PostgreSQL frozen",
          "walsender terminated",
          "walsender terminated",
          "large transaction",
          "large transaction",
        ] as const,
      );
      return kind === "PostgreSQL frozen" ? { kind, durationMs: between(random, 500, 6_000) } : { kind };
    },
  },
  network: {
    meanGapMs: 8_000,
    make: (random) => {
      const durationMs = between(random, 500, 8_000);
      const kind = pick(
        random,
        [
          "connections cut",
          "connections cut",
          "connections half open",
          "connections refused",
          "a trickle to the server",
          "a trickle to the client",
          "acknowledgements withheld",
        ] as const,
      );
      switch (kind) {
        case "connections cut":
        case "connections half open":
          return { kind, place: pick(random, PLACES) };
        case "acknowledgements withheld":
          return { kind, broker: pick(random, ALL_KINDS), durationMs };
        default:
          return { kind, place: pick(random, PLACES), durationMs };
      }
    },
  },
};

/** In the order of their times. */
export function planSoak(seed: number, durationMs: number): PlannedFault[] {
  const plan: PlannedFault[] = [];
  for (const [i, track] of (Object.keys(TRACKS) as Track[]).entries()) {
    const random = randomFrom(seed * 16 + i);
    const { meanGapMs, make } = TRACKS[track];
    for (let atMs = between(random, 0, meanGapMs); atMs < durationMs; atMs += between(random, 0.2, 1.8) * meanGapMs) {
      plan.push({ atMs: Math.round(atMs), track, fault: make(random) });
    }
  }
  return plan.sort((a, b) => a.atMs - b.atMs);
}

export function describeFault(fault: Fault): string {
  const place = "broker" in fault ? ` (${fault.broker})` : "place" in fault ? ` (${fault.place})` : "";
  const duration = "durationMs" in fault ? ` for ${(fault.durationMs / 1000).toFixed(1)} s` : "";
  return `${fault.kind}${place}${duration}`;
}
