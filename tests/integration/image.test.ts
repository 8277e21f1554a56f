/** The container image: what is in it, and that it works as an unprivileged user on a read-only root. */

import assert from "node:assert/strict";
import { accessSync, constants, readFileSync } from "node:fs";
import process from "node:process";
import { test } from "node:test";
import { consumeAmqp } from "../support/consumers.ts";
import { Image, noImageBecause, programIn } from "../support/image.ts";
import { currentRuntime, programCommand, runProxy } from "../support/proxy.ts";
import { freePort } from "../support/servers.ts";
import { bridgeEnv, scenario, uniqueName } from "../support/scenario.ts";

const TITLE = "the image holds what it needs and no more, and forwards events without privileges on a read-only root";
const reason = currentRuntime() === "executable" ? noImageBecause() : "the image is made of the executable";

if (reason !== undefined) {
  test(`${TITLE} (skipped: ${reason})`, { skip: reason }, () => {});
} else {
  scenario(TITLE, async (scope) => {
    const [executable = ""] = programCommand("executable");
    const image = Image.build(scope, executable);

    const listed = [
      /^\/pg-event-proxy$/,
      /^\/lib(64)?\/(\w+-linux-gnu\/)?(libc|libm|libdl|libpthread|ld-linux-[\w-]+)\.so\.\d$/,
      /^\/etc\/nsswitch\.conf$/,
      /^\/etc\/ssl\/certs\/ca-certificates\.crt$/,
    ];
    const files = image.files();
    assert.deepEqual(files.filter((path) => !listed.some((pattern) => pattern.test(path))), []);
    assert.equal(files.length, 8, files.join(" "));
    process.stdout.write(`the image is ${(image.bytes / 1e6).toFixed(1)} MB\n`);
    assert.ok(image.bytes < 150e6);
    const { User, Entrypoint, StopSignal, Labels, Healthcheck } = image.config;
    assert.deepEqual({ User, Entrypoint, StopSignal }, {
      User: "65532:65532",
      Entrypoint: ["/pg-event-proxy"],
      StopSignal: "SIGTERM",
    });
    assert.deepEqual(Healthcheck?.Test, ["CMD", "/pg-event-proxy", "health"]);
    assert.equal(Labels?.["org.opencontainers.image.version"], "1.2.3");

    const database = await scope.database();
    const queue = await scope.queue();
    const { uri } = (await scope.servers).rabbitmq;
    await database.sql`create table items(id int primary key, name text)`;
    const slot = uniqueName("slot");
    const port = await freePort();
    scope.defer(() =>
      database.sql`select pg_drop_replication_slot(slot_name) from pg_replication_slots
      where slot_name = ${slot} and not active`
    );
    const proxy = image.start(scope, {
      ...bridgeEnv({
        uri: database.uri,
        slot,
        kind: "amqp",
        upstreamUri: uri,
        bindings: `events->queue:${queue}, wal2json->queue:${queue}`,
      }),
      "PGPROXY_HTTP-LISTEN": `127.0.0.1:${port}`,
    });
    await proxy.waitForReady();
    const health = await runProxy({ args: ["health"], env: { "PGPROXY_HTTP-LISTEN": String(port) } });
    assert.equal(health.code, 0, health.stderr);
    assert.match(health.stdout, /"live":true/);
    const pid = programIn(proxy);
    const status = readFileSync(`/proc/${pid}/status`, "utf8");
    assert.match(status, /^Uid:\t65532\t65532\t65532\t65532$/m);
    assert.match(status, /^Gid:\t65532\t65532\t65532\t65532$/m);
    assert.match(status, /^CapEff:\t0+$/m);
    assert.match(readFileSync(`/proc/${pid}/mounts`, "utf8"), /^\S+ \/ \S+ ro,/m);
    assert.throws(() => accessSync(`/proc/${pid}/root/etc`, constants.W_OK), "read-only, for root as well");

    const consumer = scope.keep(await consumeAmqp(uri, { queue }));
    await database.sql`insert into items values (1, 'first')`;
    await database.sql`select pg_notify('events', 'greeting|hello')`;
    const texts = (await consumer.waitFor((messages) => {
      return messages.some(({ text }) => text === "hello") && messages.some(({ text }) => text.includes('"first"'));
    })).map(({ text }) => text);
    assert.equal(texts.filter((text) => text === "hello").length, 1);

    process.kill(pid, "SIGTERM");
    await proxy.waitForLog(({ json }) => json?.message === "stopped");
    await proxy.exit;
  });
}
