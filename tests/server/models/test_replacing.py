"""Executors that hang are replaced, with a model's real session and a run that is held."""

from __future__ import annotations

import asyncio
import math
import pathlib
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from headrace.batcher.errors import ExecutorHung, NoExecutor
from headrace.server.contract import InputTensor
from headrace.server.exchange import InferenceRequest
from headrace.server.executors.onnx import OnnxExecutor
from headrace.server.executors.running import run_session
from headrace.server.executors.session import Provider
from headrace.server.inference import Submitted, submit
from headrace.server.models import replacing, served
from headrace.server.models.options import ModelOptions
from headrace.server.models.served import Host, ServedModel
from server import graphs
from server.streams.conftest import registry

HELD = -7.0
HANG = 0.2  # seconds; what does not hang takes microseconds


class House:
    """A model of one executor, whose runs with HELD in them wait for `go`."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.path = graphs.save(graphs.plus(1.0), folder / "m" / "1" / "model.onnx")
        self.go = threading.Event()
        self.host = Host(Provider.CPU, hang_seconds=HANG)
        self.changes: list[bool] = []
        self.model: ServedModel

    async def load(self) -> None:
        options = ModelOptions(instances=1)
        self.model = await served.load("m", "1", self.path, options, self.host)
        self.model.changed = lambda: self.changes.append(self.model.able)

    def submit(self, value: float) -> Submitted:
        array = np.full((1, 3), value, np.float32)
        request = InferenceRequest("m", "", [InputTensor("x", "FP32", array)], time.monotonic())
        return submit(registry(self.model), request)

    async def answer(self, value: float) -> float:
        submitted = self.submit(value)
        await submitted.future
        return float(submitted.outcome().outputs[0][1][0, 0])

    async def hang(self) -> OnnxExecutor:
        """The executor that is given up."""
        executor = self.model._executors[0]
        with pytest.raises(ExecutorHung, match="has not come back"):
            await self.submit(HELD).future
        return executor


@pytest.fixture
async def house(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    made = House(tmp_path)

    def held(session: Any, key: Any, feeds: Any, options: Any = None) -> Any:
        if feeds[0][0, 0] == HELD:
            made.go.wait()
        return run_session(session, key, feeds, options)

    monkeypatch.setattr("headrace.server.executors.onnx.run_session", held)
    # A model that could hang would not be taken for steady.
    monkeypatch.setattr(served, "is_steady", lambda *_: False)
    monkeypatch.setattr(replacing, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(replacing, "_LONGEST_WAIT", 0.01)
    await made.load()
    yield made
    made.go.set()
    await made.model.close()


async def test_a_fresh_executor_with_a_session_of_its_own_takes_over(house: House) -> None:
    hung = await house.hang()
    assert await house.answer(1.0) == 2.0
    (fresh,) = house.model._executors
    assert fresh.name == hung.name
    assert fresh._session is not hung._session
    assert house.changes == [False, True]
    assert house.host.deserted == [hung]
    assert house.model.statistics.hangs == 1
    assert hung.alive
    house.go.set()
    await asyncio.to_thread(hung._worker.join)
    assert await house.answer(2.0) == 3.0  # what came back late was nobody's


async def test_closing_does_not_wait_for_what_hangs(house: House) -> None:
    hung = await house.hang()
    await house.model.close()
    assert hung.alive


async def test_those_who_wait_are_told_when_there_is_none_to_be_had(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    content = house.path.read_bytes()
    house.path.write_bytes(b"not a model")
    await house.hang()
    with pytest.raises(NoExecutor, match="is not what it was when the model was loaded"):
        await house.submit(1.0).future
    assert not house.model.able
    statistics = house.model.statistics
    before = statistics.fail.count
    with pytest.raises(NoExecutor):
        house.submit(1.0)
    assert statistics.fail.count == before + 1  # what ModelStatistics says,
    assert statistics.ended.total() == before + 1  # and the metrics
    assert statistics.ended["no executor left"] == 2
    assert "nothing could be put in the place of m/1/cpu0" in caplog.text
    house.path.write_bytes(content)
    house.model._stamp = served._stamp(house.path)
    while not house.model.able:  # noqa: ASYNC110 (it tries again by itself)
        await asyncio.sleep(0.01)
    assert await house.answer(1.0) == 2.0


async def test_a_session_that_takes_long_is_waited_for_and_told(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, open_session = threading.Event(), getattr(served, "open_session")  # noqa: B009 (not its own to export)

    def slowly(*arguments: Any) -> Any:
        slow.wait()
        return open_session(*arguments)

    monkeypatch.setattr(served, "open_session", slowly)
    await house.hang()
    with pytest.raises(NoExecutor, match=r"opening a session takes longer than 0\.2 s"):
        await house.submit(1.0).future
    slow.set()
    while not house.model.able:  # noqa: ASYNC110 (a thread ends, and nobody is told)
        await asyncio.sleep(0.01)
    assert await house.answer(1.0) == 2.0


async def test_sessions_held_by_what_hangs_are_bounded(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replacing, "_MOST_DESERTED", 1)
    await house.hang()
    await house.answer(1.0)
    await house.hang()
    with pytest.raises(NoExecutor, match="2 runs hang, and each holds a session's memory"):
        await house.submit(1.0).future
    house.go.set()
    while not house.model.able:  # noqa: ASYNC110 (threads end, and nobody is told)
        await asyncio.sleep(0.01)
    assert await house.answer(1.0) == 2.0


async def test_a_model_says_how_long_its_runs_may_take(tmp_path: pathlib.Path) -> None:
    path = graphs.save(graphs.plus(1.0), tmp_path / "m" / "1" / "model.onnx")
    for options, expected in ((ModelOptions(hang_seconds=3.0), 3.0), (ModelOptions(), math.inf)):
        model = await served.load("m", "1", path, options, Host(hang_seconds=math.inf))
        assert model.runner.state.limits.hang_seconds == expected
        await model.close()


async def test_work_set_aside_ends_or_fails_like_any_other() -> None:
    assert await replacing.aside(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        await replacing.aside(lambda: 1 // 0)
    go = threading.Event()
    left = replacing.aside(go.wait)
    left.cancel()
    go.set()  # and nobody is told
    await asyncio.sleep(0.01)
    assert left.cancelled()
