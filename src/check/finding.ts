/** What `check` found: one line each. */

import { errorText, PermanentError } from "../core/errors.ts";

/**
 * *ok*; *unchecked*: nothing speaks against it, and there is no way to ask without publishing; *warning*: the run works, and
 * something will be missed or go wrong later; *failure*: the run ends, or stands still, over it.
 */
export type Mark = "ok" | "unchecked" | "warning" | "failure";

export interface Finding {
  /** What was looked at: `wal_level`, `exchange "amq.topic"`. */
  readonly subject: string;
  readonly mark: Mark;
  /** What was seen, without a secret. */
  readonly seen: string;
  /** What to do about it: a statement to run, a setting to change. */
  readonly remedy?: string;
}

/** The findings on one server. */
export interface Section {
  /** The bridge, and for an upstream its name: `local`, `database, upstream mails`. */
  readonly part: string;
  /** Which server: `PostgreSQL at db:5432, database "app", role "proxy"`. */
  readonly server: string;
  readonly findings: readonly Finding[];
}

export class Findings {
  readonly list: Finding[] = [];

  ok(subject: string, seen: string): void {
    this.list.push({ subject, mark: "ok", seen });
  }

  unchecked(subject: string, seen: string, remedy?: string): void {
    this.#add(subject, "unchecked", seen, remedy);
  }

  warn(subject: string, seen: string, remedy: string): void {
    this.#add(subject, "warning", seen, remedy);
  }

  fail(subject: string, seen: string, remedy: string): void {
    this.#add(subject, "failure", seen, remedy);
  }

  /**
   * A failure told by an error of the run, whose text is `what was seen; remedy`, or `what was seen: remedy` where no retry
   * helps. `remedy`: for one that names none.
   */
  failWith(subject: string, error: unknown, remedy: string): void {
    const text = errorText(error);
    const separators = [text.indexOf("; "), error instanceof PermanentError ? text.lastIndexOf(": ") : -1];
    const end = separators.find((offset) => offset >= 0);
    if (end === undefined) this.fail(subject, text, remedy);
    else this.fail(subject, text.slice(0, end), text.slice(end + 2));
  }

  #add(subject: string, mark: Mark, seen: string, remedy: string | undefined): void {
    this.list.push(remedy === undefined ? { subject, mark, seen } : { subject, mark, seen, remedy });
  }
}
