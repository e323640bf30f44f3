"""Interop cases of the Python client: sensor streams."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from headrace.client import (
    AsyncClient,
    Gap,
    InvalidInput,
    ModelNotFound,
    RetryPolicy,
    SessionLost,
    Signal,
    StreamEvent,
    WindowResult,
)
from interop.python_cases import Cases, Env, equal, refused

case = Cases()

QUICK = RetryPolicy(initial_backoff=0.01, max_backoff=0.05)


def pieces(signal: Any, size: int) -> Iterator[Any]:
    for at in range(0, len(signal), size):
        yield signal[at : at + size]


def results(events: Iterable[StreamEvent]) -> list[WindowResult]:
    """`events`, none of which is a gap, numbered from 0."""
    found = [event for event in events if isinstance(event, WindowResult)]
    assert [event.window for event in found] == list(range(len(list(events)))), events
    return found


def accumulated(signal: Any) -> list[Any]:
    """y = x + 0.5 y, in single precision, from y = 0."""
    answers, state = [], np.float32(0)
    for value in signal:
        state = value + np.float32(0.5) * state
        answers.append(np.array([[state]], np.float32))
    return answers


@case
async def sensor_windows(env: Env, client: AsyncClient) -> None:
    signal = np.arange(100, dtype=np.float32)
    async with client.stream("double", window=8, hop=4, sample_rate=100) as stream:
        events = [event async for event in stream.run(pieces(signal, 7))]
    assert len(events) == 24
    for number, event in enumerate(results(events)):
        first = 4 * number
        assert (event.first_sample, event.end_sample) == (first, first + 8)
        equal(event["y"], 2 * signal[None, first : first + 8])
    summary = stream.summary
    assert summary is not None
    assert (summary.samples, summary.windows) == (100, 24)
    assert (summary.answered, summary.dropped) == (24, 0)


@case
async def sensor_context(env: Env, client: AsyncClient) -> None:
    signal = np.arange(1, 13, dtype=np.float32)
    async with client.stream("double", window=4, context=3, sample_rate=100) as stream:
        events = [event async for event in stream.run([signal])]
    padded = np.concatenate([np.zeros(3, np.float32), signal])
    for number, event in enumerate(results(events)):
        equal(event["y"], 2 * padded[None, 4 * number : 4 * number + 7])


@case
async def sensor_flush(env: Env, client: AsyncClient) -> None:
    signal = np.arange(1, 11, dtype=np.float32)
    async with client.stream("double", window=4, tail="pad", sample_rate=100) as stream:
        await stream.send(signal)
        flushed = await stream.flush()
        assert (flushed.windows, flushed.samples) == (3, 10)
        events = stream.take()
        await stream.send(signal[:4])
        stream.end()
        events += [event async for event in stream]
    found = results(events)
    assert len(found) == 4
    assert found[2].end_sample == 10
    equal(found[2]["y"], np.array([[18, 20, 0, 0]], np.float32))
    assert (found[3].first_sample, found[3].end_sample) == (10, 14)
    equal(found[3]["y"], 2 * signal[None, :4])


@case
async def sensor_timestamps(env: Env, client: AsyncClient) -> None:
    async with client.stream("double", window=5, sample_rate=10) as stream:
        await stream.send(np.zeros(10, np.float32), timestamp_ns=10**12)
        stream.end()
        found = results([event async for event in stream])
    half = 500_000_000
    spans = [(event.start_ns, event.end_ns) for event in found]
    assert spans == [(10**12, 10**12 + half), (10**12 + half, 10**12 + 2 * half)]


@case
async def sensor_datatype(env: Env, client: AsyncClient) -> None:
    signal = np.array([-32768, -1, 0, 32767], np.int16)
    async with client.stream("identity_INT16", window=2, sample_rate=100, dtype=np.int16) as stream:
        found = results([event async for event in stream.run([signal])])
    for event, expected in zip(found, (signal[None, :2], signal[None, 2:]), strict=True):
        equal(event["y"], expected)


@case
async def sensor_signals(env: Env, client: AsyncClient) -> None:
    a, b = np.arange(10, dtype=np.float32), np.ones(10, np.float32)
    signals = {"a": Signal(), "b": Signal()}
    async with client.stream(
        "arithmetic", window=5, sample_rate=10, signals=signals, outputs=["difference"]
    ) as stream:
        found = results([event async for event in stream.run([{"a": a, "b": b}])])
    assert [list(event) for event in found] == [["difference"]] * 2
    for number, event in enumerate(found):
        equal(event["difference"], (a - b)[None, 5 * number : 5 * number + 5])


@case
async def sensor_state(env: Env, client: AsyncClient) -> None:
    signal = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    await _accumulate(client, signal, 9)


async def _accumulate(client: AsyncClient, signal: Any, size: int) -> None:
    """Every answer must be right."""
    opened = client.stream("accumulate", window=1, sample_rate=100, layout="samples")
    async with opened as stream:
        found = results([event async for event in stream.run(pieces(signal, size))])
    for event, expected in zip(found, accumulated(signal), strict=True):
        equal(event["y"], expected)


@case
async def sensor_gaps(env: Env, client: AsyncClient) -> None:
    signal = np.arange(100_000, dtype=np.float32)
    opened = client.stream("double", window=10, sample_rate=1000, overload="latest_only")
    async with opened as stream:
        events = [event async for event in stream.run([signal])]
    next_window = dropped = 0
    for event in events:
        if isinstance(event, Gap):
            assert (event.first_window, event.reason) == (next_window, "overloaded")
            dropped += event.windows
            next_window = event.end_window
        else:
            assert event.window == next_window
            first = 10 * next_window
            equal(event["y"], 2 * signal[None, first : first + 10])
            next_window += 1
    summary = stream.summary
    assert summary is not None
    assert next_window == summary.windows == 10_000
    assert summary.dropped == dropped > 0
    assert summary.answered == 10_000 - dropped


@case
async def sensor_many(env: Env, client: AsyncClient) -> None:
    rng = np.random.default_rng(1)
    signals = rng.standard_normal((20, 60)).astype(np.float32)
    await asyncio.gather(*(_accumulate(client, signal, 11) for signal in signals))


@case
async def sensor_leave(env: Env, client: AsyncClient) -> None:
    staying = asyncio.create_task(_accumulate(client, np.arange(400, dtype=np.float32) % 7, 10))
    async with client.stream("double", window=4, sample_rate=100) as stream:
        await stream.send(np.zeros(40, np.float32))
        await anext(stream)
        stream.leave()
    await staying


@case
async def sensor_refused(env: Env, client: AsyncClient) -> None:
    unknown = client.stream("nothing", window=4, sample_rate=1)
    await refused(unknown.open(), ModelNotFound, "MODEL_NOT_FOUND", "'nothing'")
    wrong = client.stream("double", window=4, sample_rate=1, dtype=np.int16)
    await refused(
        wrong.open(), InvalidInput, "INVALID_INPUT", "open.signals[0].datatype", "FP32", "INT16"
    )


@case
async def sensor_non_finite(env: Env, client: AsyncClient) -> None:
    signal = np.array([1, np.nan], np.float32)
    async with client.stream("double", window=2, sample_rate=1) as stream:
        try:
            await stream.send(signal)
        except ValueError as error:
            assert "sample 1" in str(error), error
        else:
            raise AssertionError("this was sent")
    async with client.stream("double", window=2, sample_rate=1, non_finite="allow") as stream:
        (event,) = results([event async for event in stream.run([signal])])
    np.testing.assert_array_equal(event["y"], 2 * signal[None])


@case
async def sensor_resume(env: Env, client: AsyncClient) -> None:
    signal = np.random.default_rng(2).standard_normal(5000).astype(np.float32)
    events: list[StreamEvent] = []
    async with (
        AsyncClient(env.cut_address, retry=QUICK) as broken,
        broken.stream("accumulate", window=1, sample_rate=100, layout="samples") as stream,
    ):
        for piece in pieces(signal, 100):
            await stream.send(piece)
            # One small message at a time: a larger one than may pass would never arrive.
            events += [await anext(stream) for _ in piece]
        await stream.close()
    for event, expected in zip(results(events), accumulated(signal), strict=True):
        equal(event["y"], expected)
    assert stream.resumes > 0


@case
async def sensor_no_resume(env: Env, client: AsyncClient) -> None:
    async with AsyncClient(env.cut_address, retry=QUICK) as broken:
        stream = broken.stream("double", window=100, sample_rate=1, ttl=0)
        await stream.open()
        try:
            async for _ in stream.run(pieces(np.zeros(20_000, np.float32), 100)):
                pass
        except SessionLost:
            with contextlib.suppress(SessionLost):
                await stream.close()
        else:
            raise AssertionError("nothing was cut")
