/** The platforms that releases are built for, and the Bun runtime that goes into each executable. */

export interface Platform {
  readonly os: "linux" | "darwin" | "windows";
  readonly arch: "x64" | "arm64";
  /** Of Linux only. */
  readonly libc?: "glibc" | "musl";
}

export interface ReleaseTarget extends Platform {
  /** As in the file's name and in `scripts/build --target`. */
  readonly name: string;
  /** What Bun calls it. */
  readonly bunTarget: string;
  /** The npm package that holds the runtime; its version is BUN_VERSION. */
  readonly npmPackage: string;
  /** Subresource integrity of that package's file, as the npm registry tells it: what goes in must not change. */
  readonly integrity: string;
}

/** The version that the integrities below belong to, the same as in scripts/setup. */
export const BUN_VERSION = "1.4.5";

/**
 * Bun has builds of its own for x64 processors without AVX2 (`baseline`); since in this version the files are the same
 * as those without the suffix, there is one target for both.
 */
export const RELEASE_TARGETS: readonly ReleaseTarget[] = [
  {
    name: "linux-x64",
    os: "linux",
    arch: "x64",
    libc: "glibc",
    bunTarget: "bun-linux-x64",
    npmPackage: "@oven/bun-linux-x64",
    integrity: "sha512-IWX9BELoGHAUtMonkeSaNaZwXzRk+oDw6Mk+HBFXd3KHYIBNBsIGRupMZPcgNoDbJpLu6gAJjIoIVPZtt1aJ1g==",
  },
  {
    name: "linux-arm64",
    os: "linux",
    arch: "arm64",
    libc: "glibc",
    bunTarget: "bun-linux-arm64",
    npmPackage: "@oven/bun-linux-aarch64",
    integrity: "sha512-4BXmsSKnjOrlGWqZV4x/oWa7AVoR+B6lCXddMzOAXBIm3t50eslg9wb66gmtW1AamEQ1l1CDvmmruysEhqOWMg==",
  },
  {
    name: "linux-x64-musl",
    os: "linux",
    arch: "x64",
    libc: "musl",
    bunTarget: "bun-linux-x64-musl",
    npmPackage: "@oven/bun-linux-x64-musl",
    integrity: "sha512-10QoW/YfTgnURaGEaHpJCiXjLI2e5iTtfVDaA5JKcyUzaa1cq6cVUY9/Uq5XkYzvtRjHLRe9Oj/lTDIQcxy8HQ==",
  },
  {
    name: "linux-arm64-musl",
    os: "linux",
    arch: "arm64",
    libc: "musl",
    bunTarget: "bun-linux-arm64-musl",
    npmPackage: "@oven/bun-linux-aarch64-musl",
    integrity: "sha512-XCNc+WvvMAdNNb+OWTogpy+N9wm62fkVeEVLb6how0RZhW5LPi6c7BlkeVCuWps7XjEl2saFpHFa20/1E+PAHg==",
  },
  {
    name: "macos-x64",
    os: "darwin",
    arch: "x64",
    bunTarget: "bun-darwin-x64",
    npmPackage: "@oven/bun-darwin-x64",
    integrity: "sha512-qkLPMGHZM9NI6CeHTWwVezzmlo6cC4Ta7yUAjYIWXS366qQcOlcp75t2uZyiuVRBMPS0h9qE0tCcvCHGaFqjJg==",
  },
  {
    name: "macos-arm64",
    os: "darwin",
    arch: "arm64",
    bunTarget: "bun-darwin-arm64",
    npmPackage: "@oven/bun-darwin-aarch64",
    integrity: "sha512-4MIFXHmctH2EhAxLXm2/qxNtv17dFtLJylvaOCsrgq6KSqHTs6eW5YSrJjRbJxYUJaR901fsN8JfZOa+CsWpWQ==",
  },
  {
    name: "windows-x64",
    os: "windows",
    arch: "x64",
    bunTarget: "bun-windows-x64",
    npmPackage: "@oven/bun-windows-x64",
    integrity: "sha512-FNvply651vcE/GHgNWz6mZvhmkwBuu8Hw54oNzA+CQog+HW+542rXQmZqNHRkFxazD9L3xi+iTtvO3engAgJfw==",
  },
];

/** Throws if there is none of that name. */
export function releaseTarget(name: string): ReleaseTarget {
  const target = RELEASE_TARGETS.find((candidate) => candidate.name === name);
  if (target !== undefined) return target;
  const names = RELEASE_TARGETS.map((candidate) => candidate.name).join(", ");
  throw new Error(`unknown target "${name}": the targets are ${names}`);
}
