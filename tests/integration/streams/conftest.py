"""A server with models for sensor streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import grpc
import pytest

from support import models, server
from support.streaming import (
    Running,
)

SINGLE = "instances = 1\n"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("streams")
    repository = folder / "models"
    models.write(repository, "double", models.scaled(2.0))
    models.write(repository, "recurrent", models.recurrent(), toml=models.RECURRENT)
    models.write(repository, "aligned", models.arithmetic())
    models.write(repository, "matrix", models.scaled(1.0, ("batch", "n", 3)))
    models.write(repository, "slow", models.slowed(models.scaled(2.0), 6000), toml=SINGLE)
    models.write(repository, "text", models.shout())
    models.write(repository, "controlled", models.controlled(), config=models.CONTROLLED)
    limits = ["--max-buffered-samples=4096", "--max-connection-sessions=100"]
    with server.serving(folder / "server.log", repository, *limits) as up:
        yield Running(up, repository)


@pytest.fixture
async def channel(running: Running) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(running.server.grpc) as made:
        yield made
