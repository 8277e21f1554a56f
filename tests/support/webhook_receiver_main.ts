/**
 * An HTTP server that records every request to a file, and can be told to fail. A program of its own, so that it can be
 * killed and frozen: bun webhook_receiver_main.ts PORT FILE [JSON of TLS options, with paths]
 */

import { appendFileSync, readFileSync } from "node:fs";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { createServer as createTlsServer } from "node:https";
import process from "node:process";
import { setTimeout as delay } from "node:timers/promises";
import { CONTROL_PATH, type RecordedRequest, type Rule } from "./webhook_receiver.ts";

const [port = "0", file = "", tls = ""] = process.argv.slice(2);
let rules: Array<Rule & { left: number }> = [];
let authorization: string | undefined;
let recording = true;
let accepted = 0;

async function bodyOf(request: IncomingMessage): Promise<Buffer> {
  const chunks: Uint8Array[] = [];
  for await (const chunk of request) chunks.push(chunk);
  return Buffer.concat(chunks);
}

function control(request: IncomingMessage, response: ServerResponse, body: Buffer): void {
  if (request.method === "PUT") {
    const told = JSON.parse(body.toString());
    rules = (told.rules ?? []).map((rule: Rule) => ({ ...rule, left: rule.times ?? Infinity }));
    authorization = told.authorization;
    recording = told.recording ?? true;
    accepted = 0;
  }
  response.end(JSON.stringify({ accepted }));
}

function ruleFor(path: string, body: Buffer): Rule | undefined {
  const rule = rules.find(({ left, path: wanted, contains }) =>
    left > 0 && (wanted === undefined || wanted === path) && (contains === undefined || body.includes(contains))
  );
  if (rule !== undefined) rule.left--;
  return rule;
}

async function handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const body = await bodyOf(request);
  const path = request.url ?? "";
  if (path === CONTROL_PATH) return control(request, response, body);
  const isAllowed = authorization === undefined || request.headers.authorization === authorization;
  const rule = request.method === "POST" ? ruleFor(path, body) : undefined;
  const status = isAllowed ? rule?.status ?? 204 : 401;
  const recorded: RecordedRequest = {
    method: request.method ?? "",
    path,
    headers: request.headers,
    body: recording ? body.toString("base64") : "",
    status,
    receivedAtMs: Date.now(),
  };
  // Before the answer: what was acknowledged is on record, whatever happens next.
  if (recording) appendFileSync(file, JSON.stringify(recorded) + "\n");
  if (rule?.delayMs !== undefined) await delay(rule.delayMs);
  if (request.method === "POST" && status < 300) accepted += eventsIn(request);
  response.writeHead(status, rule?.headers ?? {});
  response.end(rule?.answer);
}

const onRequest = (request: IncomingMessage, response: ServerResponse) => {
  handle(request, response).catch(() => response.destroy());
};

/** Of a batch the id tells by how many events the first is followed. */
function eventsIn({ headers }: IncomingMessage): number {
  return 1 + Number(/\+(\d+)$/.exec(String(headers["webhook-id"] ?? ""))?.[1] ?? 0);
}

const server = tls === "" ? createServer(onRequest) : createTlsServer(tlsOptions(), onRequest);
server.keepAliveTimeout = 60_000;
server.listen(Number(port), "127.0.0.1");

function tlsOptions() {
  const { certFile, keyFile, caFile, requestCert } = JSON.parse(tls);
  const certificates = { cert: readFileSync(certFile), key: readFileSync(keyFile), ca: readFileSync(caFile) };
  return { ...certificates, requestCert, rejectUnauthorized: requestCert };
}
