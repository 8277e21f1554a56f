/** The known name that a misspelt one most likely means. */

/** Levenshtein distance over UTF-16 units. */
export function editDistance(a: string, b: string): number {
  let previous = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const current = [i];
    for (let j = 1; j <= b.length; j++) {
      const substitution = previous[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1);
      current.push(Math.min(substitution, previous[j]! + 1, current[j - 1]! + 1));
    }
    previous = current;
  }
  return previous[b.length]!;
}

/** Undefined where nothing is close: a third of the letters may differ, two in short names; `warn` means `warning`. */
export function nearest(name: string, known: readonly string[]): string | undefined {
  let best: string | undefined;
  let bestDistance = Math.max(2, Math.floor(name.length / 3)) + 1;
  for (const candidate of known) {
    // The distance is at least the difference of the lengths: hostile long names cost nothing.
    if (Math.abs(candidate.length - name.length) >= bestDistance) continue;
    const distance = editDistance(name, candidate);
    if (distance < bestDistance && distance < candidate.length) {
      best = candidate;
      bestDistance = distance;
    }
  }
  if (best !== undefined || name.length < 3) return best;
  return known.find((candidate) => candidate.startsWith(name));
}

/** `; did you mean NAME?`, or nothing. */
export function didYouMean(name: string, known: readonly string[], show: (candidate: string) => string = (c) => c) {
  const found = nearest(name.toLowerCase(), known);
  return found === undefined ? "" : `; did you mean ${show(found)}?`;
}
