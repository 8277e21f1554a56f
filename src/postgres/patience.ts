/** How long an answer of the server is waited for. */

import type { ServerConnection } from "./connection.ts";

/** Where the protocol has no keepalives, in milliseconds. */
export const ANSWER_PATIENCE_MS = 15_000;

/** Closes the connection, which ends what waits for it, when the answer is late or `signal` aborts. */
export async function answerInTime<T>(
  connection: ServerConnection,
  answer: Promise<T>,
  signal?: AbortSignal,
  patienceMs: number = ANSWER_PATIENCE_MS,
): Promise<T> {
  const onAbort = () => connection.destroy("stopped");
  const timer = patienceMs === Infinity
    ? undefined
    : setTimeout(() => connection.destroy(`no answer within ${patienceMs / 1000} s`), patienceMs);
  signal?.addEventListener("abort", onAbort);
  if (signal?.aborted) onAbort();
  try {
    return await answer;
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", onAbort);
  }
}
