/** Where durable messages go: to every bridge of this process that reads the same database. */

import { Routes } from "./routes.ts";

/**
 * A stored message is deleted when everybody it is for has acknowledged it, so that two bridges of one database must not
 * drain it each on its own: the first to ask gets to drain, into the routes that both fill.
 */
export class OutboxRoutes {
  readonly #byUri = new Map<string, Routes>();

  /** `drains` is true for the first caller with this connection URI. */
  of(postgresqlUri: string): { readonly routes: Routes; readonly drains: boolean } {
    const known = this.#byUri.get(postgresqlUri);
    const routes = known ?? new Routes();
    this.#byUri.set(postgresqlUri, routes);
    return { routes, drains: known === undefined };
  }
}
