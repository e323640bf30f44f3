"""Models come and go while requests run, and no request is dropped."""

from __future__ import annotations

import asyncio
import os
import pathlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from headrace.client import AsyncClient, HeadraceError, ModelNotFound, RetryPolicy, Unavailable
from support import models, server
from support.waiting import until

ONCE = RetryPolicy(max_attempts=1)
CALLERS = 32


def scaled(factor: float) -> Any:
    """Slow enough that some requests wait and some run whenever anything happens."""
    return models.slowed(models.scaled(factor))


@pytest.fixture
def repository(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "models"
    models.write(folder, "m", scaled(2))
    models.write(folder, "other", models.scaled(5))
    return folder


class Load:
    """Callers without a pause, each answer checked and counted by the factor it shows."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._stop = False
        self.factors: Counter[float] = Counter()
        self.errors: list[HeadraceError] = []

    async def call(self, caller: int) -> None:
        number = 0
        while not self._stop:
            value = float(caller * 1000 + number % 1000 + 1)
            number += 1
            try:
                result = await self._client.infer("m", {"x": np.array([[value]], np.float32)})
            except HeadraceError as error:
                self.errors.append(error)
                await asyncio.sleep(0.001)
            else:
                self.factors[float(result["y"][0, 0]) / value] += 1

    async def progress(self, answers: int = 200) -> None:
        """Returns when so many more have been answered."""
        goal = self.factors.total() + answers

        async def reached() -> bool:
            return self.factors.total() >= goal

        await until(reached)

    def stop(self) -> None:
        self._stop = True


@asynccontextmanager
async def under_load(address: str) -> AsyncIterator[tuple[AsyncClient, Load]]:
    async with AsyncClient(address, retry=ONCE) as client:
        load = Load(client)
        callers = [asyncio.create_task(load.call(number)) for number in range(CALLERS)]
        try:
            await load.progress()
            yield client, load
        finally:
            load.stop()
            await asyncio.gather(*callers)


def replace_file(repository: pathlib.Path, model: Any) -> None:
    """As a careful deployment does it: the new file takes the old one's name at once."""
    fresh = repository / "m" / "1" / "fresh"
    models.save(model, fresh)
    os.replace(fresh, repository / "m" / "1" / "model.onnx")


async def test_reload_drops_nothing(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    with server.serving(tmp_path / "log", repository) as running:
        async with under_load(running.grpc) as (client, load):
            for factor in (3, 4, 5, 6):
                replace_file(repository, scaled(factor))
                await client.load_model("m")
                # Loading has returned: what is asked from now on is answered by the new one.
                result = await client.infer("m", {"x": np.ones((1, 1), np.float32)})
                assert result["y"].item() == factor
                await load.progress()
    assert load.errors == []
    assert set(load.factors) == {2, 3, 4, 5, 6}


async def test_a_new_version_takes_over(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    with server.serving(tmp_path / "log", repository) as running:
        async with under_load(running.grpc) as (client, load):
            models.write(repository, "m", scaled(7), version=2)
            await client.load_model("m")
            assert (await client.model_metadata("m")).versions == ("2",)
            await load.progress()
            with pytest.raises(ModelNotFound):
                await client.infer("m", {"x": np.ones((1, 1), np.float32)}, version="1")
    assert load.errors == []
    assert set(load.factors) == {2, 7}


async def test_a_failed_reload_changes_nothing(
    tmp_path: pathlib.Path, repository: pathlib.Path
) -> None:
    with server.serving(tmp_path / "log", repository) as running:
        async with under_load(running.grpc) as (client, load):
            index = await client.repository_index()
            models.write(repository, "m", b"not a model", version=2)
            with pytest.raises(HeadraceError, match=r"FAILED_PRECONDITION: .*model\.onnx"):
                await client.load_model("m")
            # Nothing is left in a state that it never leaves, and what failed is listed.
            now = await client.repository_index()
            failed = [entry for entry in now if entry.version == "2"]
            assert [entry.state for entry in failed] == ["UNAVAILABLE"]
            assert [entry for entry in now if entry not in failed] == list(index)
            await load.progress()
    assert load.errors == []
    assert set(load.factors) == {2}


async def test_when_one_version_fails_no_other_hangs(
    tmp_path: pathlib.Path, repository: pathlib.Path
) -> None:
    models.write(repository, "two", models.scaled(2), toml='versions = "all"\n')
    models.write(repository, "two", b"not a model", version=2)
    with server.serving(tmp_path / "log", repository) as running:
        async with AsyncClient(running.grpc, retry=ONCE) as client:
            index = {i.version: i for i in await client.repository_index() if i.name == "two"}
            assert {entry.state for entry in index.values()} == {"UNAVAILABLE"}
            assert all(entry.reason for entry in index.values())
            models.write(repository, "two", models.scaled(3), version=2)
            await client.load_model("two")
            assert (await client.model_metadata("two")).versions == ("1", "2")


async def test_unloading_refuses_and_drops_nothing(
    tmp_path: pathlib.Path, repository: pathlib.Path
) -> None:
    """What was accepted is answered; what comes later is told that the model is gone."""
    with server.serving(tmp_path / "log", repository) as running:
        async with under_load(running.grpc) as (client, load):
            await client.unload_model("m")
            assert not await client.model_ready("m")
            with pytest.raises(Unavailable, match="unloaded"):
                await client.infer("m", {"x": np.ones((1, 1), np.float32)})
            other = await client.infer("other", {"x": np.ones((1, 1), np.float32)})
            assert other["y"].item() == 5
            replace_file(repository, scaled(3))
            await client.load_model("m")
            assert await client.model_ready("m")
            await load.progress()
    assert {type(error) for error in load.errors} <= {Unavailable}
    assert set(load.factors) == {2, 3}


async def test_a_model_can_be_added_and_removed(
    tmp_path: pathlib.Path, repository: pathlib.Path
) -> None:
    with server.serving(tmp_path / "log", repository) as running:
        async with AsyncClient(running.grpc, retry=ONCE) as client:
            x = {"x": np.ones((1, 1), np.float32)}
            with pytest.raises(ModelNotFound):
                await client.infer("late", x)
            folder = models.write(repository, "late", models.scaled(9))
            with pytest.raises(Unavailable, match="not loaded"):
                await client.infer("late", x)
            await client.load_model("late")
            assert (await client.infer("late", x))["y"].item() == 9
            (folder / "1" / "model.onnx").unlink()
            with pytest.raises(HeadraceError, match=r"expected <version>/model\.onnx"):
                await client.load_model("late")
            assert (await client.infer("late", x))["y"].item() == 9
            await client.unload_model("late")
            with pytest.raises(Unavailable):
                await client.infer("late", x)


async def test_loads_and_unloads_at_once(tmp_path: pathlib.Path, repository: pathlib.Path) -> None:
    """They take turns: each is answered, and the last one asked for is the state in the end."""
    with server.serving(tmp_path / "log", repository) as running:
        async with under_load(running.grpc) as (client, load):
            changes = []
            for number in range(20):
                change = client.unload_model if number % 2 == 0 else client.load_model
                changes.append(asyncio.create_task(change("m")))
            await asyncio.gather(*changes)
            await client.load_model("m")
            await load.progress()
    assert {type(error) for error in load.errors} <= {Unavailable}
    assert set(load.factors) == {2}
