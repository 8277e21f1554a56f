/** The emulator of SQS and SNS, the stand-in for Lambda, and consumers of both. */

import { closeSync, existsSync, openSync, readSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { setTimeout as delay } from "node:timers/promises";
import { CreateTopicCommand, SNSClient, SubscribeCommand } from "@aws-sdk/client-sns";
import {
  CreateQueueCommand,
  DeleteMessageBatchCommand,
  GetQueueAttributesCommand,
  type Message as SqsMessageData,
  PurgeQueueCommand,
  ReceiveMessageCommand,
  SQSClient,
} from "@aws-sdk/client-sqs";
import { type Consumer, type Message, recorded, Recorder } from "./consumers.ts";
import { denoCommand, ROOT_DIR, runtimeEnvironment } from "./proxy.ts";
import { freePort, type Server, ServerProcess, Workspace } from "./server_process.ts";

/** What programs find in their environment, and this process too: see `useAwsCredentials`. */
export const AWS_ENV = {
  AWS_ACCESS_KEY_ID: "AKIDTEST",
  AWS_SECRET_ACCESS_KEY: "a-test-s3cret-key",
  AWS_EC2_METADATA_DISABLED: "true",
} as const;

export function useAwsCredentials(): void {
  Object.assign(process.env, AWS_ENV);
}

/** Of the emulator, by default. */
export const REGION = "us-east-1";
const ACCOUNT = "000000000000";

/** fauxqs: queues, topics and messages stay through `kill`. */
export function startAwsEmulator(): Promise<Server> {
  return startAwsServer("fauxqs", "fauxqs_main.ts", (dir) => [join(dir, "data")]);
}

/** `secret`: what requests have to be signed with. */
export function startLambda(secret: string = AWS_ENV.AWS_SECRET_ACCESS_KEY): Promise<LambdaServer> {
  return startAwsServer("lambda", "lambda_stand_in_main.ts", (dir) => [join(dir, "invocations"), secret]);
}

export interface LambdaServer extends Server {
  readonly dir: string;
}

async function startAwsServer(
  name: string,
  script: string,
  args: (dir: string) => readonly string[],
): Promise<LambdaServer> {
  const port = await freePort();
  const workspace = new Workspace(name);
  try {
    const [file = "", ...command] = denoCommand(join(ROOT_DIR, "tests/support", script));
    const server = new ServerProcess({
      name,
      port,
      uri: `aws://127.0.0.1:${port}`,
      workspace,
      commands: [{
        file,
        args: [...command, String(port), ...args(workspace.dir)],
        env: { ...runtimeEnvironment("deno"), ...AWS_ENV },
      }],
      shutdownSignal: "SIGTERM",
      answers: async () => {
        const response = await fetch(`http://127.0.0.1:${port}/health`, { signal: AbortSignal.timeout(1_000) });
        await response.body?.cancel();
      },
    });
    await server.start();
    return Object.assign(server, { dir: workspace.dir });
  } catch (error) {
    await workspace.remove();
    throw error;
  }
}

function clientOptions(uri: string) {
  return {
    region: REGION,
    endpoint: uri.replace("aws://", "http://"),
    credentials: { accessKeyId: "consumer", secretAccessKey: "consumer" },
  };
}

/** Names that end in `.fifo` make FIFO queues. */
export async function createQueue(uri: string, name: string): Promise<void> {
  const client = new SQSClient(clientOptions(uri));
  const Attributes = { VisibilityTimeout: "300", ...(name.endsWith(".fifo") ? { FifoQueue: "true" } : {}) };
  await client.send(new CreateQueueCommand({ QueueName: name, Attributes }));
  client.destroy();
}

/** How many messages wait in the queue. */
export async function countMessages(uri: string, name: string): Promise<number> {
  const client = new SQSClient(clientOptions(uri));
  const { Attributes } = await client.send(
    new GetQueueAttributesCommand({ QueueUrl: queueUrl(uri, name), AttributeNames: ["ApproximateNumberOfMessages"] }),
  );
  client.destroy();
  return Number(Attributes?.ApproximateNumberOfMessages);
}

/** Makes the queue empty. */
export async function purgeQueue(uri: string, name: string): Promise<void> {
  const client = new SQSClient(clientOptions(uri));
  await client.send(new PurgeQueueCommand({ QueueUrl: queueUrl(uri, name) }));
  client.destroy();
}

function queueUrl(uri: string, name: string): string {
  return `${uri.replace("aws://", "http://")}/${ACCOUNT}/${name}`;
}

/** A topic and a queue of the same name that gets its messages as they were published. Returns the topic's ARN. */
export async function createTopic(uri: string, name: string): Promise<string> {
  await createQueue(uri, name);
  const client = new SNSClient(clientOptions(uri));
  const { TopicArn = "" } = await client.send(
    new CreateTopicCommand({ Name: name, ...(name.endsWith(".fifo") ? { Attributes: { FifoTopic: "true" } } : {}) }),
  );
  await client.send(
    new SubscribeCommand({
      TopicArn,
      Protocol: "sqs",
      Endpoint: `arn:aws:sqs:${REGION}:${ACCOUNT}:${name}`,
      Attributes: { RawMessageDelivery: "true" },
    }),
  );
  client.destroy();
  return TopicArn;
}

export function topicArn(name: string): string {
  return `arn:aws:sns:${REGION}:${ACCOUNT}:${name}`;
}

export interface SqsMessage extends Message {
  readonly attributes: Readonly<Record<string, string>>;
  readonly groupId: string | undefined;
  readonly deduplicationId: string | undefined;
}

/** Takes the messages out of a queue; the key is the attribute `routing_key`. Carries on when the emulator is back. */
export function consumeSqs(
  uri: string,
  queue: string,
  onMessage: (message: SqsMessage) => void = () => {},
): Promise<Consumer<SqsMessage>> {
  const recorder = new Recorder<SqsMessage>(`SQS ${queue}`, onMessage);
  const client = new SQSClient({ ...clientOptions(uri), maxAttempts: 1 });
  const url = queueUrl(uri, queue);
  const closing = new AbortController();
  const running = (async () => {
    while (!closing.signal.aborted) {
      try {
        await receive(client, url, recorder, closing.signal);
      } catch {
        if (!closing.signal.aborted) await delay(50);
      }
    }
  })();
  return Promise.resolve(recorder.consumer(async () => {
    closing.abort();
    await running;
    client.destroy();
  }));
}

async function receive(
  client: SQSClient,
  QueueUrl: string,
  recorder: Recorder<SqsMessage>,
  abortSignal: AbortSignal,
): Promise<void> {
  const { Messages = [] } = await client.send(
    new ReceiveMessageCommand({
      QueueUrl,
      MaxNumberOfMessages: 10,
      WaitTimeSeconds: 5,
      MessageAttributeNames: ["All"],
      MessageSystemAttributeNames: ["All"],
    }),
    { abortSignal },
  );
  if (Messages.length === 0) return;
  // Recorded before they are deleted: what cannot be deleted comes again, which the judge of a trial allows.
  for (const message of Messages) recorder.add(sqsMessage(message));
  const Entries = Messages.map(({ ReceiptHandle }, i) => ({ Id: String(i), ReceiptHandle }));
  await client.send(new DeleteMessageBatchCommand({ QueueUrl, Entries }));
}

function sqsMessage({ Body = "", Attributes, MessageAttributes = {} }: SqsMessageData): SqsMessage {
  const attributes = Object.fromEntries(
    Object.entries(MessageAttributes).map(([name, { StringValue = "" }]) => [name, StringValue]),
  );
  return {
    ...recorded(attributes["routing_key"] ?? "", Buffer.from(Body)),
    text: Body,
    attributes,
    groupId: Attributes?.MessageGroupId,
    deduplicationId: Attributes?.MessageDeduplicationId,
  };
}

export interface Invocation extends Message {
  readonly id: string;
  /** The function's input. */
  readonly input: string;
  readonly name: string;
  readonly invocationType: string;
}

/** What the stand-in was invoked with from now on, or from the beginning. */
export function consumeLambda(
  server: LambdaServer,
  { fromStart = false, onMessage }: { fromStart?: boolean; onMessage?: (message: Invocation) => void } = {},
): Promise<Consumer<Invocation>> {
  const recorder = new Recorder<Invocation>("Lambda", onMessage);
  const file = join(server.dir, "invocations");
  const reader = new LineReader(file);
  if (!fromStart) reader.lines();
  const timer = setInterval(() => {
    for (const line of reader.lines()) recorder.add(invocation(line));
  }, 10);
  return Promise.resolve(recorder.consumer(async () => clearInterval(timer)));
}

/** The complete lines that were appended to a file since the last call. */
class LineReader {
  readonly #file: string;
  #offset = 0;
  #rest = Buffer.alloc(0);

  constructor(file: string) {
    this.#file = file;
  }

  lines(): string[] {
    if (!existsSync(this.#file)) return [];
    const fd = openSync(this.#file, "r");
    try {
      const buffer = Buffer.alloc(1024 * 1024);
      for (let read = 1; read > 0;) {
        read = readSync(fd, buffer, 0, buffer.length, this.#offset);
        this.#offset += read;
        this.#rest = Buffer.concat([this.#rest, buffer.subarray(0, read)]);
      }
    } finally {
      closeSync(fd);
    }
    const end = this.#rest.lastIndexOf("\n") + 1;
    const text = this.#rest.subarray(0, end).toString();
    this.#rest = this.#rest.subarray(end);
    return text.split("\n").slice(0, -1);
  }
}

function invocation(line: string): Invocation {
  const { name, type, text }: { name: string; type: string; text: string } = JSON.parse(line);
  const input: { id: string; routing_key: string; payload: unknown; type: string } = JSON.parse(text);
  // JSON is to arrive byte for byte, hence it is not taken from the parsed input.
  const start = text.indexOf('"payload":') + '"payload":'.length;
  const payload = typeof input.payload === "string" && input.type === "notify" ? input.payload : text.slice(start, -1);
  return {
    ...recorded(input.routing_key, Buffer.from(payload)),
    id: input.id,
    input: text,
    name,
    invocationType: type,
  };
}
