/**
 * Only listens: what the `postgres` client takes by itself. A program of its own:
 *
 *   bun tests/bench/bare_listener.ts URI CHANNEL LAST
 *
 * Prints "ready", and the last message when it comes.
 */

import process from "node:process";
import postgres from "postgres";

const [uri = "", channel = "", last = ""] = process.argv.slice(2);
const sql = postgres(uri, { max: 1 });
let received = 0;
await sql.listen(channel, (payload) => {
  received++;
  if (payload.endsWith(last)) process.stdout.write(`${last} ${received}\n`);
});
process.stdout.write("ready\n");
