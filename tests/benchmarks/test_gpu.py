"""The models and the direct calls of benchmarks/gpu, on the CPU and in the tiny size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import checker

from gpu import limit
from gpu.__main__ import Found, feeds_of, texts, together, written
from gpu.limit import Rate
from gpu.models import MAKERS


@pytest.fixture
def session(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    path = tmp_path / f"{request.param}.onnx"
    MAKERS[request.param](path, "tiny")
    checker.check_model(str(path), full_check=True)
    return limit.open_session(path, "cpu")


every_model = pytest.mark.parametrize("session", MAKERS, indirect=True)


def kinds(session: Any) -> Sequence[Any]:
    model = "transformer" if len(session.get_inputs()) == 2 else "other"
    return feeds_of(session, model)


@every_model
def test_rows_do_not_know_of_each_other(session: Any) -> None:
    for kind in kinds(session):
        feeds = kind(3)
        (together_,) = session.run(None, feeds)
        assert len(together_) == 3
        assert np.isfinite(together_).all()
        assert np.ptp(together_) > 1e-3  # random weights, not all the same
        for row in range(3):
            (alone,) = session.run(None, {n: a[row : row + 1] for n, a in feeds.items()})
            np.testing.assert_allclose(alone[0], together_[row], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("session", ["transformer"], indirect=True)
def test_padding_behind_the_mask_changes_no_answer(session: Any) -> None:
    feeds = texts(np.random.default_rng(1))
    padded = {name: np.pad(array, ((0, 0), (0, 9))) for name, array in feeds.items()}
    (right,), (found,) = session.run(None, feeds), session.run(None, padded)
    np.testing.assert_allclose(found, right, rtol=1e-3, atol=1e-4)


@every_model
@pytest.mark.parametrize("way", ["run", "bound"])
def test_every_way_that_a_cpu_has_gives_a_rate(session: Any, way: limit.Way) -> None:
    found = limit.best(session, way, kinds(session)[0], [1, 4], "cpu", 2, 0.02)
    assert (found.way, found.threads) == (way, 2)
    assert found.rows in (1, 4)
    assert found.rate > 0


@pytest.mark.parametrize("session", ["mlp"], indirect=True)
def test_a_bare_session_has_a_latency(session: Any) -> None:
    assert 0 < limit.latency(session, kinds(session)[0](1), 0.01) < 60


def test_kinds_that_are_as_frequent_share_the_time() -> None:
    rates = [Rate("run", 8, 1, 100.0), Rate("run", 32, 1, 300.0)]
    assert together(rates) == Rate("run", 32, 1, 150.0)


def test_what_was_found_is_written_whole() -> None:
    found = Found("mlp", [Rate("run", 8, 1, 100.0)], 0.001, {1: 50.0, 8: 90.0}, 0.002)
    assert (found.of(), found.best) == (100.0, 90.0)
    assert '"served": {' in written([found], {"provider": "cpu"})
