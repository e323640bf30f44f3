"""Metrics on their way to a receiver that is away while the server stops."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest

from headrace.server.telemetry import otlp
from headrace.server.telemetry.families import Families

AWAY = "Cannot invoke RPC on closed channel!"


class Away:
    """An exporter that tries until it is shut down, and then finds its channel closed."""

    def __init__(self) -> None:
        self.tried = 0
        self.tries, self.again, self.closed = (threading.Event() for _ in range(3))

    def export(self, _: Any) -> None:
        self.tried += 1
        self.tries.set()
        if self.tried == 1:
            self.closed.wait()
            raise ValueError(AWAY)
        self.again.set()

    def shutdown(self) -> None:
        self.closed.set()


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Away:
    made = Away()
    monkeypatch.setattr(otlp, "exporter", lambda *_: made)
    return made


ENVIRONMENT = {
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
    "OTEL_TRACES_EXPORTER": "none",
    "OTEL_METRIC_EXPORT_INTERVAL": "1",
}


async def test_a_stop_while_it_tries_is_no_error(
    away: Away, caplog: pytest.LogCaptureFixture
) -> None:
    made = otlp.Otlp(ENVIRONMENT)
    made.start(Families)
    assert await asyncio.to_thread(away.tries.wait, 10)
    await made.stop()
    await asyncio.get_running_loop().shutdown_default_executor()  # what tried has ended
    assert away.tried == 2
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]


async def test_what_fails_before_is_told(away: Away, caplog: pytest.LogCaptureFixture) -> None:
    away.closed.set()
    made = otlp.Otlp(ENVIRONMENT)
    made.start(Families)
    assert await asyncio.to_thread(away.again.wait, 10)  # the first has ended then
    await made.stop()
    assert "metrics could not be sent" in caplog.text
    assert AWAY in caplog.text
