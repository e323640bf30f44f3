"""When a size is tried of which few runs have told, and what is made of its first runs."""

from __future__ import annotations

import pytest

from headrace.batcher.cost import CostTable
from headrace.batcher.exploration import Exploration
from headrace.batcher.learned import Learned
from headrace.batcher.scheduler import Scheduler
from headrace.batcher.state import Limits
from support.learned import batches, submit


def work(rows: int) -> float:
    """Beyond four rows each needs a tenth more."""
    return 0.0005 * rows + 0.00005 * max(0, rows - 4)


def cold_after_larger_ones(sched: Scheduler, count: int) -> list[int]:
    """The sizes of so many batches of a queue that is never short. The first runs after a clearly
    larger one find caches cold, as PP-OCR's classifier does."""
    now, since, last, ran = 0.0, 9, 0, []
    for _ in range(count):
        submit(sched, 64 - sched.state.queued_requests, now)
        (batch,) = batches(sched, now)
        since = 0 if last > 1.25 * batch.rows else since + 1
        last = batch.rows
        seconds = work(batch.rows) * {0: 1.5, 1: 1.2}.get(since, 1.0)
        now += seconds
        sched.complete("e0", seconds, now=now, work=seconds)
        ran.append(batch.rows)
    return ran


def test_a_smaller_size_is_found_out_though_its_first_runs_are_slow() -> None:
    sched = Scheduler({"e0": "cpu"}, Learned(), Limits(max_batch_rows=64))
    table = sched.state.cost.table("cpu", "k", 0.0)
    table.profile(
        [(rows, 0.002 + 0.0004 * rows) for rows in (1, 2, 4, 8, 16, 32) for _ in range(2)]
    )
    ran = cold_after_larger_ones(sched, 4_000)
    assert ran[0] > 16, "it looks as if batching paid"
    assert max(ran[-100:]) <= 4
    assert min(ran[-100:]) >= 2


@pytest.mark.parametrize(
    ("computes", "patient", "series"), [(True, True, 12), (True, False, 1), (False, True, 1)]
)
def test_trials_come_in_series_where_caches_count_and_nobody_is_in_a_hurry(
    computes: bool, patient: bool, series: int
) -> None:
    exploration = Exploration()
    exploration.computes = computes
    asked = "".join(str(int(exploration.due_of(4, patient))) for _ in range(7 + series + 7))
    assert asked == "0" * 7 + "1" * series + "0" * 7


def test_a_series_ends_where_that_of_another_size_begins() -> None:
    exploration = Exploration()
    exploration.computes = True
    assert [exploration.due_of(4, patient=True) for _ in range(8)][-1]
    assert not any(exploration.due_of(2, patient=True) for _ in range(7))
    assert exploration.due_of(2, patient=True)


def test_runs_tell_whether_they_compute_on_a_processor() -> None:
    table = CostTable(16)
    table.observe(16, work(16), work=work(16))
    assert table.exploration.computes
    table.observe(16, work(16))
    assert not table.exploration.computes


@pytest.mark.parametrize(("on_processor", "told"), [(True, False), (False, True)])
def test_what_is_slow_for_caches_is_forgotten(on_processor: bool, told: bool) -> None:
    table = CostTable(16)

    def observe(rows: int, seconds: float, settled: bool = True) -> None:
        table.observe(rows, seconds, work=seconds if on_processor else None, settled=settled)

    for _ in range(50):
        observe(16, work(16))
    for _ in range(3):
        observe(4, 0.009, settled=False)
    assert table.told(4, 1.25) is told
    for _ in range(3):
        observe(4, work(4), settled=False)
    assert table.told(4, 1.25)


def test_what_is_slow_for_ever_is_learned_all_the_same() -> None:
    table = CostTable(16)
    for _ in range(50):
        table.observe(16, work(16), work=work(16))
    for _ in range(3):
        table.observe(4, work(4), work=work(4))
    before = table.observations
    for _ in range(40):
        table.observe(4, 1.5 * work(4), work=1.5 * work(4), settled=False)
    table.refresh()
    assert table.observations == before + 40
    assert table.seconds(4) > 1.3 * work(4)
