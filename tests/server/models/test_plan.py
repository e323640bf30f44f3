"""How a model is laid out: what the configuration says, and what measurements suggest."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.server.executors.session import Provider, SessionOptions
from headrace.server.models import plan
from headrace.server.models.options import ModelOptions
from headrace.server.models.plan import Layout, Measured, Plan, candidates, choose, configured
from headrace.server.models.profile import Profile


@pytest.fixture(autouse=True)
def _four_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "usable_cpus", lambda: 4)


@pytest.mark.parametrize(
    ("options", "instances", "threads"),
    [
        ({}, 4, 1),
        ({"intra_op_threads": 2}, 2, 2),
        ({"intra_op_threads": 9}, 1, 9),
        ({"instances": 6}, 6, 1),
        ({"instances": 3, "intra_op_threads": 4}, 3, 4),
    ],
)
def test_a_configured_layout_fits_the_processors(
    options: dict[str, Any], instances: int, threads: int
) -> None:
    main = configured(ModelOptions(**options), Provider.CPU).main
    assert (main.instances, main.session.intra_op_threads) == (instances, threads)


@pytest.mark.parametrize(
    ("options", "is_open"),
    [
        ({}, True),
        ({"max_batch_size": 4}, True),
        ({"instances": 4}, False),
        ({"intra_op_threads": 1}, False),
        ({"inter_op_threads": 2}, False),
    ],
)
def test_what_is_configured_is_left_alone(options: dict[str, Any], is_open: bool) -> None:
    given = ModelOptions(**options)
    assert plan.is_open(given, configured(given, Provider.CPU)) is is_open


def test_cuda_has_one_executor_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "resolve", lambda wanted: wanted)
    given = ModelOptions(provider=Provider.CUDA, device_id=2, cpu_helpers=3)
    found = configured(given, Provider.CPU)
    assert (found.main.instances, found.main.session.device_id) == (1, 2)
    assert found.main.session.provider is Provider.CUDA
    assert found.helpers is not None
    assert (found.helpers.instances, found.helpers.kind) == (3, "cpu")
    assert [team for team, _ in found.layouts] == [0, 0]
    assert not plan.is_open(given, found)


def test_the_sensible_layouts_use_every_core() -> None:
    layouts = [(c.instances, c.session.intra_op_threads) for c in candidates(SessionOptions())]
    assert layouts == [(4, 1), (1, 4), (2, 2)]


def chosen(
    *measured: tuple[int, float, float], origin: str = "measured", guessed: bool = False
) -> tuple[int, int | None]:
    """The threads of the main and of the lone layout, given (threads, alone, rate) of each."""
    layouts = tuple(
        Measured(Layout(SessionOptions(intra_op_threads=n), 4 // n), alone, rate, Profile())
        for n, alone, rate in measured
    )
    plan = Plan(layouts[0].layout, origin=origin, measured=layouts)
    found = choose(plan, guessed=guessed)
    lone = found.lone.session.intra_op_threads if found.lone else None
    return found.main.session.intra_op_threads, lone


def test_the_highest_rate_serves_and_the_soonest_answers_a_lone_request() -> None:
    assert chosen((1, 4.0, 480), (4, 2.0, 300), (2, 2.8, 400)) == (1, 4)


def test_one_layout_may_be_best_at_both() -> None:
    assert chosen((1, 4.0, 480), (4, 2.0, 700)) == (4, None)
    assert chosen((1, 2.0, 480), (4, 2.4, 300)) == (1, None)


def test_noise_does_not_make_a_layout_better() -> None:
    assert chosen((1, 4.0, 480), (4, 4.0, 490)) == (1, 4)


def test_at_a_size_that_was_guessed_more_threads_are_kept_ready_and_no_more() -> None:
    assert chosen((1, 0.1, 9000), (4, 0.3, 3000), (2, 0.2, 5000), guessed=True) == (1, 4)
    assert chosen((1, 4.0, 480), (4, 2.0, 700), guessed=True) == (1, 4)
    assert chosen((1, 4.0, 480), guessed=True) == (1, None)


def test_what_may_be_sooner_is_kept_ready() -> None:
    """It was measured in one moment; requests tell later on."""
    assert chosen((1, 4.0, 480), (4, 4.2, 300)) == (1, 4)
    assert chosen((1, 4.0, 480), (4, 6.0, 300)) == (1, None)
    assert chosen((1, 4.0, 480), (4, 4.2, 300), (2, 4.15, 300)) == (1, 2)
