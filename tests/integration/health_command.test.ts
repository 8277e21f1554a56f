/** `pg-event-proxy health` against a server of HTTP. */

import assert from "node:assert/strict";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { runProxy } from "../support/proxy.ts";
import { freePort } from "../support/servers.ts";
import { scenario, type Scope } from "../support/scenario.ts";

/** Answers every request with that status; the URL. */
async function answering(scope: Scope, status: number, body: string): Promise<string> {
  const server = createServer((_request, response) => {
    response.writeHead(status, { location: "/elsewhere" });
    response.end(body);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  scope.defer(() => server.close());
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}/health/live`;
}

scenario("health ends with 0 where the instance says that it lives, and prints its answer", async (scope) => {
  const url = await answering(scope, 200, '{"live":true}\n');
  const { code, stdout, stderr } = await runProxy({ args: ["health", url] });
  assert.deepEqual({ code, stdout, stderr }, { code: 0, stdout: '{"live":true}\n', stderr: "" });
});

scenario("health ends with 1 and the reason where it does not, or nobody answers", async (scope) => {
  for (const status of [302, 404, 503]) {
    const url = await answering(scope, status, "amqp is away\n");
    const { code, stdout, stderr } = await runProxy({ args: ["health", url] });
    assert.equal(code, 1, stderr);
    assert.equal(stdout, "");
    assert.match(stderr, /^pg-event-proxy: [^\n]+\n$/);
    if (status === 503) assert.match(stderr, /answered 503: amqp is away/);
  }
  const nobody = await runProxy({ args: ["health", `http://127.0.0.1:${await freePort()}/health/live`] });
  assert.equal(nobody.code, 1);
  assert.match(nobody.stderr, /^pg-event-proxy: asking http:\S+ failed: [^\n]*listen[^\n]*\n$/);
});

scenario("health wants a URL", async () => {
  const { code, stderr } = await runProxy({ args: ["health", "localhost:8080"] });
  assert.equal(code, 2);
  assert.match(stderr, /^pg-event-proxy: "localhost:8080" is no URL [^\n]*\n$/);
});
