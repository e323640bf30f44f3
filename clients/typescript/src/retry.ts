/** When to try a call again: a decision that touches neither clock nor network. */
import { type HeadraceError, Overloaded, Unavailable } from "./errors.js";

/**
 * How often and how patiently a call is tried.
 *
 * Retried are `Unavailable`, and `Overloaded` when the server said when to come back. The call's
 * deadline covers all attempts and the waits between them.
 */
export interface RetryPolicy {
  /** Counts the first attempt: 1 never retries. */
  readonly maxAttempts: number;
  /** Milliseconds before the second attempt; then `multiplier` times more with each. */
  readonly initialBackoffMs: number;
  readonly maxBackoffMs: number;
  readonly multiplier: number;
  /** Waits are spread by this fraction to both sides, so that clients which failed together do not
   * come back together. A server's own delay is never undercut, only stretched. */
  readonly jitter: number;
}

export const DEFAULT_RETRY: RetryPolicy = {
  maxAttempts: 4,
  initialBackoffMs: 50,
  maxBackoffMs: 2000,
  multiplier: 2,
  jitter: 0.2,
};

/** `given` over the defaults. Throws RangeError naming the field that makes no sense. */
export function retryPolicy(given: Partial<RetryPolicy> = {}): RetryPolicy {
  const policy = { ...DEFAULT_RETRY, ...given };
  check(policy.maxAttempts >= 1, "maxAttempts: expected 1 or more", policy.maxAttempts);
  check(
    policy.initialBackoffMs >= 0,
    "initialBackoffMs: expected 0 or more",
    policy.initialBackoffMs,
  );
  check(
    policy.maxBackoffMs >= policy.initialBackoffMs,
    `maxBackoffMs: expected ${policy.initialBackoffMs} or more`,
    policy.maxBackoffMs,
  );
  check(policy.multiplier >= 1, "multiplier: expected 1 or more", policy.multiplier);
  check(policy.jitter >= 0 && policy.jitter <= 1, "jitter: expected 0 to 1", policy.jitter);
  return policy;
}

function check(holds: boolean, expected: string, got: number): void {
  if (!holds) {
    throw new RangeError(`${expected}, got ${got}`);
  }
}

/** What is known when an attempt has failed. */
export interface Failure {
  readonly error: HeadraceError;
  /** Attempts made, this one included. */
  readonly attempt: number;
  /** What is left of the deadline; Infinity without one. */
  readonly remainingMs: number;
  /** Drawn from 0 to 1, 1 not included. */
  readonly random: number;
}

/** Milliseconds to wait before the next attempt; undefined to give up. */
export function nextWaitMs(policy: RetryPolicy, failure: Failure): number | undefined {
  const { error, attempt, remainingMs, random } = failure;
  if (attempt >= policy.maxAttempts || !isRetriable(error)) {
    return undefined;
  }
  const asked = (error.retryAfterMs ?? 0) * (1 + policy.jitter * random);
  const wait = Math.max(backoffMs(policy, attempt, random), asked);
  // An attempt that could only start when the deadline has passed tells the caller nothing new.
  return wait < remainingMs ? wait : undefined;
}

function isRetriable(error: HeadraceError): boolean {
  return error instanceof Overloaded
    ? error.retryAfterMs !== undefined
    : error instanceof Unavailable;
}

/** Milliseconds between the `attempt`-th attempt, counted from 1, and the next, if the server asks
 * for none. */
export function backoffMs(policy: RetryPolicy, attempt: number, random: number): number {
  const wait = Math.min(
    policy.maxBackoffMs,
    policy.initialBackoffMs * policy.multiplier ** (attempt - 1),
  );
  return wait * (1 + policy.jitter * (2 * random - 1));
}
