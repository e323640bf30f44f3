"""The event loop's thread, watched for the time it has left."""

from __future__ import annotations

import pathlib
import time

import pytest

from headrace.batcher.state import Device
from headrace.server.pressure import Pressure


class Watched(Pressure):
    """Looks when told, at a thread that was busy for as long as told, of each second."""

    def __init__(self, file: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.device, self.now, self.busy = Device(), 0.0, 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        super().__init__(self.device)
        self._file = file

    def look(self, share: float) -> bool:
        self.now += 1.0
        self.busy += share
        run, wait = int(self.busy * 0.25e9), int(self.busy * 0.75e9)
        self._file.write_text(f"{run} {wait} 17\n")
        self.close()
        self._look()
        return self.device.pressed


@pytest.fixture
async def watched(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    made = Watched(tmp_path / "schedstat", monkeypatch)
    made._busy = 0.0
    return made


async def test_a_busy_thread_presses_the_device_until_it_has_time_again(watched: Watched) -> None:
    assert [watched.look(1.0) for _ in range(3)] == [False, True, True]
    assert watched.look(0.4) is True  # a moment's rest is no relief
    assert [watched.look(0.1) for _ in range(2)] == [False, False]
    assert watched.look(0.8) is False  # nor is a busy moment a press
    watched.close()


async def test_waiting_for_a_core_counts_as_running_does(watched: Watched) -> None:
    for _ in range(5):
        watched.look(0.9)
    assert watched.device.pressed
    watched.close()


async def test_where_nobody_counts_nothing_is_pressed(watched: Watched) -> None:
    watched._file = pathlib.Path("/nowhere/schedstat")
    watched._look()
    assert not watched.device.pressed
    watched.close()


async def test_the_real_thread_is_watched() -> None:
    watch = Pressure(Device())
    before, stop = watch._read(), time.thread_time() + 0.01
    while time.thread_time() < stop:
        pass
    assert not watch._file.exists() or watch._read() > before
    watch.close()
