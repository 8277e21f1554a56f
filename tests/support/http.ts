/** The program's HTTP server as a client sees it. */

import { connect } from "node:net";
import type { Proxy } from "./proxy.ts";
import { until } from "./wait.ts";

/** Settings that make the program listen at a free port of this machine. */
export const LISTEN_ENV = { "PGPROXY_HTTP-LISTEN": "0" } as const;

/** `http://127.0.0.1:PORT` of a program started with LISTEN_ENV. */
export async function httpBase(proxy: Proxy): Promise<string> {
  const { json } = await proxy.waitForLog(/answering HTTP/);
  return `http://${json?.host}:${json?.port}`;
}

export interface Health {
  readonly code: number;
  readonly status: string;
  readonly reasons: readonly string[];
}

export async function health(base: string, path = "/health/ready"): Promise<Health> {
  const response = await fetch(base + path, { signal: AbortSignal.timeout(5_000) });
  const { status, reasons } = await response.json();
  return { code: response.status, status, reasons };
}

/** Waits until the report is as `wanted` has it. */
export async function waitForHealth(
  base: string,
  wanted: (health: Health) => boolean,
  timeoutMs = 45_000,
): Promise<Health> {
  let seen: Health | undefined;
  return await until(async () => {
    seen = await health(base);
    return wanted(seen) ? seen : undefined;
  }, { timeoutMs, what: () => `another state of health than ${JSON.stringify(seen)}` });
}

/** Sends bytes as they are; resolves with what came back when the server has closed the connection. */
export function rawRequest(base: string, bytes: string, timeoutMs = 30_000): Promise<string> {
  const { hostname, port } = new URL(base);
  return new Promise((resolve, reject) => {
    let received = "";
    const socket = connect(Number(port), hostname, () => socket.write(bytes));
    const timer = setTimeout(() => {
      socket.destroy();
      reject(new Error(`the server has not closed the connection for ${timeoutMs / 1000} s; it sent: ${received}`));
    }, timeoutMs);
    socket.on("data", (data) => received += data.toString("latin1"));
    socket.on("error", () => {});
    socket.on("close", () => {
      clearTimeout(timer);
      resolve(received);
    });
  });
}

/** The text of `/metrics`. */
export async function scrape(base: string): Promise<string> {
  const response = await fetch(`${base}/metrics`, { signal: AbortSignal.timeout(5_000) });
  if (response.status !== 200) throw new Error(`/metrics answered ${response.status}`);
  return await response.text();
}

/** The sum over all samples of a metric whose labels are as wanted; undefined where there is none. */
export function metricIn(
  text: string,
  name: string,
  wanted: Readonly<Record<string, string>> = {},
): number | undefined {
  const values = text.split("\n").flatMap((line) => {
    const match = /^([a-z_]+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (match === null || match[1] !== name) return [];
    const labels = Object.fromEntries(
      [...(match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map((m) => [m[1], m[2]]),
    );
    return Object.entries(wanted).every(([label, value]) => labels[label] === value) ? [Number(match[3])] : [];
  });
  return values.length === 0 ? undefined : values.reduce((sum, value) => sum + value, 0);
}
