/**
 * The bill of materials of the executables in CycloneDX 1.6 (https://cyclonedx.org/docs/1.6/json/): the npm packages
 * that the bundler took code from, with the checksums of deno.lock, and the Bun runtime with what is linked into it.
 */

import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";

export interface BillInput {
  readonly version: string;
  readonly commit: string;
  /** Seconds since 1970, of the commit; the same sources give the same bill. */
  readonly epochSeconds: number;
  /** The files that went into the bundle, as `bun build --metafile` names them. */
  readonly bundledFiles: readonly string[];
  readonly rootDir: string;
  /** `process.versions` of the runtime. */
  readonly runtimeVersions: Readonly<Record<string, string | undefined>>;
}

interface Lock {
  readonly npm: Readonly<Record<string, { readonly integrity: string; readonly dependencies?: readonly string[] }>>;
}

interface Package {
  readonly name: string;
  readonly version: string;
  /** Of its files, relative to the root. */
  readonly dir: string;
}

/** The text of the file. Throws if a bundled package is not in deno.lock. */
export function billOfMaterials(input: BillInput): string {
  const lock: Lock = JSON.parse(readFileSync(join(input.rootDir, "deno.lock"), "utf8"));
  const packages = bundledPackages(input.bundledFiles);
  const bundled = new Set(packages.map(purl));
  const root = `pkg:generic/pg-event-proxy@${input.version}`;
  const runtime = runtimeComponent(input.runtimeVersions);
  const direct = packages.filter(({ name }) => name in directDependencies(input.rootDir)).map(purl);
  const bill = {
    $schema: "http://cyclonedx.org/schema/bom-1.6.schema.json",
    bomFormat: "CycloneDX",
    specVersion: "1.6",
    serialNumber: `urn:uuid:${stableUuid(`${input.version} ${input.commit}`)}`,
    version: 1,
    metadata: {
      timestamp: new Date(input.epochSeconds * 1000).toISOString(),
      component: {
        type: "application",
        "bom-ref": root,
        name: "pg-event-proxy",
        version: input.version,
        purl: root,
        licenses: [{ license: { id: "MIT" } }],
        properties: [{ name: "commit", value: input.commit }],
      },
    },
    components: [runtime, ...packages.map((item) => packageComponent(item, lock, input.rootDir))],
    dependencies: [
      { ref: root, dependsOn: [runtime["bom-ref"], ...direct] },
      ...packages.map((item) => ({
        ref: purl(item),
        dependsOn: dependenciesOf(item, lock).filter((ref) => bundled.has(ref)),
      })),
    ],
  };
  return `${JSON.stringify(bill, undefined, 2)}\n`;
}

function directDependencies(rootDir: string): Readonly<Record<string, string>> {
  return JSON.parse(readFileSync(join(rootDir, "deno.json"), "utf8")).imports;
}

/** Deno lays packages out as node_modules/.deno/NAME@VERSION/node_modules/NAME, with `+` for the `/` of a scope. */
function bundledPackages(files: readonly string[]): Package[] {
  const found = new Map<string, Package>();
  for (const file of files) {
    const match = /^(node_modules\/\.deno\/(?:@[^/+]+\+)?[^/@]+@([^/_]+)[^/]*\/node_modules\/((?:@[^/]+\/)?[^/]+))\//
      .exec(file);
    if (match === null) continue;
    const [, dir = "", version = "", name = ""] = match;
    found.set(`${name}@${version}`, { name, version, dir });
  }
  return [...found.values()].sort((a, b) => purl(a) < purl(b) ? -1 : 1);
}

function packageComponent(item: Package, lock: Lock, rootDir: string) {
  const entry = lock.npm[`${item.name}@${item.version}`];
  if (entry === undefined) throw new Error(`${item.name}@${item.version} is bundled, but deno.lock does not hold it`);
  const manifest: { readonly license?: unknown } = JSON.parse(
    readFileSync(join(rootDir, item.dir, "package.json"), "utf8"),
  );
  const sha512 = Buffer.from(entry.integrity.replace(/^sha512-/, ""), "base64").toString("hex");
  return {
    type: "library",
    "bom-ref": purl(item),
    name: item.name,
    version: item.version,
    purl: purl(item),
    hashes: [{ alg: "SHA-512", content: sha512 }],
    ...(typeof manifest.license === "string" ? { licenses: licenses(manifest.license) } : {}),
  };
}

/** An SPDX identifier, or an expression of several. */
function licenses(text: string) {
  return /^[A-Za-z0-9.+-]+$/.test(text) ? [{ license: { id: text } }] : [{ expression: text }];
}

/** deno.lock names a dependency without its version where it holds only one of that name. */
function dependenciesOf(item: Package, lock: Lock): string[] {
  const keys = Object.keys(lock.npm);
  const { dependencies = [] } = lock.npm[`${item.name}@${item.version}`] ?? {};
  return dependencies.flatMap((dependency) => {
    const key = keys.find((candidate) => candidate === dependency || candidate.startsWith(`${dependency}@`));
    const at = key?.lastIndexOf("@") ?? -1;
    return key === undefined ? [] : [purl({ name: key.slice(0, at), version: key.slice(at + 1) })];
  });
}

/** Versions in `process.versions` that are a promise of compatibility, and no library that is linked in. */
const NOT_LINKED = new Set(["bun", "node", "v8", "uv", "napi", "modules", "openssl", "unicode", "typescript", "zig"]);

function runtimeComponent(versions: Readonly<Record<string, string | undefined>>) {
  const version = versions.bun ?? "unknown";
  const linked = Object.entries(versions).filter(([name, value]) => value !== undefined && !NOT_LINKED.has(name));
  return {
    type: "platform",
    "bom-ref": `pkg:npm/bun@${version}`,
    name: "bun",
    version,
    purl: `pkg:npm/bun@${version}`,
    description: "The JavaScript runtime that the executable consists of, besides the bundled code",
    licenses: [{ license: { id: "MIT" } }],
    components: linked.map(([name, value]) => ({
      type: "library",
      "bom-ref": `bun/${name}@${value}`,
      name,
      version: value,
      // https://bun.com/docs/project/license
      ...(name === "webkit" ? { licenses: [{ license: { id: "LGPL-2.0-only" } }] } : {}),
    })),
  };
}

function purl({ name, version }: Pick<Package, "name" | "version">): string {
  return `pkg:npm/${name.replace("@", "%40")}@${version}`;
}

/** RFC 9562, version 8: the bits are ours to choose, here of a hash. */
function stableUuid(text: string): string {
  const hex = createHash("sha256").update(text).digest("hex");
  return [hex.slice(0, 8), hex.slice(8, 12), `8${hex.slice(13, 16)}`, `8${hex.slice(17, 20)}`, hex.slice(20, 32)]
    .join("-");
}
