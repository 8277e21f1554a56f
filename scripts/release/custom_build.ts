/** What the build by `deno compile` may do, and how upstreams are left out of it. */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

/**
 * To reach PostgreSQL and the brokers; to read the configuration's variables; to read its files: the ini file, secrets,
 * certificates, and what the resolver needs. Nothing is written or started. The release of the operating system is what
 * the AWS SDK puts into its requests; it fails where it may not ask.
 */
export const PRIVILEGES = ["--allow-net", "--allow-env", "--allow-read", "--allow-sys=osRelease"] as const;

/** An import map in which the modules of these kinds are src/upstreams/left_out.ts. Throws for an unknown kind. */
export function importMapWithout(
  kinds: readonly string[],
  rootDir: string,
): { readonly imports: Readonly<Record<string, string>> } {
  const { imports }: { imports: Record<string, string> } = JSON.parse(readFileSync(join(rootDir, "deno.json"), "utf8"));
  const modules = upstreamModules(rootDir);
  const replaced = kinds.map((kind) => {
    const path = modules.get(kind);
    if (path === undefined) {
      throw new Error(`there is no upstream "${kind}" to leave out: the kinds are ${[...modules.keys()].join(", ")}`);
    }
    const leftOut = pathToFileURL(join(rootDir, "src/upstreams/left_out.ts"));
    leftOut.searchParams.set("kind", kind);
    return [pathToFileURL(path).href, leftOut.href];
  });
  return { imports: { ...imports, ...Object.fromEntries(replaced) } };
}

/** Kind to path, as the registry has them. */
export function upstreamModules(rootDir: string): ReadonlyMap<string, string> {
  const registry = readFileSync(join(rootDir, "src/upstreams/mod.ts"), "utf8");
  const entries = registry.matchAll(/case "(\w+)":\s*(?:\{\s*)?[^:]*?\bimport\("\.\/(\w+\.ts)"\)/g);
  return new Map([...entries].map(([, kind = "", file = ""]) => [kind, join(rootDir, "src/upstreams", file)]));
}
