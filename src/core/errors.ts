/**
 * An error whose message is meant for the operator: one line, no secret, saying what was tried, what was seen and what
 * to do about it.
 */
export class OperatorError extends Error {
  override name = "OperatorError";
}

/** Faulty configuration. Ends the program with exit code 2. `problems` holds one line per fault, all of them at once. */
export class ConfigError extends OperatorError {
  override name = "ConfigError";
  readonly problems: readonly string[];
  constructor(problems: readonly string[]) {
    super(problems.join("\n"));
    this.problems = problems;
  }
}

/**
 * A condition that no retry mends: a refused password, a missing exchange, a missing privilege. At the first start it
 * ends the program with exit code 1; after a good start it is retried like any other, loudly.
 */
export class PermanentError extends OperatorError {
  override name = "PermanentError";
}

/** A condition that passes: connection refused, reset, timed out, server starting up, slot held by another process. */
export class TransientError extends OperatorError {
  override name = "TransientError";
}

/** Another instance does the work: this one waits, ready to take over. */
export class StandingByError extends TransientError {
  override name = "StandingByError";
}

/**
 * The upstream ended the session over something that was sent: one of the unanswered deliveries is at fault, the session
 * cannot tell which. The lane sends them again one at a time to find out.
 */
export class ChannelRejectedError extends OperatorError {
  override name = "ChannelRejectedError";
}

/**
 * The upstream ended the session without a word while deliveries were unanswered, in a protocol where that may be its way
 * to refuse one of them: MQTT 3.1.1 knows no other. Unlike a timeout, after which the upstream may never have seen them.
 */
export class SilentEndError extends TransientError {
  override name = "SilentEndError";
}

/** The text of anything thrown, in one line. */
export function errorText(error: unknown): string {
  if (error instanceof AggregateError && error.errors.length > 0) {
    return [...new Set(error.errors.map(errorText))].join("; ");
  }
  const text = error instanceof Error ? error.message || codeOf(error) || error.name : String(error);
  return text.replace(/\s*\n\s*/g, " ").trim();
}

function codeOf(error: Error): string | undefined {
  const code = (error as { code?: unknown }).code;
  return typeof code === "string" ? code : undefined;
}
