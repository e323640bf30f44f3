"""Which windows end with which chunk, and what a model's input says of the signal."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.bench.calls import Call, Calls
from headrace.bench.loads import Share
from headrace.bench.prepare import as_signal, one_window
from headrace.bench.recorder import DUE, Recorder, Rows
from headrace.bench.sensors import SensorDriver, windows_ending
from headrace.bench.spec import SensorLoad
from support.virtual import FakeServer, run


@settings(deadline=None)
@given(
    st.builds(
        SensorLoad,
        sessions=st.just(1),
        sample_rate=st.just(100.0),
        chunk=st.integers(1, 30),
        window=st.integers(1, 50),
        hop=st.one_of(st.none(), st.integers(1, 70)),
    )
)
def test_every_window_ends_with_the_chunk_that_has_its_last_sample(load: SensorLoad) -> None:
    chunks = 20
    hop = load.hop or load.window
    last_samples = range(load.window - 1, chunks * load.chunk, hop)
    expected = [0] * chunks
    for sample in last_samples:
        expected[sample // load.chunk] += 1
    assert [windows_ending(load, chunk) for chunk in range(chunks)] == expected


class FakeSession:
    """Answers every window at once."""

    def __init__(self) -> None:
        self.samples = 0

    def send(self, count: int, windows: list[Call]) -> None:
        self.samples += count
        for window in windows:
            window("OK")


async def drive(load: SensorLoad, share: Share, seconds: float) -> tuple[Rows, list[FakeSession]]:
    """Rows, with times from the start, of one process's share."""

    loop = asyncio.get_running_loop()
    calls = Calls(loop, FakeServer(lambda number: 0.0))
    driver = SensorDriver(loop, calls, load, share)
    sessions = [FakeSession() for _ in range(share.part, load.sessions, share.of)]
    driver._sessions = sessions  # type: ignore[assignment]
    driver._deadlines = [None] * len(sessions)
    began = loop.time()
    driver.start(began)
    driver.stop(began + seconds)
    await asyncio.sleep(seconds + 1.0)
    rows = np.frombuffer(calls.take()).reshape(-1, 4) - [began, began, began, 0.0]
    return rows, sessions


@pytest.mark.parametrize("processes", [1, 3])
def test_chunks_are_due_when_they_are_full(processes: int) -> None:
    """Four sessions, a chunk of 10 every 0.1 s each, a window of 20: due at 0.2 s, 0.4 s, ...,
    and a quarter of a chunk later for each session."""
    load = SensorLoad(sessions=4, sample_rate=100, chunk=10, window=20)
    dues: list[float] = []
    samples = []
    for part in range(processes):
        rows, sessions = run(drive(load, Share(part, processes), 0.99))
        dues += rows[:, DUE].tolist()
        samples += [session.samples for session in sessions]
    expected = [0.2 * n + 0.025 * session for session in range(4) for n in range(1, 5)]
    assert sorted(dues) == pytest.approx(sorted(expected))
    assert samples == [90] * 4


def test_what_a_stalled_client_did_not_send_is_counted() -> None:
    async def stalled() -> Recorder:

        loop = asyncio.get_running_loop()
        calls = Calls(loop, FakeServer(lambda number: 0.0))
        load = SensorLoad(sessions=2, sample_rate=100, chunk=10, window=10)
        driver = SensorDriver(loop, calls, load, Share())
        driver._sessions = [FakeSession(), FakeSession()]  # type: ignore[list-item]
        driver._deadlines = [None, None]
        began = loop.time()
        driver.start(began)
        driver.stop(began + 0.99)
        loop.passes(5.0)  # type: ignore[attr-defined]
        assert driver.busy()
        driver.abandon()
        assert not driver.busy()
        calls.give_up()
        recorder = Recorder(began, 0.99)
        recorder.add(np.frombuffer(calls.take()).reshape(-1, 4), ())
        return recorder

    totals = run(stalled()).totals()
    assert totals.sent == totals.unfinished == 9 + 9


@pytest.mark.parametrize(
    ("declared", "shape"),
    [((-1, -1), (1, 8)), ((-1, 8), (1, 8)), ((-1, -1, 3), (1, 8, 3)), ((1, 2, 8), (1, 2, 8))],
)
def test_open_dimensions_are_one_row_and_one_window(
    declared: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    assert one_window(declared, 8) == shape


def test_a_signal_is_samples_by_channels_whatever_the_inputs_layout() -> None:
    signal = np.arange(16).reshape(8, 2)
    assert (as_signal(signal[None], 8) == signal).all()
    assert (as_signal(signal.T[None], 8) == signal).all()
    assert (as_signal(signal[None, :, 0], 8) == signal[:, :1]).all()
