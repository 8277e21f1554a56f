/** What scripts/generate_events.sh runs. */

import process from "node:process";
import { setTimeout as delay } from "node:timers/promises";
import { parseArgs } from "node:util";
import postgres from "postgres";

const COMPOSE_URI = "postgresql://postgres:postgres@127.0.0.1:5432/app";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { count: { type: "string", default: "Infinity" }, every: { type: "string", default: "1000" } },
});
const [uri = COMPOSE_URI] = positionals;
const rounds = Number(values.count);
const everyMs = Number(values.every);
if (positionals.length > 1 || !(rounds > 0) || !(everyMs >= 0)) {
  fail("wanted: scripts/generate_events.sh [postgresql://…] [--count ROUNDS] [--every MILLISECONDS]", 2);
}
process.on("SIGINT", () => process.exit(130));

const sql = postgres(uri, { max: 1, onnotice: () => {} });
try {
  await sql`create table if not exists
    items (id bigint generated always as identity primary key, name text not null, price numeric)`;
  const [schema] = await sql`select to_regnamespace('events') is not null as there`;
  const statements = schema?.there === true ? [...statementsOfRound(), storedMessage] : statementsOfRound();
  for (let round = 1; round <= rounds; round++) {
    for (const statement of statements) {
      const text = statement(round);
      process.stdout.write(`${text}\n`);
      await sql.unsafe(text);
    }
    if (round < rounds) await delay(everyMs);
  }
} catch (error) {
  fail(`${error instanceof Error ? error.message : error}; is the database up, and its URI right?`, 1);
} finally {
  await sql.end({ timeout: 1 });
}

function statementsOfRound() {
  return [
    (n: number) => `NOTIFY events, 'greeting|Hello number ${n}'`,
    (n: number) => `INSERT INTO items (name, price) VALUES ('item ${n}', ${n}.50)`,
    (n: number) => `UPDATE items SET price = price + 1 WHERE name = 'item ${n}'`,
    (n: number) => `DELETE FROM items WHERE name = 'item ${n - 5}'`,
  ];
}

function storedMessage(n: number) {
  return `SELECT events.send_message('events', 'Kept until delivered, number ${n}', 'stored', true)`;
}

function fail(text: string, code: number): never {
  process.stderr.write(`generate_events.sh: ${text}\n`);
  process.exit(code);
}
