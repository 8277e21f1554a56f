/** Amazon SNS, standard and FIFO topics (docs.aws.amazon.com/sns/latest/api). */

import {
  GetTopicAttributesCommand,
  PublishBatchCommand,
  type PublishBatchRequestEntry,
  SNSClient,
} from "@aws-sdk/client-sns";
import type { AwsSnsConfig } from "../config/config.ts";
import type { Event } from "../core/event.ts";
import type { Delivery } from "../core/upstream.ts";
import { type AwsTarget, AwsUpstream, type ClientOptions, type MessageFault } from "./aws.ts";
import { attributesOf, batchAnswers, fifoIds, MAX_BATCH_ENTRIES, measureText, messageText } from "./aws_messages.ts";

/** 256 KB for a message and for a batch (SNS API reference, PublishBatch). */
const MAX_BYTES = 262_144;

export class AwsSnsUpstream extends AwsUpstream<SNSClient> {
  readonly kind = "awssns";

  constructor(config: AwsSnsConfig) {
    super(config, "Amazon SNS", "sns:GetTopicAttributes and sns:Publish");
  }

  protected override makeClient(options: ClientOptions): SNSClient {
    return new SNSClient(options);
  }

  protected override async openTarget(client: SNSClient, name: string, abortSignal: AbortSignal): Promise<AwsTarget> {
    await client.send(new GetTopicAttributesCommand({ TopicArn: name }), { abortSignal });
    return new Topic(client, name, this.contentType);
  }
}

class Topic implements AwsTarget {
  readonly maxEntries = MAX_BATCH_ENTRIES;
  readonly maxRequestBytes = MAX_BYTES;
  readonly #client: SNSClient;
  readonly #arn: string;
  readonly #fifo: boolean;
  readonly #contentType: string | undefined;

  constructor(client: SNSClient, arn: string, contentType: string | undefined) {
    this.#client = client;
    this.#arn = arn;
    this.#contentType = contentType;
    this.#fifo = arn.endsWith(".fifo");
  }

  measure(event: Event): number | string {
    return measureText(event, MAX_BYTES, this.#contentType);
  }

  async send(deliveries: readonly Delivery[], abortSignal: AbortSignal): Promise<(MessageFault | undefined)[]> {
    const entries = deliveries.map(({ event }, i): PublishBatchRequestEntry => ({
      Id: String(i),
      Message: messageText(event),
      MessageAttributes: attributesOf(event, this.#contentType),
      ...(this.#fifo ? fifoIds(event) : {}),
    }));
    const command = new PublishBatchCommand({ TopicArn: this.#arn, PublishBatchRequestEntries: entries });
    return batchAnswers(deliveries.length, await this.#client.send(command, { abortSignal }));
  }
}
