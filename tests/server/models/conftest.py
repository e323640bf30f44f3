from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator

import pytest

from headrace.server.executors.session import Provider
from headrace.server.models.registry import Registry
from headrace.server.models.repository import Catalogue
from headrace.server.models.served import Host
from server.models.repositories import Gate, Listener, put


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    made = Gate()
    monkeypatch.setattr("headrace.server.executors.onnx.run_session", made.run)
    # A model that waits would not be taken for steady.
    monkeypatch.setattr("headrace.server.models.served.is_steady", lambda *_: False)
    return made


@pytest.fixture
def repository(tmp_path: pathlib.Path) -> pathlib.Path:
    """Holds model 'm', version 1, which adds 1."""
    put(tmp_path, 1, 1.0)
    return tmp_path


@pytest.fixture
async def registry(repository: pathlib.Path, gate: Gate) -> AsyncIterator[Registry]:
    made = Registry(Catalogue([repository]), Host(Provider.CPU))
    made.listener = Listener()
    yield made
    gate.open()
    await made.drain()
