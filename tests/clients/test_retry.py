"""The retry decision, without a clock, and the accounting of one call's attempts."""

import math

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.client import DeadlineExceeded, InvalidInput, Overloaded, RetryPolicy, Unavailable
from headrace.client.errors import HeadraceError, error_of
from headrace.client.retry import NO_RETRY, Attempts, next_wait

UNAVAILABLE = error_of(grpc.StatusCode.UNAVAILABLE, "draining")
POLICY = RetryPolicy(max_attempts=4, initial_backoff=0.1, max_backoff=0.3, multiplier=2, jitter=0)


def overloaded(retry_after: float | None) -> HeadraceError:
    return error_of(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full", "", retry_after)


def test_backoff_grows_up_to_its_limit_and_then_gives_up() -> None:
    waits = [next_wait(POLICY, UNAVAILABLE, attempt, None, 0.5) for attempt in (1, 2, 3, 4)]
    assert waits == [pytest.approx(0.1), pytest.approx(0.2), pytest.approx(0.3), None]


@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c is not grpc.StatusCode.OK])
def test_only_unavailable_is_retried_unasked(code: grpc.StatusCode) -> None:
    wait = next_wait(POLICY, error_of(code, ""), 1, None, 0.5)
    assert (wait is not None) == (code is grpc.StatusCode.UNAVAILABLE)


def test_overloaded_is_retried_when_the_server_says_when() -> None:
    assert next_wait(POLICY, overloaded(None), 1, None, 0.5) is None
    assert next_wait(POLICY, overloaded(0.7), 1, None, 0.5) == pytest.approx(0.7)


def test_a_short_delay_of_the_server_does_not_shorten_the_backoff() -> None:
    assert next_wait(POLICY, overloaded(0.0), 2, None, 0.5) == pytest.approx(0.2)


def test_a_wait_that_outlasts_the_deadline_is_not_begun() -> None:
    assert next_wait(POLICY, UNAVAILABLE, 1, 0.05, 0.5) is None
    assert next_wait(POLICY, overloaded(1.0), 1, 1.0, 0.5) is None
    assert next_wait(POLICY, overloaded(1.0), 1, 1.1, 0.5) == pytest.approx(1.0)


def test_a_policy_of_one_attempt_never_retries() -> None:
    assert next_wait(NO_RETRY, UNAVAILABLE, 1, None, 0.0) is None


def test_an_absurd_number_of_attempts_does_not_overflow() -> None:
    policy = RetryPolicy(max_attempts=10_000, jitter=0)
    assert next_wait(policy, UNAVAILABLE, 9_000, None, 0.5) == policy.max_backoff


seconds = st.floats(0, 100)
policies = st.builds(
    lambda attempts, initial, more, multiplier, jitter: RetryPolicy(
        attempts, initial, initial + more, multiplier, jitter
    ),
    st.integers(1, 20),
    seconds,
    seconds,
    st.floats(1, 10),
    st.floats(0, 1),
)


@given(
    policy=policies,
    retry_after=st.none() | seconds,
    attempt=st.integers(1, 25),
    remaining=st.none() | seconds,
    random=st.floats(0, 1, exclude_max=True),
)
def test_every_wait_keeps_the_promises(
    policy: RetryPolicy,
    retry_after: float | None,
    attempt: int,
    remaining: float | None,
    random: float,
) -> None:
    error = error_of(grpc.StatusCode.UNAVAILABLE, "", "", retry_after)
    wait = next_wait(policy, error, attempt, remaining, random)
    if wait is None:
        return
    assert attempt < policy.max_attempts
    assert wait >= (retry_after or 0.0)
    assert remaining is None or wait < remaining
    ceiling = max(policy.max_backoff, retry_after or 0.0) * (1 + policy.jitter)
    assert wait <= ceiling or wait == pytest.approx(ceiling)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_attempts": 0},
        {"initial_backoff": -0.1},
        {"initial_backoff": 3.0, "max_backoff": 2.0},
        {"multiplier": 0.5},
        {"jitter": 1.5},
    ],
)
def test_a_senseless_policy_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        RetryPolicy(**fields)  # type: ignore[arg-type]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Failed(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "no"

    def trailing_metadata(self) -> tuple[()]:
        return ()


def test_attempts_share_one_deadline() -> None:
    clock = Clock()
    attempts = Attempts(POLICY, 1.0, clock=clock, random=lambda: 0.5)
    assert attempts.remaining() == pytest.approx(1.0)
    clock.now += 0.6
    assert attempts.wait_after(Failed(grpc.StatusCode.UNAVAILABLE)) == pytest.approx(0.1)
    clock.now += 0.3
    assert attempts.remaining() == pytest.approx(0.1)
    with pytest.raises(Unavailable) as raised:
        attempts.wait_after(Failed(grpc.StatusCode.UNAVAILABLE))
    assert isinstance(raised.value.__cause__, Failed)
    clock.now += 5
    assert attempts.remaining() == 0.0


def test_attempts_without_deadline_end_with_the_policy() -> None:
    attempts = Attempts(POLICY, None, clock=Clock(), random=lambda: 0.5)
    assert attempts.remaining() is None
    with pytest.raises(InvalidInput):
        attempts.wait_after(Failed(grpc.StatusCode.INVALID_ARGUMENT))
    with pytest.raises(Overloaded):
        attempts.wait_after(Failed(grpc.StatusCode.RESOURCE_EXHAUSTED))


@pytest.mark.parametrize("deadline", [math.inf, 1e12, None])
def test_a_deadline_beyond_all_times_is_no_limit(deadline: float | None) -> None:
    assert Attempts(POLICY, deadline).remaining() is None


@pytest.mark.parametrize("deadline", [0, -1, -math.inf])
def test_a_deadline_that_is_over_ends_the_call_before_it_is_made(deadline: float) -> None:
    with pytest.raises(DeadlineExceeded, match="over before the call") as error:
        Attempts(POLICY, deadline)
    assert error.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_deadline_that_is_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match=r"deadline: expected seconds.* got nan"):
        Attempts(POLICY, math.nan)
    with pytest.raises(TypeError, match=r"deadline: expected seconds.* got '0.1'"):
        Attempts(POLICY, "0.1")  # type: ignore[arg-type]
