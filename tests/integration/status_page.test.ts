/** The status page in a real browser. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { Browser, browserMissing } from "../support/browser.ts";
import { httpBase, LISTEN_ENV } from "../support/http.ts";
import { bridgeEnv, scenario, uniqueName } from "../support/scenario.ts";
import { startRedis } from "../support/servers.ts";
import process from "node:process";

const missing = browserMissing();
if (missing !== undefined) test("the status page in a browser", { skip: missing }, () => {});
else {
  scenario("the status page shows a broker going down and coming back", async (scope) => {
    const database = await scope.database();
    const redis = scope.keep(await startRedis());
    const slot = uniqueName("slot");
    const proxy = await scope.readyProxy({
      env: {
        ...bridgeEnv({
          uri: database.uri,
          slot,
          kind: "redis",
          upstreamUri: redis.uri,
          bindings: "events->topic:t, wal2json->topic:t",
        }),
        ...LISTEN_ENV,
        "PGPROXY_HTTP-TOKEN": "s3cret",
      },
    });
    scope.defer(() => database.sql`select pg_drop_replication_slot(${slot})`);
    scope.defer(() => proxy.stop());
    const base = await httpBase(proxy);
    const browser = scope.keep(await Browser.start());
    await browser.setView(1200, 900, "light");
    // As if the user had typed the token as the password.
    await browser.goTo(`${base.replace("//", "//anybody:s3cret@")}/`);
    const overall = (text: string) => `document.getElementById("overall")?.textContent === ${JSON.stringify(text)}`;
    const upstream = `document.querySelector(".side.right .node")`;
    await browser.waitFor(overall("ready"));
    await browser.waitFor(`${upstream}.dataset.state === "open"`);
    assert.deepEqual(
      await browser.evaluate(`[...document.querySelectorAll(".side.left h3")].map((e) => e.textContent)`),
      ["notify", "outbox", `wal ${slot}`],
    );

    await database.sql`create table t (id int)`;
    await database.sql`insert into t select generate_series(1, 500)`;
    const delivered = (pattern: string) =>
      `/^${pattern} delivered$/.test(${upstream}.querySelector(".quiet").textContent)`;
    await browser.waitFor(delivered("50[2-9]"));
    await database.sql`notify events, 'a key|a secret text'`;
    await browser.waitFor(`/channel events/.test(document.querySelector("#last .quiet").textContent)`);
    await browser.waitFor(`document.querySelectorAll(".plot .curve").length === 4`);
    const text = await browser.evaluate<string>("document.body.textContent");
    assert.ok(!text.includes("a secret text") && !text.includes("a key"), "contents are not shown unless asked for");

    await redis.kill();
    await browser.waitFor(overall("not ready"));
    await browser.waitFor(`${upstream}.dataset.state === "connecting"`);
    await browser.waitFor(`document.querySelector("#errors .wait, #errors .bad")`);
    const reasons = `document.getElementById("reasons").textContent`;
    assert.match(await browser.evaluate<string>(reasons), /redis upstream "local" is connecting/);
    await redis.start();
    await browser.waitFor(overall("ready"));
    await browser.waitFor(`${upstream}.dataset.state === "open"`);
    assert.match(await browser.evaluate<string>(`document.getElementById("errors").textContent`), /is not available/);

    // On a phone nothing is wider than the screen.
    await browser.setView(390, 800, "dark");
    await browser.waitFor("document.documentElement.scrollWidth <= innerWidth && innerWidth === 390");
    assert.deepEqual(browser.complaints, []);
    assert.deepEqual(
      browser.requestedUrls.filter((url) => !url.startsWith("data:") && new URL(url).origin !== base),
      [],
    );
    const folder = process.env.PGPROXY_TEST_SCREENSHOTS;
    await browser.screenshot(folder === undefined ? undefined : `${folder}/phone_dark.png`);
    await browser.setView(1200, 900, "light");
    await browser.screenshot(folder === undefined ? undefined : `${folder}/desk_light.png`);
  });
}
