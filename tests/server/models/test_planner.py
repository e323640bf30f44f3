"""Measuring layouts, and remembering what was measured."""

from __future__ import annotations

import json
import logging
import pathlib
from typing import Any

import onnxruntime as ort
import pytest

from headrace.batcher.state import Device
from headrace.server.executors.session import Provider, open_session
from headrace.server.models import plan, plan_cache, planner
from headrace.server.models.options import ModelOptions
from headrace.server.models.plan import Plan, configured
from headrace.server.models.plan_cache import PlanCache
from headrace.server.models.planner import Planner, Subject
from headrace.server.models.spec import ModelSpec, read_spec
from server import graphs

Measurements = list[int]


@pytest.fixture(autouse=True)
def measurements(monkeypatch: pytest.MonkeyPatch) -> Measurements:
    """Two CPUs, no model too small to measure, short rounds. Gives the count of measurements."""
    monkeypatch.setattr(plan, "usable_cpus", lambda: 2)
    monkeypatch.setattr(plan_cache, "usable_cpus", lambda: 2)
    monkeypatch.setattr(planner, "_WORTH_DIVIDING", 0.0)
    monkeypatch.setattr(planner, "_SHORTEST_ROUND", 0.001)
    monkeypatch.setattr(planner, "_UNDISTURBED", 0.0)
    measure, count = planner.measure, []

    def counted(*arguments: Any) -> Plan:
        count.append(1)
        return measure(*arguments)

    monkeypatch.setattr(planner, "measure", counted)
    return count


@pytest.fixture
def model(tmp_path: pathlib.Path) -> pathlib.Path:
    return graphs.save(graphs.plus(1.0), tmp_path / "m" / "1" / "model.onnx")


@pytest.fixture
def cache(tmp_path: pathlib.Path) -> PlanCache:
    return PlanCache(tmp_path / "plans")


def opened(
    path: pathlib.Path, options: ModelOptions
) -> tuple[Plan, ModelSpec, ort.InferenceSession]:
    start = configured(options, Provider.CPU)
    session = open_session(path, start.main.session)
    return start, read_spec("m", "1", session, options, 8), session


def complete(
    path: pathlib.Path,
    cache: PlanCache | None = None,
    device: Device | None = None,
    **given: Any,
) -> Plan:
    options = ModelOptions(**given)
    start, spec, session = opened(path, options)
    planner = Planner(cache, device or Device())
    return planner.complete(start, options, Subject(spec, path, session))


def test_layouts_are_measured_where_nothing_is_said(model: pathlib.Path) -> None:
    found = complete(model)
    assert found.origin == "measured"
    layouts = [(m.layout.instances, m.layout.session.intra_op_threads) for m in found.measured]
    assert layouts == [(2, 1), (1, 2)]
    assert all(m.rate > 0 and 0 < m.alone < 60 and m.profile.runs for m in found.measured)


def test_a_configured_layout_is_profiled_only(
    model: pathlib.Path, cache: PlanCache, measurements: Measurements
) -> None:
    found = complete(model, cache, instances=3)
    assert (found.origin, found.main.instances, found.lone) == ("configured", 3, None)
    assert found.measured[0].profile.runs
    assert not measurements
    assert not cache.folder.exists()


def test_small_models_have_nothing_to_divide(
    model: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "_WORTH_DIVIDING", 10.0)
    found = complete(model)
    assert (found.main.instances, found.lone) == (2, None)
    assert len(found.measured) == 1


def test_nothing_is_measured_beside_live_traffic(
    model: pathlib.Path, cache: PlanCache, measurements: Measurements
) -> None:
    device = Device()
    device.running = 1
    assert complete(model, cache, device).origin == "not measured: other models were busy"
    assert not measurements
    assert not cache.folder.exists()


def test_a_restart_does_not_measure_again(
    model: pathlib.Path, cache: PlanCache, measurements: Measurements
) -> None:
    first, second = complete(model, cache), complete(model, cache)
    assert len(measurements) == 1
    assert (first.origin, second.origin) == ("measured", "measured before")
    assert (first.main, first.lone, first.measured) == (second.main, second.lone, second.measured)


def test_what_was_measured_beside_other_load_is_not_kept(
    model: pathlib.Path, cache: PlanCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "_UNDISTURBED", 100.0)
    assert complete(model, cache).origin == plan.DISTURBED
    assert not cache.folder.exists()


def test_another_model_is_another_plan(
    model: pathlib.Path, cache: PlanCache, measurements: Measurements
) -> None:
    complete(model, cache)
    graphs.save(graphs.plus(2.0), model)
    complete(model, cache)
    (model.parent / "weights.data").write_bytes(b"more")
    complete(model, cache)
    assert len(measurements) == 3


@pytest.mark.parametrize("changed", ["onnxruntime", "processor", "processors", "largest batch"])
def test_a_stale_plan_is_noticed(
    model: pathlib.Path,
    cache: PlanCache,
    measurements: Measurements,
    caplog: pytest.LogCaptureFixture,
    changed: str,
) -> None:
    complete(model, cache)
    (file,) = cache.folder.iterdir()
    kept = json.loads(file.read_text())
    kept["fingerprint"][changed] = "another"
    file.write_text(json.dumps(kept))
    with caplog.at_level(logging.INFO):
        assert complete(model, cache).origin == "measured"
    assert f"stale: {changed} was another, is" in caplog.text
    assert complete(model, cache).origin == "measured before"
    assert len(measurements) == 2


@pytest.mark.parametrize(
    "content", ["", "[]", "null", "{}", '{"fingerprint": 3, "measured": []}', "\x00"]
)
def test_a_broken_plan_costs_a_measurement_only(
    model: pathlib.Path, cache: PlanCache, measurements: Measurements, content: str
) -> None:
    complete(model, cache)
    (file,) = cache.folder.iterdir()
    file.write_text(content)
    assert complete(model, cache).origin == "measured"
    assert complete(model, cache).origin == "measured before"
    assert len(measurements) == 2


def test_a_plan_that_cannot_be_kept_is_used_all_the_same(
    model: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert complete(model, PlanCache(tmp_path / "file")).origin == "measured"
    assert "cannot be kept" in caplog.text


def test_where_plans_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert plan_cache.plan_cache("off") is None
    assert plan_cache.plan_cache("here") == PlanCache(pathlib.Path("here"))
    assert plan_cache.plan_cache("auto") == PlanCache(tmp_path / "headrace" / "plans")
