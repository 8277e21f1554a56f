/** How the replication socket is read. */

import assert from "node:assert/strict";
import { uriEnvironment } from "../../src/runtime.ts";
import { PauseReason } from "../../src/postgres/connection.ts";
import { parseConnectionUri } from "../../src/postgres/connection_uri.ts";
import { ReplicationSession } from "../../src/postgres/replication.ts";
import { scenario, uniqueName } from "../support/scenario.ts";
import { until } from "../support/wait.ts";

const COMMITS = 300;

scenario("a paused replication socket leaves what arrives to the kernel, and queues nothing itself", async (scope) => {
  const database = await scope.database();
  const { sql } = database;
  await sql.unsafe("create table items(id int primary key, note text)");
  const session = await ReplicationSession.open(
    parseConnectionUri(database.uri, uriEnvironment()),
    AbortSignal.timeout(20_000),
  );
  scope.defer(() => session.connection.destroy());
  const { connection } = session;
  const slot = uniqueName("slot");
  await session.createTemporarySlot(slot);
  let rows = 0;
  await session.start(slot, [["format-version", "2"]], (buffer, start, end) => {
    if (buffer.toString("latin1", start, end).includes('"action":"I"')) rows++;
  });
  await sql`insert into items values (0, 'first')`;
  await until(() => rows === 1, { what: "the first row" });
  connection.pause(PauseReason.Congestion);
  for (let id = 1; id <= COMMITS; id++) await sql`insert into items values (${id}, repeat('x', 500))`;
  const [{ end }] = await sql`select pg_current_wal_lsn()::text as end` as unknown as [{ end: string }];
  await until(async () => {
    const [row] = await sql`select sent_lsn >= ${end}::pg_lsn as sent from pg_stat_replication
      join pg_replication_slots on active_pid = pid where slot_name = ${slot}`;
    return row?.sent === true;
  }, { what: "the walsender to send everything" });
  // One read may have been under way. What the socket queues, every later event waits behind, one read at a time.
  assert.ok(connection.unreadBytes < 20_000, `${connection.unreadBytes} bytes are queued`);
  assert.equal(rows, 1);
  connection.resume(PauseReason.Congestion);
  await until(() => rows === 1 + COMMITS, { what: () => `all rows; there are ${rows}` });
});
