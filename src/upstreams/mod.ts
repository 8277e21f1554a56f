/** The kinds of upstreams. A kind's library is loaded only if that kind is configured. */

import type { UpstreamConfig } from "../config/config.ts";
import type { Upstream } from "../core/upstream.ts";

/** Makes the upstream; connects to nothing yet. Throws PermanentError for a URI that cannot be used. */
export async function createUpstream(config: UpstreamConfig): Promise<Upstream> {
  switch (config.kind) {
    case "amqp":
      return new (await import("./amqp.ts")).AmqpUpstream(config);
    case "mqtt":
      return new (await import("./mqtt.ts")).MqttUpstream(config);
    case "redis":
      return new (await import("./redis.ts")).RedisUpstream(config);
    case "awssns":
      return new (await import("./awssns.ts")).AwsSnsUpstream(config);
    case "awssqs":
      return new (await import("./awssqs.ts")).AwsSqsUpstream(config);
    case "awslambda":
      return new (await import("./awslambda.ts")).AwsLambdaUpstream(config);
    case "stdout":
      return new (await import("./stdout.ts")).StdoutUpstream(config);
    case "webhook":
      return new (await import("./webhook.ts")).WebhookUpstream(config);
  }
}
