/** Whether the program lives, and whether events flow through it; and why not. */

import type { BridgeStatus } from "../core/status.ts";

export type Readiness = "ready" | "standing by" | "not ready" | "stopping";

export interface HealthReport {
  readonly status: Readiness;
  /** One line for each source and upstream that is not open. */
  readonly reasons: readonly string[];
}

/**
 * *standing by*: everything that can be open is, and another instance does the rest. `stopping`: whether the program was
 * told to stop.
 */
export function healthReport(bridges: readonly BridgeStatus[], stopping: boolean): HealthReport {
  const reasons: string[] = [];
  let waits = bridges.length === 0;
  let standsBy = false;
  for (const bridge of bridges) {
    for (const source of bridge.sources) {
      if (source.state === "open") continue;
      if (source.state === "standing_by") standsBy = true;
      else waits = true;
      reasons.push(reasonText(`${bridge.name}: source ${source.name}`, source));
    }
    for (const upstream of bridge.upstreams) {
      if (upstream.state === "open") continue;
      waits = true;
      reasons.push(reasonText(`${bridge.name}: ${upstream.kind} upstream "${upstream.name}"`, upstream));
    }
  }
  const status = stopping ? "stopping" : waits ? "not ready" : standsBy ? "standing by" : "ready";
  return { status, reasons };
}

function reasonText(part: string, { state, reason }: { readonly state: string; readonly reason: string | undefined }) {
  return `${part} is ${state.replaceAll("_", " ")}${reason === undefined ? "" : `: ${reason}`}`;
}
