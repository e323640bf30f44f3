"""The asyncio shell: promises end once, whoever leaves, fails or drains."""

from __future__ import annotations

import asyncio

import pytest

from headrace.batcher.callers import Answer
from headrace.batcher.errors import (
    Draining,
    ExecutionFailed,
    Expired,
    Overloaded,
    Overtaken,
)
from headrace.batcher.executor import Done
from headrace.batcher.learned import Learned
from headrace.batcher.policy import TIMER_GRAIN, WorkConserving
from headrace.batcher.promise import Promise
from headrace.batcher.request import Batch, Request, Why
from headrace.batcher.runner import Runner
from headrace.batcher.state import Limits
from headrace.batcher.testing import FakeExecutor, ManualClock
from support.runner_bench import Bench, settle


async def test_an_answer_says_how_it_came_about() -> None:
    bench = Bench()
    bench.submit("first")
    await settle()
    future = bench.submit("second")
    bench.clock.advance(0.25)
    bench.executor.finish()
    await settle()
    bench.clock.advance(0.5)
    bench.executor.finish()
    answer = await future
    assert answer.result == "second"
    assert answer.batch.rows == 1
    assert answer.queue_seconds == pytest.approx(0.25)
    assert answer.total_seconds == pytest.approx(0.75)


async def test_a_burst_is_decided_once_and_goes_together() -> None:
    bench = Bench(max_batch_rows=4)
    futures = [bench.submit(n) for n in range(4)]
    await settle()
    assert [len(batch.requests) for batch in bench.executor.batches] == [4]
    bench.executor.finish()
    assert [(await future).result for future in futures] == [0, 1, 2, 3]


async def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    bench = Bench(max_queued_requests=1)
    bench.submit("waits")
    with pytest.raises(Overloaded, match="the limit is 1") as caught:
        bench.submit("refused")
    assert caught.value.retry_after > 0
    assert bench.log.calls[-1] == ("rejected", Why.QUEUE_FULL)


async def test_an_expired_request_is_told_and_never_run() -> None:
    bench = Bench()
    bench.submit("runs")
    await settle()
    late = bench.submit("late", deadline=0.01)
    bench.clock.advance(0.02)
    with pytest.raises(Expired, match=r"20\.0 ms in the queue"):
        await late  # the timer fires by itself: nothing else happens
    bench.executor.finish()
    await settle()
    assert len(bench.executor.batches) == 1
    assert ("dropped", ("late", Why.EXPIRED)) in bench.log.calls


async def test_who_is_let_go_of_in_the_queue_is_told_at_once_when_to_come_back() -> None:
    """Not at its deadline, and not that its deadline was at fault."""
    bench = Bench(Learned(), max_batch_rows=1)
    bench.runner.state.table("fake", "key", 0.0).observe(1, 0.1)
    bench.submit("runs")
    await settle()
    late = bench.submit("late", deadline=0.25)
    bench.clock.advance(0.2)  # the run takes twice as long as it should
    bench.executor.finish()
    with pytest.raises(Overtaken, match=r"after 200\.0 ms in the queue") as caught:
        await late
    assert 0 < caught.value.retry_after < 1
    assert ("dropped", ("late", Why.OVERTAKEN)) in bench.log.calls


async def test_who_is_let_go_of_need_not_wait_for_those_who_are_less_urgent() -> None:
    bench = Bench(Learned(), max_batch_rows=1)
    bench.runner.state.table("fake", "key", 0.0).observe(1, 0.1)
    flood = [bench.submit(n) for n in range(100)]  # without deadlines: ten seconds of work
    await settle()
    late = bench.submit("late", deadline=0.25)
    bench.clock.advance(0.2)
    bench.executor.finish()
    with pytest.raises(Overtaken) as caught:
        await late
    assert caught.value.retry_after < 0.5
    for promise in flood:
        promise.cancel()


async def test_who_is_let_go_of_at_the_deadline_is_told_of_the_deadline() -> None:
    """Timers are no finer: one for the deadline may fire a little before it."""
    bench = Bench(Learned(), max_batch_rows=1)
    bench.runner.state.table("fake", "key", 0.0).observe(1, 0.1)
    bench.submit("runs")
    await settle()
    late = bench.submit("late", deadline=0.2 + TIMER_GRAIN / 2)
    bench.clock.advance(0.2)
    bench.executor.finish()
    with pytest.raises(Expired, match=r"the deadline passed after 200\.0 ms"):
        await late
    assert ("dropped", ("late", Why.EXPIRED)) in bench.log.calls


async def test_a_cancelled_request_leaves_the_queue() -> None:
    bench = Bench()
    bench.submit("runs")
    await settle()
    gone, stays = bench.submit("gone"), bench.submit("stays")
    gone.cancel()
    await settle()
    bench.executor.finish()
    await settle()
    bench.executor.finish()
    assert (await stays).result == "stays"
    assert [len(b.requests) for b in bench.executor.batches] == [1, 1]
    assert ("dropped", ("gone", Why.CANCELLED)) in bench.log.calls


async def test_a_batch_is_abandoned_only_when_every_member_has_left() -> None:
    bench = Bench()
    one, two = bench.submit(1), bench.submit(2)
    await settle()
    one.cancel()
    await settle()
    assert bench.executor.abandoned == []
    two.cancel()
    await settle()
    assert bench.executor.abandoned == bench.executor.batches
    bench.executor.fail(RuntimeError("terminated"))
    await settle()
    assert bench.runner.state.idle == ["fake"]


async def test_cancelling_in_the_turn_of_the_completion_ends_once() -> None:
    bench = Bench()
    one, two = bench.submit(1), bench.submit(2)
    await settle()
    one.cancel()
    bench.executor.finish()  # before the loop has run the cancelled future's callback
    await settle()
    assert (await two).result == 2
    ends = [call for call in bench.log.calls if call[0] in ("answered", "dropped")]
    assert sorted(ends) == [("answered", 2), ("dropped", (1, Why.CANCELLED))]


async def test_who_is_told_may_ask_again_at_once() -> None:
    """And is answered after those who waited meanwhile."""
    bench = Bench(max_batch_rows=1)
    again: list[Promise[Answer]] = []
    first, waits = bench.submit("first"), bench.submit("waits")
    first.add_done_callback(lambda _: again.append(bench.submit("again")))
    await settle()
    for expected in (first, waits):
        bench.executor.finish()
        assert expected.done()
        await settle()
    bench.executor.finish()
    assert again[0].result().result == "again"


async def test_who_is_told_may_withdraw_another_of_the_same_batch() -> None:
    bench = Bench()
    first, second = bench.submit("first"), bench.submit("second")
    first.add_done_callback(lambda _: second.cancel())
    await settle()
    bench.executor.finish()
    assert second.cancelled()
    ends = [call for call in bench.log.calls if call[0] in ("answered", "dropped")]
    assert ends == [("answered", "first"), ("dropped", ("second", Why.CANCELLED))]


async def test_an_executor_may_end_a_run_before_it_returns() -> None:
    class Brief(FakeExecutor):
        def start(self, batch: Batch, done: Done) -> None:
            super().start(batch, done)
            self.finish()

    executors = [Brief("a"), Brief("b")]
    runner = Runner(executors, WorkConserving(), Limits(max_batch_rows=2), ManualClock())
    promises = [runner.submit(Request("key", n, 0.0)) for n in range(9)]
    answers = await asyncio.gather(*promises)
    assert [answer.result for answer in answers] == list(range(9))
    await runner.drain()
    assert not any(executor.busy for executor in executors)


async def test_what_is_computed_for_nobody_is_told() -> None:
    """Of the caller who left, of the one who left in this very turn, and of one told too late."""
    bench = Bench()
    patient, late = bench.submit("patient"), bench.submit("late", deadline=1.0)
    left, leaving = bench.submit("left"), bench.submit("leaving")
    await settle()
    left.cancel()
    await settle()
    bench.clock.advance(1.0)
    leaving.cancel()
    bench.executor.finish()
    await settle()
    assert (await patient).result == "patient"
    assert (await late).result == "late"
    wasted = [payload for what, payload in bench.log.calls if what == "wasted"]
    assert wasted == ["late", "left", "leaving"]


async def test_one_displaced_from_a_full_queue_is_told_in_the_same_turn() -> None:
    bench = Bench(max_queued_requests=2)
    bench.submit("runs")
    await settle()
    flood = [bench.submit(n) for n in range(2)]
    polite = bench.submit("polite", caller="another")
    await settle()
    with pytest.raises(Overloaded, match="this one has 2") as caught:
        await flood[1]
    assert caught.value.retry_after > 0
    assert bench.log.calls[-1] == ("rejected", Why.QUEUE_FULL)
    for _ in range(2):
        bench.executor.finish()
        await settle()
    assert [(await future).result for future in (flood[0], polite)] == [0, "polite"]


async def test_one_who_leaves_when_displaced_ends_once() -> None:
    bench = Bench(max_queued_requests=2)
    bench.submit("runs")
    await settle()
    flood = [bench.submit(n) for n in range(2)]
    bench.submit("polite", caller="another")
    flood[1].cancel()
    await settle()
    ends = [call for call in bench.log.calls if call[0] in ("rejected", "dropped")]
    assert ends == [("dropped", (1, Why.CANCELLED))]


async def test_the_halves_of_a_failed_batch_are_retried_apart() -> None:
    bench = Bench()
    good, bad = bench.submit("good"), bench.submit("bad")
    await settle()
    bench.executor.fail(RuntimeError("a row is bad"))
    await settle()
    bench.executor.finish()
    await settle()
    bench.executor.fail(RuntimeError("this row is bad"))
    assert (await good).result == "good"
    with pytest.raises(ExecutionFailed, match="this row is bad"):
        await bad
    assert ("failed", "bad") in bench.log.calls


async def test_an_executor_that_miscounts_loses_nobody() -> None:
    bench = Bench()
    future = bench.submit("only")
    await settle()
    bench.executor.finish(results=[])
    with pytest.raises(ExecutionFailed, match="0 results to 1 requests"):
        await future


async def test_draining_answers_what_was_accepted_and_refuses_the_rest() -> None:
    bench = Bench(max_batch_rows=1)
    accepted = [bench.submit(n) for n in range(3)]
    drained = asyncio.ensure_future(bench.runner.drain())
    await settle()
    with pytest.raises(Draining):
        bench.submit("new")
    assert bench.log.calls[-1] == ("rejected", Why.DRAINING)
    for _ in accepted:
        assert not drained.done()
        bench.executor.finish()
        await settle()
    await drained
    assert [(await future).result for future in accepted] == [0, 1, 2]


async def test_abort_ends_what_waits_with_an_error() -> None:
    bench = Bench(max_batch_rows=1)
    running, waiting = bench.submit("running"), bench.submit("waiting")
    await settle()
    bench.runner.abort()
    with pytest.raises(Draining):
        await waiting
    bench.executor.finish()
    assert (await running).result == "running"
    await bench.runner.drain()


async def test_an_idle_runner_drains_at_once() -> None:
    await Bench().runner.drain()


async def test_executors_need_different_names() -> None:
    with pytest.raises(ValueError, match="different names"):
        Runner([FakeExecutor(), FakeExecutor()], WorkConserving(), Limits(), ManualClock())
