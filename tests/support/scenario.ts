/** One black-box test: real servers, the program beside them, and everything cleared away when it ends. */

import { randomBytes } from "node:crypto";
import { test } from "node:test";
import postgres from "postgres";
import { withAmqpChannel } from "./consumers.ts";
import { type Proxy, type ProxyOptions, startProxy } from "./proxy.ts";
import { type RunningPostgres, sharedServer, type SharedServers, sharedServers } from "./servers.ts";
import { until } from "./wait.ts";

export interface TestDatabase {
  readonly name: string;
  /** As superuser, over TCP. */
  readonly uri: string;
  /** Up to eight sessions as superuser. */
  readonly sql: postgres.Sql;
}

export interface ScenarioOptions {
  /** Default 180,000. */
  readonly timeoutMs?: number;
}

/** A test of `node:test` whose scope undoes, in reverse order, whatever `run` made through it. */
export function scenario(title: string, run: (scope: Scope) => Promise<void>, options: ScenarioOptions = {}): void {
  test(title, { timeout: options.timeoutMs ?? 180_000 }, async () => {
    const scope = new Scope();
    let failure: unknown;
    try {
      await run(scope);
    } catch (error) {
      failure = scope.withLogs(error);
    }
    try {
      await scope.close();
    } catch (error) {
      failure ??= scope.withLogs(error);
    }
    if (failure !== undefined) throw failure;
  });
}

export class Scope {
  readonly #undo: Array<() => unknown> = [];
  readonly #proxies: Proxy[] = [];

  get servers(): Promise<SharedServers> {
    return sharedServers();
  }

  /** Called at the end, after what is deferred later. */
  defer(undo: () => unknown): void {
    this.#undo.push(undo);
  }

  /** Stops a server or closes a consumer at the end. */
  keep<T extends { stop(): unknown } | { close(): unknown }>(thing: T): T {
    this.defer(() => "stop" in thing ? thing.stop() : thing.close());
    return thing;
  }

  /** Default server: the shared one. */
  async database(server?: RunningPostgres): Promise<TestDatabase> {
    const { name, uri, drop } = await (server ?? await sharedServer("postgres")).createDatabase("test");
    this.defer(drop);
    const sql = postgres(uri, { max: 8, onnotice: () => {}, connect_timeout: 10 });
    this.defer(() => sql.end({ timeout: 1 }));
    return { name, uri, sql };
  }

  /** A role that may log in and replicate and nothing else; its URI for the same database. */
  async role(database: TestDatabase, clause = "replication"): Promise<{ name: string; uri: string }> {
    const name = uniqueName("role");
    await database.sql.unsafe(`create role ${name} login password 'r0le s:cret' ${clause}`);
    this.defer(() => database.sql.unsafe(`drop owned by ${name}; drop role ${name}`));
    const uri = new URL(database.uri);
    uri.username = name;
    uri.password = encodeURIComponent("r0le s:cret");
    return { name, uri: uri.href };
  }

  proxy(options: ProxyOptions): Proxy {
    const proxy = startProxy(options);
    this.#proxies.push(proxy);
    this.defer(() => proxy.stop());
    return proxy;
  }

  async readyProxy(options: ProxyOptions): Promise<Proxy> {
    const proxy = this.proxy(options);
    await proxy.waitForReady();
    return proxy;
  }

  /** A durable queue of the shared RabbitMQ, or of the one at `uri`. */
  async queue(uri?: string): Promise<string> {
    const name = uniqueName("queue");
    const at = uri ?? (await sharedServer("rabbitmq")).uri;
    await withAmqpChannel(at, (channel) => channel.assertQueue(name, { durable: true }));
    this.defer(() => withAmqpChannel(at, (channel) => channel.deleteQueue(name)));
    return name;
  }

  /** A durable topic exchange of the shared RabbitMQ. */
  async exchange(name = uniqueName("exchange")): Promise<string> {
    const { uri } = await sharedServer("rabbitmq");
    await withAmqpChannel(uri, (channel) => channel.assertExchange(name, "topic", { durable: true }));
    this.defer(() => withAmqpChannel(uri, (channel) => channel.deleteExchange(name)));
    return name;
  }

  async close(): Promise<void> {
    const failures: unknown[] = [];
    for (const undo of this.#undo.splice(0).reverse()) {
      try {
        await undo();
      } catch (error) {
        failures.push(error);
      }
    }
    if (failures.length > 0) throw failures[0];
    for (const proxy of this.#proxies) {
      const fatal = proxy.log.find(({ json }) => json?.level === "fatal");
      if (fatal !== undefined) throw new Error(`the program met an unexpected error: ${fatal.text}`);
    }
  }

  /** The error with the ends of the programs' logs. */
  withLogs(error: unknown): unknown {
    const logs = this.#proxies.map((proxy, i) => {
      const tail = proxy.log.slice(-15).map(({ text }) => text.slice(0, 600)).join("\n");
      return `--- log of program ${i + 1} ---\n${tail}`;
    });
    if (!(error instanceof Error) || logs.length === 0) return error;
    error.message = `${error.message}\n${logs.join("\n")}`;
    return error;
  }
}

/** A name that is an identifier in SQL and fit for slots, queues, exchanges and topics. */
export function uniqueName(prefix: string): string {
  return `${prefix}_${randomBytes(5).toString("hex")}`;
}

export interface BridgeSettings {
  readonly uri: string;
  readonly slot?: string;
  readonly params?: string;
  readonly kind: string;
  readonly upstreamUri?: string;
  readonly bindings: string;
  /** Further keys of the upstream. */
  readonly more?: Readonly<Record<string, string>>;
}

/** The environment of a bridge in the manual's form. */
export function bridgeEnv(
  { uri, slot, params, kind, upstreamUri, bindings, more = {} }: BridgeSettings,
  name = "LOCAL",
): Record<string, string> {
  const env: Record<string, string> = {
    [`PGPROXY_${name}-POSTGRESQL_URI`]: uri,
    [`PGPROXY_${name}-UPSTREAM`]: kind,
    [`PGPROXY_${name}-UPSTREAM_CONFIG-BRIDGE_CHANNELS`]: bindings,
  };
  if (slot !== undefined) env[`PGPROXY_${name}-REPLICATION_SLOT`] = slot;
  if (params !== undefined) env[`PGPROXY_${name}-WAL2JSON_PARAMS`] = params;
  if (upstreamUri !== undefined) env[`PGPROXY_${name}-UPSTREAM_CONFIG-URI`] = upstreamUri;
  for (const [key, value] of Object.entries(more)) env[`PGPROXY_${name}-UPSTREAM_CONFIG-${key.toUpperCase()}`] = value;
  return env;
}

/** The text of an ini file. */
export function iniText(sections: Readonly<Record<string, Readonly<Record<string, string>>>>): string {
  return Object.entries(sections).map(([name, keys]) => {
    return [`[${name}]`, ...Object.entries(keys).map(([key, value]) => `${key}=${value}`), ""].join("\n");
  }).join("\n");
}

/** One line of the upstream `stdout`. */
export interface PrintedEvent {
  readonly id: string;
  readonly type: string;
  readonly channel: string;
  readonly target: string;
  readonly routing_key: string;
  /** The payload as it was received: for a WAL record the text between `"payload":` and the end of the line. */
  readonly text: string;
}

/** The complete lines that the program has printed; `target` picks those of one binding. */
export function printedEvents(proxy: Proxy, target?: string): PrintedEvent[] {
  const lines = proxy.stdout.split("\n").slice(0, -1);
  const events = lines.map((line) => {
    const { payload, ...event } = parsed(line);
    const start = line.indexOf('"payload":') + '"payload":'.length;
    return { ...event, text: typeof payload === "string" ? payload : line.slice(start, -1) };
  });
  return target === undefined ? events : events.filter((event) => event.target === target);
}

function parsed(line: string): PrintedEvent & { payload: unknown } {
  try {
    return JSON.parse(line);
  } catch (error) {
    throw new Error(`the program printed a line that is no JSON: ${line.slice(0, 300)} … ${line.slice(-300)}`, {
      cause: error,
    });
  }
}

/** Waits until the program has printed `count` events, or what `condition` asks for. */
export function waitForPrinted(
  proxy: Proxy,
  condition: number | ((events: readonly PrintedEvent[]) => boolean),
  options: { readonly target?: string; readonly timeoutMs?: number } = {},
): Promise<PrintedEvent[]> {
  let seen: PrintedEvent[] = [];
  return until(() => {
    seen = printedEvents(proxy, options.target);
    const met = typeof condition === "number" ? seen.length >= condition : condition(seen);
    return met ? seen : undefined;
  }, {
    timeoutMs: options.timeoutMs ?? 45_000,
    what: () =>
      `the program to print ${
        typeof condition === "number" ? `${condition} events` : "what was expected"
      }; it printed ` +
      `${seen.length}, the last: ${seen.slice(-5).map(({ text }) => text.slice(0, 200)).join("\n  ")}`,
  });
}
