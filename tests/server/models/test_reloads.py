"""Models come and go while requests run: none is dropped."""

from __future__ import annotations

import asyncio
import pathlib
from typing import Any

import pytest

from headrace.batcher.errors import Draining
from headrace.server.errors import LoadFailed, ModelUnavailable
from headrace.server.models import served
from headrace.server.models.registry import Registry
from server.models.repositories import Gate, ask, configure, index, put, told, turns


async def test_a_reload_answers_what_the_old_model_accepted(
    registry: Registry, repository: pathlib.Path, gate: Gate
) -> None:
    await registry.load_all()
    gate.close()
    old = registry.get("m")
    early = [asyncio.create_task(ask(registry)) for _ in range(20)]
    await turns()
    put(repository, 2, 2.0)
    await registry.load("m")
    assert registry.get("m") is not old
    late = [asyncio.create_task(ask(registry)) for _ in range(20)]
    await turns()
    assert not any(task.done() for task in early + late)
    gate.open()
    assert await asyncio.gather(*early) == [1.0] * 20
    assert await asyncio.gather(*late) == [2.0] * 20
    assert (old.statistics.rows, registry.get("m").statistics.rows) == (20, 20)
    await asyncio.gather(*registry._closing)
    assert not any(executor._worker.is_alive() for executor in old._executors)


async def test_requests_never_fail_over_many_reloads(
    registry: Registry, repository: pathlib.Path
) -> None:
    await registry.load_all()
    stop = False

    async def caller() -> set[float]:
        seen = set()
        while not stop:
            seen.add(await ask(registry))
        return seen

    callers = [asyncio.create_task(caller()) for _ in range(8)]
    for version in range(2, 6):
        put(repository, version, float(version))
        await registry.load("m")
    stop = True
    seen = set().union(*await asyncio.gather(*callers))
    assert seen <= {1.0, 2.0, 3.0, 4.0, 5.0}
    assert len(seen) > 1
    assert await ask(registry) == 5.0


async def test_unloading_answers_what_was_accepted_and_takes_no_more(
    registry: Registry, gate: Gate
) -> None:
    await registry.load_all()
    gate.close()
    accepted = asyncio.create_task(ask(registry))
    await turns()
    unloading = asyncio.create_task(registry.unload("m"))
    await turns()
    assert index(registry) == {("m", "1"): ("UNLOADING", "")}
    with pytest.raises(ModelUnavailable, match="model 'm' is UNLOADING"):
        registry.get("m")
    assert registry.ready_models() == []
    assert not unloading.done()
    gate.open()
    assert await accepted == 1.0
    await unloading
    assert index(registry) == {("m", "1"): ("UNAVAILABLE", "unloaded")}
    with pytest.raises(ModelUnavailable, match="model 'm' is UNAVAILABLE: unloaded"):
        registry.get("m")
    assert told(registry) == [("m", True), ("m", False)]


async def test_an_unloaded_model_can_come_back(
    registry: Registry, repository: pathlib.Path
) -> None:
    await registry.load_all()
    await registry.unload("m")
    configure(repository, "nonsense")
    with pytest.raises(LoadFailed):
        await registry.load("m")
    assert list(index(registry)) == [("m", "")]
    with pytest.raises(ModelUnavailable, match="nonsense"):
        registry.get("m")
    configure(repository, "")
    await registry.load("m")
    assert index(registry) == {("m", "1"): ("READY", "")}
    assert await ask(registry) == 1.0


async def test_a_loading_model_is_unavailable_and_its_caller_may_leave(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, go = served.load, asyncio.Event()

    async def slow(*arguments: Any) -> Any:
        await go.wait()
        return await load(*arguments)

    monkeypatch.setattr(served, "load", slow)
    loading = asyncio.create_task(registry.load("m"))
    await turns()
    assert index(registry) == {("m", "1"): ("LOADING", "")}
    with pytest.raises(ModelUnavailable, match="model 'm' is LOADING"):
        registry.get("m")
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    go.set()
    await registry.load("m")  # waits for its turn behind the first
    assert await ask(registry) == 1.0
    assert told(registry) == [("m", True), ("m", True)]


async def test_aborting_ends_what_waits_and_stops_what_runs(registry: Registry, gate: Gate) -> None:
    await registry.load("m", '{"max_batch_size": 1, "instance_group": [{"count": 1}]}')
    gate.close()
    asked = [asyncio.create_task(ask(registry)) for _ in range(30)]
    await turns()
    draining = asyncio.create_task(registry.drain())
    await turns()
    assert not any(task.done() for task in asked)
    registry.abort()
    gate.open()
    ended = await asyncio.gather(*asked, return_exceptions=True)
    await draining
    assert [type(end) for end in ended] == [Draining] * 30


async def test_draining_answers_what_waits_and_takes_no_more(
    registry: Registry, gate: Gate
) -> None:
    await registry.load_all()
    gate.close()
    asked = [asyncio.create_task(ask(registry)) for _ in range(30)]
    await turns()
    draining = asyncio.create_task(registry.drain())
    await turns()
    with pytest.raises(Draining):
        await ask(registry)
    gate.open()
    assert await asyncio.gather(*asked) == [1.0] * 30
    await draining
