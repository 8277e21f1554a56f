/** What the figures were measured on. */

import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { cpus, release, totalmem } from "node:os";
import { basename, dirname } from "node:path";
import process from "node:process";
import { ROOT_DIR } from "../support/proxy.ts";

export function machine(): Record<string, string> {
  const [cpu] = cpus();
  return {
    CPU: `${cpus().length} × ${cpu?.model.trim() ?? "unknown"}`,
    memory: `${Math.round(totalmem() / 2 ** 30)} GiB`,
    system: `${systemName()}, Linux ${release()}`,
  };
}

/** `postgresBinDir`: of the server that was measured. */
export function versions(postgresBinDir: string): Record<string, string> {
  const tools = `${ROOT_DIR}/.tools/node_modules/.bin`;
  return {
    Bun: firstMatch(output(`${tools}/bun`, ["--version"])),
    Deno: firstMatch(output(`${tools}/deno`, ["--version"])),
    PostgreSQL: firstMatch(output(`${postgresBinDir}/postgres`, ["--version"])),
    wal2json: firstMatch(debianVersion(`postgresql-${basename(dirname(postgresBinDir))}-wal2json`) ?? ""),
    // Asking it for its version would start it.
    RabbitMQ: firstMatch(debianVersion("rabbitmq-server") ?? ""),
    Mosquitto: firstMatch(debianVersion("mosquitto") ?? ""),
    Redis: firstMatch((debianVersion("redis-server") ?? "").replace(/^\d+:/, "")),
  };
}

/** With `-modified` where the sources differ from the commit. */
export function commit(): string {
  const hash = output("git", ["-C", ROOT_DIR, "rev-parse", "--short=12", "HEAD"]);
  const changed = output("git", ["-C", ROOT_DIR, "status", "--porcelain", "--", "src", "deno.json", "deno.lock"]);
  return hash === "" ? "unknown" : changed === "" ? hash : `${hash}-modified`;
}

function systemName(): string {
  try {
    return /^PRETTY_NAME="(.*)"/m.exec(readFileSync("/etc/os-release", "utf8"))?.[1] ?? process.platform;
  } catch {
    return process.platform;
  }
}

function debianVersion(name: string): string | undefined {
  const version = output("dpkg-query", ["-W", "-f", "${Version}", name]);
  return version === "" ? undefined : version;
}

function firstMatch(text: string): string {
  return /\d+(\.\d+)+/.exec(text)?.[0] ?? "unknown";
}

function output(file: string, args: readonly string[]): string {
  try {
    return execFileSync(file, [...args], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim();
  } catch {
    return "";
  }
}
