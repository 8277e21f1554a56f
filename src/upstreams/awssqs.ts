/** Amazon SQS, standard and FIFO queues (docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference). */

import {
  GetQueueAttributesCommand,
  GetQueueUrlCommand,
  SendMessageBatchCommand,
  type SendMessageBatchRequestEntry,
  SQSClient,
} from "@aws-sdk/client-sqs";
import type { AwsSqsConfig } from "../config/config.ts";
import type { Event } from "../core/event.ts";
import type { Delivery } from "../core/upstream.ts";
import { type AwsTarget, AwsUpstream, type ClientOptions, type MessageFault } from "./aws.ts";
import { attributesOf, batchAnswers, fifoIds, MAX_BATCH_ENTRIES, measureText, messageText } from "./aws_messages.ts";

/** 1 MiB for a message and for a batch (SQS API reference, SendMessageBatch); a queue may be set to less. */
const MAX_BYTES = 1_048_576;

export class AwsSqsUpstream extends AwsUpstream<SQSClient> {
  readonly kind = "awssqs";

  constructor(config: AwsSqsConfig) {
    super(config, "Amazon SQS", "sqs:GetQueueUrl, sqs:GetQueueAttributes and sqs:SendMessage");
  }

  protected override makeClient(options: ClientOptions): SQSClient {
    // An emulator may give its queues URLs of a host name that only it knows.
    return new SQSClient({ ...options, useQueueUrlAsEndpoint: !this.emulated });
  }

  protected override async openTarget(client: SQSClient, name: string, abortSignal: AbortSignal): Promise<AwsTarget> {
    const options = { abortSignal };
    const url = /^https?:/.test(name)
      ? name
      : (await client.send(new GetQueueUrlCommand({ QueueName: name }), options)).QueueUrl;
    const { Attributes } = await client.send(
      new GetQueueAttributesCommand({ QueueUrl: url, AttributeNames: ["MaximumMessageSize"] }),
      options,
    );
    const maxBytes = Number(Attributes?.MaximumMessageSize ?? MAX_BYTES);
    return new Queue(client, url ?? name, maxBytes, this.contentType);
  }
}

class Queue implements AwsTarget {
  readonly maxEntries = MAX_BATCH_ENTRIES;
  readonly maxRequestBytes = MAX_BYTES;
  readonly #client: SQSClient;
  readonly #url: string;
  readonly #maxBytes: number;
  readonly #fifo: boolean;
  readonly #contentType: string | undefined;

  constructor(client: SQSClient, url: string, maxBytes: number, contentType: string | undefined) {
    this.#client = client;
    this.#url = url;
    this.#maxBytes = maxBytes;
    this.#contentType = contentType;
    this.#fifo = url.endsWith(".fifo");
  }

  measure(event: Event): number | string {
    return measureText(event, this.#maxBytes, this.#contentType);
  }

  async send(deliveries: readonly Delivery[], abortSignal: AbortSignal): Promise<(MessageFault | undefined)[]> {
    const entries = deliveries.map(({ event }, i): SendMessageBatchRequestEntry => ({
      Id: String(i),
      MessageBody: messageText(event),
      MessageAttributes: attributesOf(event, this.#contentType),
      ...(this.#fifo ? fifoIds(event) : {}),
    }));
    const command = new SendMessageBatchCommand({ QueueUrl: this.#url, Entries: entries });
    return batchAnswers(deliveries.length, await this.#client.send(command, { abortSignal }));
  }
}
