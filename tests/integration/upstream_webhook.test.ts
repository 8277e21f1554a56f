import type { TlsConfig, WebhookConfig } from "../../src/config/config.ts";
import { COMMON_CONFIG, NO_TLS, upstreamContract } from "../support/upstream_contract.ts";
import { consumeWebhook, startWebhookReceiver, type WebhookReceiver } from "../support/webhook_receiver.ts";

const PATH = "/contract";

function config(more: Partial<WebhookConfig> = {}): WebhookConfig {
  return {
    ...COMMON_CONFIG,
    kind: "webhook",
    secrets: [],
    token: undefined,
    extraHeaders: {},
    batch: 1,
    concurrency: 1,
    requestTimeoutMs: 30_000,
    allowPrivateAddresses: true,
    tls: NO_TLS,
    ...more,
  };
}

function urlAt(uri: string, path = PATH) {
  return { type: "url", name: uri + path };
}

const receivers = new Map<string, WebhookReceiver>();
async function startServer(options: Parameters<typeof startWebhookReceiver>[0] = {}): Promise<WebhookReceiver> {
  const receiver = await startWebhookReceiver(options);
  receivers.set(receiver.uri, receiver);
  return receiver;
}

upstreamContract({
  title: "webhook",
  target: urlAt("https://unused.example"),
  targetAt: (uri) => urlAt(uri),
  startServer,
  config: (_uri: string, tls: TlsConfig = NO_TLS) => config({ tls }),
  consume: async (uri) => consumeWebhook(receivers.get(uri)!),
  keyOf: ({ routingKey }) => routingKey,
  clientCertificateConfig: ["requestCert"],
  hangsUpOnStrangers: true,
  refusedLogin: async () => {
    const receiver = await startWebhookReceiver();
    await receiver.behave({ authorization: "Bearer the-right-one" });
    return {
      config: config({ token: "a-wr0ng-s3cret" }),
      target: urlAt(receiver.uri),
      secret: "a-wr0ng-s3cret",
      close: () => receiver.stop(),
    };
  },
});
