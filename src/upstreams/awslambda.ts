/** AWS Lambda (docs.aws.amazon.com/lambda/latest/api/API_Invoke.html). */

import { isUtf8 } from "node:buffer";
import { InvokeCommand, LambdaClient } from "@aws-sdk/client-lambda";
import type { AwsLambdaConfig } from "../config/config.ts";
import type { Event } from "../core/event.ts";
import type { Delivery } from "../core/upstream.ts";
import { type AwsTarget, AwsUpstream, type ClientOptions, type MessageFault } from "./aws.ts";
import { messageText } from "./aws_messages.ts";

/** 1 MB for asynchronous, 6 MB for synchronous invocations (Lambda API reference, Invoke). */
const MAX_BYTES = { Event: 1_048_576, RequestResponse: 6_291_456 } as const;
/** A function may run for 15 minutes (Lambda developer guide, "Lambda quotas"). */
const FUNCTION_TIMEOUT_MS = 15 * 60_000 + 5_000;
/** Of what a function says about its error. */
const MAX_ERROR_LENGTH = 300;

export class AwsLambdaUpstream extends AwsUpstream<LambdaClient> {
  readonly kind = "awslambda";
  readonly #config: AwsLambdaConfig;

  constructor(config: AwsLambdaConfig) {
    super(config, "AWS Lambda", "lambda:InvokeFunction");
    this.#config = config;
    if (config.invocationType === "RequestResponse") this.requestTimeoutMs = FUNCTION_TIMEOUT_MS;
  }

  protected override makeClient(options: ClientOptions): LambdaClient {
    return new LambdaClient(options);
  }

  protected override async openTarget(
    client: LambdaClient,
    name: string,
    abortSignal: AbortSignal,
  ): Promise<AwsTarget> {
    // Checks that the function is there and may be invoked, and invokes nothing.
    await client.send(new InvokeCommand({ FunctionName: name, InvocationType: "DryRun" }), { abortSignal });
    return new LambdaFunction(client, name, this.#config);
  }
}

class LambdaFunction implements AwsTarget {
  readonly maxEntries = 1;
  readonly maxRequestBytes: number;
  readonly #client: LambdaClient;
  readonly #name: string;
  readonly #invocationType: AwsLambdaConfig["invocationType"];
  /** CloudEvents hold the id and all else in themselves. */
  readonly #inputOf: (event: Event) => string;

  constructor(client: LambdaClient, name: string, config: AwsLambdaConfig) {
    this.#client = client;
    this.#name = name;
    this.#invocationType = config.invocationType;
    this.#inputOf = config.cloudEventsSource === undefined ? inputOf : messageText;
    this.maxRequestBytes = MAX_BYTES[config.invocationType];
  }

  measure(event: Event): number | string {
    if (!isUtf8(event.payload)) return "it is not UTF-8";
    const bytes = Buffer.byteLength(this.#inputOf(event));
    return bytes <= this.maxRequestBytes ? bytes : `its input has ${bytes} bytes; the limit is ${this.maxRequestBytes}`;
  }

  async send([delivery]: readonly Delivery[], abortSignal: AbortSignal): Promise<(MessageFault | undefined)[]> {
    const { FunctionError, Payload } = await this.#client.send(
      new InvokeCommand({
        FunctionName: this.#name,
        InvocationType: this.#invocationType,
        Payload: Buffer.from(this.#inputOf(delivery!.event)),
      }),
      { abortSignal },
    );
    if (FunctionError === undefined) return [undefined];
    return [{ code: `function error (${FunctionError})`, text: errorOf(Payload), sendersFault: true }];
  }
}

/** The function's input: a JSON object, since an invocation has no other place for the id. JSON stays byte for byte. */
function inputOf(event: Event): string {
  const text = messageText(event);
  return `{"id":${JSON.stringify(event.id)},"type":"${event.type}","channel":${JSON.stringify(event.channel)},` +
    `"routing_key":${JSON.stringify(event.routingKey)},"payload":${event.json ? text : JSON.stringify(text)}}`;
}

/** `TypeError: x is not a function`, of `{"errorType": …, "errorMessage": …}`. */
function errorOf(payload: Uint8Array | undefined): string {
  const text = payload === undefined ? "" : Buffer.from(payload).toString();
  try {
    const { errorType, errorMessage }: { errorType?: unknown; errorMessage?: unknown } = JSON.parse(text);
    return [errorType, errorMessage].filter((part) => typeof part === "string").join(": ").slice(0, MAX_ERROR_LENGTH);
  } catch {
    return text.slice(0, MAX_ERROR_LENGTH);
  }
}
