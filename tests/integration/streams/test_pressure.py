"""Sensor streams through the real server: who is slow, what gives way, and how it stops."""

from __future__ import annotations

import asyncio
import pathlib
import re

import grpc
import pytest

from headrace.stream.v1 import stream_pb2 as pb
from support import models, server
from support.streaming import (
    Running,
    StreamCall,
    chunk,
    noise,
    reasons,
)


def covered(call: StreamCall, handle: int) -> tuple[int, int]:
    """How many windows have results and how many are in gaps; all are there, once, in order."""
    at = answered = 0
    for event in call.events[handle]:
        if event.HasField("result"):
            assert event.result.window == at
            at, answered = at + 1, answered + 1
        elif event.HasField("gap"):
            assert event.gap.first_window == at
            at = event.gap.end_window
    return answered, at - answered


@pytest.mark.parametrize("overload", [pb.OVERLOAD_DROP_OLDEST, pb.OVERLOAD_LATEST_ONLY])
async def test_a_slow_model_and_what_gives_way(channel: grpc.aio.Channel, overload: int) -> None:
    """One session sends all it has at once, and its neighbour still gets every window."""
    async with StreamCall(channel) as call:
        more = {"overload": overload, "buffer_samples": 32}
        await call.open(1, model="slow", window=4, **more)
        await call.open(2, model="double", window=4)
        for at in range(0, 1600, 16):
            await call.send(chunk(1, at, noise(at, 16)), chunk(2, at, noise(at, 16)))
        closed = await call.close(1)
        assert closed.windows == 400
        assert covered(call, 1) == (closed.answered, closed.dropped)
        assert closed.dropped > 0
        assert {event.gap.reason for event in call.of(1, "gap")} == {pb.Gap.OVERLOADED}
        last = [e for e in call.events[1] if e.HasField("result")][-1]
        assert last.result.window == 399
        assert (await call.close(2)).answered == 400
        assert reasons(call, 1) == []


async def test_a_reader_that_stops_harms_only_itself(running: Running) -> None:
    """What it does not take is bounded; once it reads again it learns what it has missed."""
    one = [("grpc.use_local_subchannel_pool", 1)]
    # gRPC would take megabytes for a reader who does not read, where the network is fast.
    narrow = [*one, ("grpc.http2.bdp_probe", 0)]
    async with (
        grpc.aio.insecure_channel(running.server.grpc, options=narrow) as channel,
        grpc.aio.insecure_channel(running.server.grpc, options=one) as other,
        StreamCall(channel) as stalled,
        StreamCall(other) as neighbour,
    ):
        # Results of 2 kB: what the transport and the outbox hold between them is far less than all.
        more = {"overload": pb.OVERLOAD_DROP_OLDEST, "buffer_samples": 2048}
        await stalled.open(1, model="double", window=512, **more)
        await neighbour.open(1, model="double", window=512)
        stalled.reading.clear()
        part = noise(0, 1024)
        for number in range(1500):
            await stalled.send(chunk(1, 1024 * number, part))
            if number % 50 == 0:
                await neighbour.send(chunk(1, 512 * (number // 50), part[:512]))
        closed = await neighbour.close(1)
        assert (closed.answered, closed.dropped) == (30, 0)
        assert len(stalled.of(1, "result")) < 100
        stalled.reading.set()
        closed = await stalled.close(1)
        assert closed.windows == 3000
        assert closed.dropped > 0
        assert covered(stalled, 1) == (closed.answered, closed.dropped)
        assert reasons(stalled, 1) == []


async def test_refuse_loses_nothing_and_stops_credit(channel: grpc.aio.Channel) -> None:
    async with StreamCall(channel) as call:
        opened = await call.open(1, model="slow", window=4, buffer_samples=32)
        up_to, credits_, at = opened.up_to_sample, 0, 0
        for _ in range(40):
            while up_to - at < 16:
                credits_ += 1
                up_to = (await call.wait_for(1, "credit", credits_)).credit.up_to_sample
            await call.send(chunk(1, at, noise(at, 16)))
            at += 16
        closed = await call.close(1)
        assert (closed.answered, closed.dropped) == (160, 0)
        assert reasons(call, 1) == []
        await call.open(2, model="slow", window=4, buffer_samples=32)
        await call.send(*(chunk(2, at, noise(at, 16)) for at in range(0, 1600, 16)))
        await call.wait_for(2, "error")
        assert "CREDIT_EXCEEDED" in reasons(call, 2)


async def test_late_windows_are_in_gaps(channel: grpc.aio.Channel) -> None:
    async with StreamCall(channel) as call:
        await call.open(1, model="slow", window=4, latency_objective_us=1)
        await call.send(chunk(1, 0, noise(0, 40)))
        closed = await call.close(1)
        assert (closed.answered, closed.dropped) == (0, 10)
        assert {event.gap.reason for event in call.of(1, "gap")} == {pb.Gap.LATE}


async def test_the_counters(channel: grpc.aio.Channel, running: Running) -> None:
    async with StreamCall(channel) as call:
        await call.open(1, model="double", window=4)
        await call.send(chunk(1, 0, noise(0, 8)), chunk(1, 0, noise(0, 8)))
        await call.wait_for(1, "result", 2)
        await call.wait_for(1, "error")
        status, text = await asyncio.to_thread(running.server.get, "/metrics")
    assert status == 200
    # Sessions of other tests may wait to be resumed.
    assert re.search(r"^headrace_sessions [1-9]", text, re.MULTILINE)
    assert 'headrace_windows_total{outcome="answered"}' in text
    assert 'headrace_commands_refused_total{reason="SEQUENCE_REPEATED"}' in text


async def test_a_stop_does_not_wait_for_ever_on_who_does_not_acknowledge(
    tmp_path: pathlib.Path,
) -> None:
    """What could not be run for want of acknowledgements is in a gap; the exit code is 0."""
    models.write(tmp_path / "models", "double", models.scaled(2.0))
    arguments = (tmp_path / "models", "--grace-seconds=0.2")
    with server.serving(tmp_path / "server.log", *arguments) as up:
        async with grpc.aio.insecure_channel(up.grpc) as channel, StreamCall(channel) as call:
            opened = await call.open(1, model="double", window=1, ttl_ms=60_000)
            await call.send(chunk(1, 0, noise(0, 1000)))
            await call.wait_for(1, "result", opened.max_outstanding)
            up.terminate()
            closed = (await call.wait_for(1, "closed")).closed
            assert (closed.answered, closed.dropped) == (opened.max_outstanding, 744)
            assert covered(call, 1) == (closed.answered, closed.dropped)
            assert {event.gap.reason for event in call.of(1, "gap")} == {pb.Gap.STOPPING}
            await asyncio.wait([call._reader])
            assert await call.call.code() is grpc.StatusCode.UNAVAILABLE
        assert await asyncio.to_thread(up.wait) == 0


async def test_a_stop_closes_sessions_in_order(tmp_path: pathlib.Path) -> None:
    models.write(
        tmp_path / "models", "slow", models.slowed(models.scaled(2.0), 3000), toml="instances = 1\n"
    )
    with server.serving(tmp_path / "server.log", tmp_path / "models") as up:
        async with grpc.aio.insecure_channel(up.grpc) as channel, StreamCall(channel) as call:
            await call.open(1, model="slow", window=4, tail=pb.TAIL_PAD, ttl_ms=1000)
            await call.send(chunk(1, 0, noise(0, 42)))
            await call.wait_for(1, "result")
            up.terminate()
            closed = (await call.wait_for(1, "closed")).closed
            assert (closed.reason, closed.samples) == (pb.Closed.STOPPING, 42)
            assert (closed.answered, closed.dropped) == (10, 0)
            await asyncio.wait([call._reader])
            assert await call.call.code() is grpc.StatusCode.UNAVAILABLE
        assert await asyncio.to_thread(up.wait) == 0
