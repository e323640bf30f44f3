"""Executors on real sessions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from headrace.server.executors.onnx import OnnxExecutor, Seat
from headrace.server.executors.padding import Padding
from server.executors.runs import Start, session_of


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts an executor on a model."""
    started = []

    def start(model: Any, padding: Padding | None = None, *, steady: bool = False) -> OnnxExecutor:
        session = session_of(model)
        started.append(OnnxExecutor(Seat("e", "cpu"), session, padding, steady=steady))
        return started[-1]

    yield start
    for executor in started:
        await asyncio.to_thread(executor.close)
