"""When to try a call again.

`next_wait` decides and touches neither clock nor network; `Attempts` holds the state of one call
for the two clients, which add only the sleeping.
"""

from __future__ import annotations

import math
import random as _random
import time
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import grpc

from headrace.client.errors import (
    DeadlineExceeded,
    HeadraceError,
    Overloaded,
    Unavailable,
    from_rpc_error,
)

# Thirty years. gRPC takes what is much longer, infinity too, for a time in the past.
_NO_LIMIT = 1e9


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently a call is tried. Times are in seconds.

    Retried are `Unavailable`, and `Overloaded` when the server said when to come back. The
    call's deadline covers all attempts and the waits between them.

    `max_attempts` counts the first one: 1 never retries. The wait starts at `initial_backoff`,
    grows by `multiplier` with each attempt up to `max_backoff`, and is spread by the fraction
    `jitter` to both sides, so that clients which failed together do not come back together. A
    server's own delay is never undercut, only stretched by up to `jitter`.
    """

    max_attempts: int = 4
    initial_backoff: float = 0.05
    max_backoff: float = 2.0
    multiplier: float = 2.0
    jitter: float = 0.2

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, got {self.max_attempts}")
        if not 0 <= self.initial_backoff <= self.max_backoff:
            raise ValueError(
                "expected 0 <= initial_backoff <= max_backoff, "
                f"got {self.initial_backoff} and {self.max_backoff}"
            )
        if self.multiplier < 1:
            raise ValueError(f"multiplier must be at least 1, got {self.multiplier}")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter must be between 0 and 1, got {self.jitter}")


NO_RETRY = RetryPolicy(max_attempts=1)


def next_wait(
    policy: RetryPolicy,
    error: HeadraceError,
    attempt: int,
    remaining: float | None,
    random: float,
) -> float | None:
    """Seconds to wait before the next attempt, or None to give up and raise `error`.

    `attempt` counts the attempts made, this failure included. `remaining` is what is left of the
    call's deadline in seconds, None without a deadline. `random` is drawn from [0, 1).
    """
    if attempt >= policy.max_attempts or not _is_retriable(error):
        return None
    wait = backoff(policy, attempt, random)
    if error.retry_after is not None:
        wait = max(wait, error.retry_after * (1 + policy.jitter * random))
    # An attempt that could only start when the deadline has passed tells the caller nothing new.
    if remaining is not None and wait >= remaining:
        return None
    return wait


def _is_retriable(error: HeadraceError) -> bool:
    if isinstance(error, Overloaded):
        return error.retry_after is not None
    return isinstance(error, Unavailable)


def backoff(policy: RetryPolicy, attempt: int, random: float) -> float:
    """Seconds between the `attempt`-th attempt, counted from 1, and the next, if the server asks
    for none. `random` is drawn from [0, 1)."""
    try:
        wait = min(policy.max_backoff, policy.initial_backoff * policy.multiplier ** (attempt - 1))
    except OverflowError:
        wait = policy.max_backoff
    return wait * (1 + policy.jitter * (2 * random - 1))


def checked(deadline: float | None) -> float | None:
    """`deadline`, None for no limit. Raises TypeError and ValueError for what is no time, and
    DeadlineExceeded for one that has passed: gRPC would try its luck."""
    if deadline is None:
        return None
    if not isinstance(deadline, Real):
        raise TypeError(f"deadline: expected seconds, or None for no limit, got {deadline!r}")
    if math.isnan(deadline):
        raise ValueError("deadline: expected seconds, or None for no limit, got nan")
    if deadline <= 0:
        message = f"the deadline was over before the call: {deadline:g} s were left"
        raise DeadlineExceeded(grpc.StatusCode.DEADLINE_EXCEEDED, message)
    return None if deadline > _NO_LIMIT else float(deadline)


class Attempts:
    """The attempts of one call: what is left of its deadline, and whether to try again.

    Raises what a `deadline` deserves that no call can have.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        deadline: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = _random.random,
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._random = random
        seconds = checked(deadline)
        self._ends = None if seconds is None else clock() + seconds
        self._made = 0

    def remaining(self) -> float | None:
        """Seconds left of the deadline, at least 0; None without a deadline."""
        return None if self._ends is None else max(0.0, self._ends - self._clock())

    def wait_after(self, rpc_error: grpc.RpcError) -> float:
        """Seconds to wait after a failed attempt; raises its HeadraceError if it was the last."""
        self._made += 1
        error = from_rpc_error(rpc_error)
        wait = next_wait(self._policy, error, self._made, self.remaining(), self._random())
        if wait is None:
            raise error from rpc_error
        return wait
