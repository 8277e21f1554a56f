/** Stands between the product and the emulator of AWS, and does to requests what AWS does and the emulator does not. */

import { createServer, type IncomingMessage, type Server as HttpServer, type ServerResponse } from "node:http";

/** `SendMessageBatch`, `PublishBatch`, … */
type Action = string;

/** What to do with a request: an answer in place of the emulator's, entries to fail, or undefined to let it pass. */
export type Verdict =
  | { readonly status: number; readonly code: string; readonly message?: string }
  /** Of SendMessageBatch: these entries do not reach the queue. */
  | {
    readonly failEntries: readonly number[];
    readonly code: string;
    readonly sendersFault: boolean;
  }
  | undefined;

export class AwsGate {
  readonly #server: HttpServer;
  readonly #target: string;
  /** In order of arrival. */
  readonly actions: Action[] = [];
  /** Asked for every request; `count` counts those of its action, from 1. */
  judge: (action: Action, count: number) => Verdict = () => undefined;

  private constructor(server: HttpServer, target: string) {
    this.#server = server;
    this.#target = target;
  }

  static start(emulatorUri: string): Promise<AwsGate> {
    return new Promise((resolve) => {
      const server = createServer();
      const gate = new AwsGate(server, emulatorUri.replace("aws://", "http://"));
      server.on("request", (request, response) => {
        const chunks: Uint8Array[] = [];
        request.on("data", (chunk: Uint8Array) => chunks.push(chunk));
        request.on("end", () => {
          gate.#pass(request, Buffer.concat(chunks).toString(), response).catch(() => response.destroy());
        });
      });
      server.listen(0, "127.0.0.1", () => resolve(gate));
    });
  }

  get uri(): string {
    const address = this.#server.address();
    if (typeof address !== "object" || address === null) throw new Error("the gate is closed");
    return `aws://127.0.0.1:${address.port}`;
  }

  close(): Promise<void> {
    this.#server.closeAllConnections();
    return new Promise((resolve) => this.#server.close(() => resolve()));
  }

  async #pass(request: IncomingMessage, body: string, response: ServerResponse): Promise<void> {
    const target = request.headers["x-amz-target"];
    const json = target !== undefined;
    const action = json ? String(target).replace(/^.*\./, "") : new URLSearchParams(body).get("Action") ?? "";
    this.actions.push(action);
    const verdict = this.judge(action, this.actions.filter((each) => each === action).length);
    if (verdict !== undefined && "status" in verdict) {
      const { status, code, message = "because the test says so" } = verdict;
      response.writeHead(status, { "content-type": json ? "application/x-amz-json-1.0" : "text/xml" });
      response.end(json ? JSON.stringify({ __type: code, message }) : xmlError(code, message));
      return;
    }
    const failed: unknown[] = [];
    let passed = body;
    if (verdict !== undefined) {
      const input: { Entries: { Id: string }[] } = JSON.parse(body);
      const { failEntries, code, sendersFault } = verdict;
      const Entries = input.Entries.filter(({ Id }, i) => {
        if (!failEntries.includes(i)) return true;
        failed.push({ Id, Code: code, SenderFault: sendersFault, Message: "because the test says so" });
        return false;
      });
      passed = JSON.stringify({ ...input, Entries });
    }
    const answer = await fetch(this.#target + (request.url ?? "/"), {
      method: "POST",
      body: passed,
      headers: {
        "content-type": String(request.headers["content-type"]),
        ...(json ? { "x-amz-target": String(target) } : {}),
      },
    });
    const text = await answer.text();
    response.writeHead(answer.status, { "content-type": answer.headers.get("content-type") ?? "" });
    if (failed.length === 0) response.end(text);
    else response.end(JSON.stringify({ ...JSON.parse(text), Failed: failed }));
  }
}

function xmlError(code: string, message: string): string {
  return `<ErrorResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/"><Error><Type>Sender</Type>` +
    `<Code>${code}</Code><Message>${message}</Message></Error><RequestId>1</RequestId></ErrorResponse>`;
}
