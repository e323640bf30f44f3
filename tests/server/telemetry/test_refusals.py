"""The log says that requests are refused, and goes on saying so while they are."""

from __future__ import annotations

import asyncio
import math

import pytest

from headrace.batcher.request import Reject, Request, Why
from headrace.server.telemetry import refusals
from headrace.server.telemetry.refusals import Refusals
from headrace.server.telemetry.statistics import ModelStatistics
from headrace.server.telemetry.watch import Watch


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "_FIRST", 0.01)
    monkeypatch.setattr(refusals, "_NEXT", 0.02)


async def lines(caplog: pytest.LogCaptureFixture, number: int) -> list[str]:
    for _ in range(5000):
        if len(caplog.messages) >= number:
            break
        await asyncio.sleep(0.001)
    return caplog.messages


@pytest.mark.usefixtures("soon")
async def test_one_line_tells_of_all_that_were_refused(caplog: pytest.LogCaptureFixture) -> None:
    figures = ModelStatistics()
    figures.refusals = Refusals("resnet", "3")
    request = Request("key", None, 0.0)
    for _ in range(2):
        figures.rejected(Reject(request, Why.QUEUE_FULL, 1.0, ""))
    figures.dropped(request, Why.OVERTAKEN, 1.0)
    (line,) = await lines(caplog, 1)
    assert line == (
        "resnet version 3: 3 requests were refused or let go of in 0 s: 2 queue full, "
        "1 could no longer meet its deadline"
    )
    assert caplog.records[0].levelname == "WARNING"


@pytest.mark.usefixtures("soon")
async def test_it_is_told_again_while_it_goes_on_and_then_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = Refusals("resnet", "3")
    for number in range(1, 4):
        told.count(Why.TOO_LATE)
        await lines(caplog, number)
    assert all("1 request was" in line for line in caplog.messages)
    await asyncio.sleep(0.1)
    assert len(caplog.messages) == 3
    told.count(Why.TOO_LATE)
    assert len(await lines(caplog, 4)) == 4


async def test_who_leaves_or_is_ended_with_the_server_is_not_told_of() -> None:
    figures = ModelStatistics()
    figures.refusals = told = Refusals("resnet", "3")
    request = Request("key", None, 0.0)
    figures.dropped(request, Why.CANCELLED, 1.0)
    figures.rejected(Reject(request, Why.DRAINING, math.inf, ""))
    assert not told._watching


@pytest.mark.parametrize("warns", [True, False])
def test_who_watches_decides_whether_refusals_are_told_of(warns: bool) -> None:
    figures = ModelStatistics()
    Watch(warns=warns).observer("resnet", "3", figures)
    assert (figures.refusals is not None) is warns
