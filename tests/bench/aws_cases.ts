/** SQS and SNS: what is measured is mostly the emulator, which keeps each message in SQLite. */

import { AWS_ENV, countMessages, createQueue, createTopic, purgeQueue } from "../support/aws_servers.ts";
import { type Bench, untilIdle } from "./bench.ts";
import { assertArrived, type UpstreamCase } from "./upstream_cases.ts";

const NAMES = { awssqs: "bench-sqs", awssns: "bench-sns" } as const;

/** `kind`: `awssns` publishes to a topic with a queue behind it. */
export async function awsCase(bench: Bench, channel: string, kind: "awssqs" | "awssns"): Promise<UpstreamCase> {
  const { uri, pid } = await bench.broker("aws");
  const name = NAMES[kind];
  const target = kind === "awssqs" ? `queue:${name}` : `topic:${await createTopic(uri, name)}`;
  if (kind === "awssqs") await createQueue(uri, name);
  return {
    name: kind,
    label: kind === "awssqs" ? "SQS (emulator)" : "SNS (emulator)",
    config: { kind, uri, bridge_channels: `${channel}->${target}` },
    env: AWS_ENV,
    brokerPid: pid,
    prepare: async () => {
      await purgeQueue(uri, name);
      await untilIdle(pid);
    },
    finish: async (events) => {
      assertArrived("the queue", await countMessages(uri, name), events);
      await purgeQueue(uri, name);
    },
  };
}
