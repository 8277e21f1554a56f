/** What listening needs: a NOTIFY that arrives, names that SQL does not fold, and rights on the stored messages. */

import { randomUUID } from "node:crypto";
import { sleep } from "../core/backoff.ts";
import { openSqlSession, type SqlSession } from "../postgres/sql_session.ts";
import { inspect } from "../sources/outbox_table.ts";
import { EVENTS_VERSION } from "../sql/events.ts";
import type { Server } from "./database.ts";
import type { Findings } from "./finding.ts";

const ACTION = "listening for notifications";
const PATIENCE_MS = 5_000;

/** SQL folds what is not quoted to lower case (PostgreSQL documentation, "Identifiers and Key Words"). */
export function checkChannelNames(channels: readonly string[], findings: Findings): void {
  for (const channel of channels) {
    const folded = channel.replace(/[A-Z]/g, (letter) => letter.toLowerCase());
    const subject = `channel "${channel}"`;
    if (folded === channel) {
      findings.ok(subject, "the same with and without quotes");
    } else {
      findings.warn(
        subject,
        `NOTIFY ${channel} without quotes goes to "${folded}"`,
        `bind "${folded}" in bridge_channels, or send by pg_notify('${channel}', …) or NOTIFY "${channel}"`,
      );
    }
  }
}

/**
 * A real notification from one session to another. To its own session it would come back through a pooler in transaction
 * mode as well, as long as that gives it the same connection to the server.
 */
export async function checkNotify(server: Server, findings: Findings, signal: AbortSignal): Promise<void> {
  const channel = `pg_event_proxy_check_${randomUUID().replaceAll("-", "").slice(0, 16)}`;
  const arrival = Promise.withResolvers<boolean>();
  let session: SqlSession;
  try {
    const onNotify = (heard: string) => heard === channel && arrival.resolve(true);
    session = await openSqlSession(server.params, { action: ACTION, onNotify }, signal);
  } catch (error) {
    signal.throwIfAborted();
    return findings.failWith(
      "NOTIFY",
      error,
      "let the role have one more connection (max_connections, CONNECTION LIMIT)",
    );
  }
  const patience = new AbortController();
  try {
    await session.sql.unsafe(`LISTEN ${channel}`);
    const startedAtMs = performance.now();
    await server.session.query(`select pg_notify('${channel}', '')`);
    const arrived = await Promise.race([arrival.promise, sleep(PATIENCE_MS, patience.signal).then(() => false)]);
    if (arrived) {
      findings.ok("NOTIFY", `arrives (${Math.max(1, Math.round(performance.now() - startedAtMs))} ms)`);
    } else {
      findings.fail(
        "NOTIFY",
        `a notification did not arrive within ${PATIENCE_MS / 1000} s: a pooler in transaction mode swallows LISTEN`,
        "connect to PostgreSQL directly, or use a pool in session mode",
      );
    }
    // Behind a pooler the connection to the server lives on.
    await session.sql.unsafe(`UNLISTEN ${channel}`);
  } catch (error) {
    findings.failWith("NOTIFY", session.explain(error, ACTION), "connect to the primary");
  } finally {
    patience.abort();
    await session.close();
  }
}

/** The schema `events`: its version, and the rights to read and delete stored messages. */
export async function checkOutbox(server: Server, findings: Findings, signal: AbortSignal): Promise<void> {
  const subject = "schema events";
  let session: SqlSession;
  try {
    session = await openSqlSession(server.params, { action: "looking for durable messages" }, signal);
  } catch (error) {
    signal.throwIfAborted();
    return findings.failWith(subject, error, "set outbox=false if durable messages are not used");
  }
  try {
    const inspection = await inspect(session.sql);
    switch (inspection.kind) {
      case "absent":
        findings.ok(subject, `not in use (${inspection.reason}); pg-event-proxy sql --install brings durable messages`);
        break;
      case "forbidden":
        findings.fail(
          subject,
          `this role may not read and delete in events.events, which belongs to "${inspection.owner}"`,
          `run as "${inspection.owner}": ${inspection.remedy}; or set outbox=false`,
        );
        break;
      case "present":
        await checkVersion(session, inspection.layout.current, findings);
    }
  } catch (error) {
    findings.failWith(subject, session.explain(error, "looking for durable messages"), "set outbox=false");
  } finally {
    await session.close();
  }
}

async function checkVersion({ sql }: SqlSession, isCurrent: boolean, findings: Findings): Promise<void> {
  const subject = "schema events";
  const [found] = await sql<{ exists: boolean }[]>`select to_regprocedure('events.version()') is not null as exists`;
  const [row] = found?.exists
    ? await sql<{ version: number }[]>`select events.version()::int as version`
    : [{ version: 0 }];
  const version = row?.version ?? 0;
  if (version > EVENTS_VERSION) {
    findings.warn(
      subject,
      `version ${version}, newer than this program's ${EVENTS_VERSION}`,
      "use a newer pg-event-proxy",
    );
  } else if (version < EVENTS_VERSION || !isCurrent) {
    findings.warn(
      subject,
      `${version === 0 ? "the older helper's" : `version ${version}`}; this program brings version ${EVENTS_VERSION}`,
      "upgrade it, which keeps the stored messages: pg-event-proxy sql --install",
    );
  } else findings.ok(subject, `version ${version}, this role may read and delete messages`);
}
