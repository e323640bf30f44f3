"""Sizes are compared by the processor time that they need; what interrupts runs stretches all."""

from __future__ import annotations

import pytest

from headrace.batcher.cost import CostTable
from headrace.batcher.cost_model import CostModel
from headrace.batcher.learned import Learned
from headrace.batcher.scheduler import Scheduler
from headrace.batcher.state import Limits
from headrace.batcher.stretch import Stretch
from support.learned import batches, submit


def work(rows: int) -> float:
    """Beyond four rows each needs a tenth more."""
    return 0.0005 * rows + 0.00005 * max(0, rows - 4)


def test_where_nobody_interrupts_it_is_one() -> None:
    stretch = Stretch()
    for _ in range(10):
        stretch.observe(0.01, 0.01)
    assert stretch.factor == 1.0
    stretch.observe(0.009, 0.01)
    assert stretch.factor == 1.0, "clocks differ"


@pytest.mark.parametrize("seconds", [0.0001, 0.005, 0.5])
def test_it_is_what_runs_take_over_what_they_need(seconds: float) -> None:
    stretch = Stretch()
    for _ in range(max(2, int(1 / seconds))):
        stretch.observe(1.5 * seconds, seconds)
    assert stretch.factor == pytest.approx(1.5, rel=0.02)
    for _ in range(max(2, int(1 / seconds))):
        stretch.observe(1.1 * seconds, seconds)
    assert stretch.factor == pytest.approx(1.1, rel=0.02)


def test_one_run_that_was_held_up_changes_little() -> None:
    stretch = Stretch()
    for _ in range(200):
        stretch.observe(0.002, 0.002)
    stretch.observe(0.006, 0.002)
    assert stretch.factor < 1.03


def interrupted(*, told: bool) -> CostTable:
    """Runs of sixteen, now and then one of four: into each falls what the answers of the run before
    cost the event loop."""
    table, before = CostTable(64), 16
    for turn in range(2_000):
        rows = 4 if turn % 10 == 0 else 16
        seconds = work(rows) + 0.0002 * before
        table.observe(rows, seconds, work=work(rows) if told else None)
        before = rows
    return table


def test_what_falls_into_a_run_by_chance_makes_no_size_look_bad() -> None:
    misled, table = interrupted(told=False), interrupted(told=True)
    assert misled.seconds(4) / 4 > misled.seconds(16) / 16
    assert table.seconds(4) / 4 < table.seconds(16) / 16
    assert table.plan is not None
    assert 2 <= table.plan.best(128, 128) <= 4


def test_what_a_batch_is_predicted_to_take_is_time_all_the_same() -> None:
    table = interrupted(told=True)
    assert table.seconds(16) == pytest.approx(work(16) + 0.0002 * 16, rel=0.1)


def test_who_interrupts_makes_every_size_slower() -> None:
    table = CostTable(16)
    table.profile([(rows, work(rows)) for rows in (1, 2, 4, 8, 16) for _ in range(2)])
    for _ in range(200):
        table.observe(4, 2 * work(4), work=work(4))
    for rows in (1, 2, 4, 8, 16):
        assert table.seconds(rows) == pytest.approx(2 * work(rows), rel=0.1)


def test_a_key_that_is_new_is_known_to_be_interrupted_like_others_of_its_kind() -> None:
    model = CostModel(8)
    seen = model.table("cpu", "seen", 1000.0)
    for _ in range(200):
        seen.observe(1, 0.004, work=0.002)
    assert model.table("cpu", "new", 1000.0).seconds(1) == pytest.approx(0.004, rel=0.1)
    for _ in range(600):
        seen.observe(1, 0.002, work=0.002)
    assert model.table("cpu", "newer", 1000.0).seconds(1) == pytest.approx(0.002, rel=0.1)
    assert not model.table("other", "seen", 1000.0).known


def test_the_scheduler_hands_it_on() -> None:
    sched = Scheduler({"e0": "cpu"}, Learned(), Limits(max_batch_rows=8))
    for turn in range(100):
        submit(sched, 1, float(turn))
        assert len(batches(sched, float(turn))) == 1
        sched.complete("e0", 0.02 if turn % 2 else 0.01, work=0.01)
    table = sched.state.table("e0", "k", 0.0)
    assert table.seconds(1) == pytest.approx(0.015, rel=0.1)
