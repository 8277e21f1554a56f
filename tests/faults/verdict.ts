/** What was delivered, judged against what was committed. Knows nothing of the program, of brokers, or of time. */

/** One event as it should arrive, in commit order. */
export interface ExpectedEvent {
  /** Made from what PostgreSQL says of it, by the rule that the manual gives. */
  readonly id: string;
  /** The message, or a digest of it. */
  readonly text: string;
  /** For the reader of a failure. */
  readonly label: string;
}

export interface Arrival {
  /** Undefined where the protocol has no place for it. */
  readonly id: string | undefined;
  readonly text: string;
}

export interface Verdict {
  readonly expected: number;
  /** Expected events that arrived at least once. */
  readonly delivered: number;
  /** Arrivals beyond the first of an event. */
  readonly repeats: number;
  /** Expected, never arrived, and not excused: labels. */
  readonly missing: readonly string[];
  /** Missing, but the broker had acknowledged them: it has lost them, not the program. */
  readonly lostByBroker: number;
  /** First deliveries that came after that of a later event. */
  readonly reordered: readonly string[];
  /** The same event with another id, or the same id with another message. */
  readonly conflicting: readonly string[];
  /** Arrived, and was never committed. */
  readonly foreign: readonly string[];
}

export interface JudgeOptions {
  /** Whether an event may be missing, because the broker acknowledged it. */
  readonly excused?: (event: ExpectedEvent) => boolean;
}

/** Arrivals without an id are told apart by their text, which then has to be unique among `expected`. */
export function judge(
  expected: readonly ExpectedEvent[],
  arrivals: readonly Arrival[],
  { excused = () => false }: JudgeOptions = {},
): Verdict {
  const byId = new Map(expected.map(({ id }, index) => [id, index]));
  const byText = new Map(expected.map(({ text }, index) => [text, index]));
  if (byId.size < expected.length) throw new Error("two expected events have the same id");
  const seen = new Uint8Array(expected.length);
  const reordered: string[] = [];
  const conflicting: string[] = [];
  const foreign: string[] = [];
  let repeats = 0;
  let newest = -1;
  for (const { id, text } of arrivals) {
    const index = id === undefined ? byText.get(text) : byId.get(id);
    if (index === undefined) {
      const other = byText.get(text);
      if (other === undefined || id === undefined) foreign.push(`${id ?? ""} ${text}`);
      else conflicting.push(`${expected[other]!.label} with id ${id} instead of ${expected[other]!.id}`);
      continue;
    }
    const event = expected[index]!;
    if (event.text !== text) {
      conflicting.push(`id ${event.id} with another message than ${event.label}`);
      continue;
    }
    if (seen[index]! > 0) {
      repeats++;
      continue;
    }
    seen[index] = 1;
    if (index < newest) reordered.push(`${event.label} after ${expected[newest]!.label}`);
    else newest = index;
  }
  const absent = expected.filter((_, index) => seen[index] === 0);
  const missing = absent.filter((event) => !excused(event));
  return {
    expected: expected.length,
    delivered: expected.length - absent.length,
    repeats,
    missing: missing.map(({ label }) => label),
    lostByBroker: absent.length - missing.length,
    reordered,
    conflicting,
    foreign,
  };
}

/** Empty if the promise was kept; else what was broken, one line for each kind of fault. */
export function complaints(name: string, verdict: Verdict): string[] {
  const kinds = ["missing", "reordered", "conflicting", "foreign"] as const;
  return kinds.filter((kind) => verdict[kind].length > 0).map((kind) => {
    const some = verdict[kind].slice(0, 5).map((label) => `\n    ${label}`).join("");
    return `${name}: ${verdict[kind].length} of ${verdict.expected} events ${kind}:${some}`;
  });
}

export function summary(name: string, { expected, delivered, repeats, lostByBroker }: Verdict): string {
  const lost = lostByBroker === 0 ? "" : `, ${lostByBroker} acknowledged and then lost by the broker itself`;
  return `${name}: ${expected} events, ${delivered} received, ${repeats} repeats${lost}`;
}
