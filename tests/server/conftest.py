from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from headrace.server.executors.session import Provider
from headrace.server.models import served
from headrace.server.models.options import ModelOptions
from headrace.server.models.served import Host, ServedModel
from server import graphs

Load = Callable[..., Awaitable[ServedModel]]


@pytest.fixture
async def load(tmp_path: pathlib.Path) -> AsyncIterator[Load]:
    """Loads a model of `graphs` as 'm', version 1, with one executor unless options say more."""
    loaded = []

    async def load(model: Any, **options: Any) -> ServedModel:
        path = graphs.save(model, tmp_path / "loaded" / "m" / "1" / "model.onnx")
        given = ModelOptions(**{"instances": 1, **options})
        loaded.append(await served.load("m", "1", path, given, Host(Provider.CPU)))
        return loaded[-1]

    yield load
    for model in loaded:
        await model.close()
