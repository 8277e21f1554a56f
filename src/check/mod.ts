/** Goes through everything that the run needs, by the run's own code, and leaves nothing behind. */

import type { BridgeConfig } from "../config/config.ts";
import type { ConnectionParams } from "../postgres/connection_uri.ts";
import { checkDatabase } from "./database.ts";
import type { Section } from "./finding.ts";
import { checkUpstream } from "./upstream.ts";

export interface CheckOptions {
  /** Publish one message to each target, which consumers see. */
  readonly send: boolean;
  /** The routing key of that message for channels of NOTIFY. */
  readonly key: string;
}

/** The routing key of a message for `wal2json` where there is no table to take it from. */
const WAL_KEY = "public.check.insert";

/** The sections of each bridge in turn: its database, then its upstreams. */
export async function* check(
  bridges: readonly BridgeConfig[],
  connections: readonly ConnectionParams[],
  options: CheckOptions,
  signal: AbortSignal,
): AsyncGenerator<Section> {
  for (const [i, bridge] of bridges.entries()) {
    const { section, walKey = WAL_KEY } = await checkDatabase(bridge, connections[i]!, signal);
    yield section;
    const upstreams = bridge.upstreams.map((config) =>
      checkUpstream({ bridge: bridge.name, config, walKey, ...options }, signal)
    );
    for (const upstream of upstreams) yield await upstream;
  }
}
