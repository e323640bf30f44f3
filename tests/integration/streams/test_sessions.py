"""Sensor streams through the real server: sessions, and what is asked of them."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np

from headrace.stream.v1 import stream_pb2 as pb
from support.streaming import (
    PATIENCE,
    WIDTH,
    Running,
    StreamCall,
    array,
    chunk,
    noise,
    opening,
    outputs,
    reasons,
    recurrent_loop,
)


async def test_a_stream_from_open_to_close(channel: grpc.aio.Channel) -> None:
    signal = np.arange(1000, dtype=np.float32)
    async with StreamCall(channel) as call:
        opened = await call.open(1, model="double", window=100, hop=50)
        assert (opened.version, opened.resume_token) == ("1", b"")
        assert (opened.up_to_sample, opened.largest_chunk) == (4096, 2048)
        at = 0
        for size in (1, 99, 300, 250, 350):
            await call.send(chunk(1, at, signal[at : at + size]))
            at += size
        closed = await call.close(1)
        assert (closed.samples, closed.windows, closed.answered) == (1000, 19, 19)
        events = call.of(1, "result")
        assert [event.delivery for event in events] == list(range(1, 20))
        for number, event in enumerate(events):
            result = event.result
            first = number * 50
            assert (result.first_sample, result.end_sample) == (first, first + 100)
            assert (result.start_ns, result.end_ns) == (first * 10**7, (first + 100) * 10**7)
            assert result.batch_size >= 1
            np.testing.assert_array_equal(outputs(call, 1)[number][0], 2 * signal[first:][:100])
        assert await call.end() is grpc.StatusCode.OK


async def test_windows_of_many_sessions_are_those_of_a_loop(
    channel: grpc.aio.Channel, running: Running
) -> None:
    """50 stateful sessions of different lengths, in chunks of different sizes, all interleaved."""
    rng = np.random.default_rng(1)
    signals = {handle: noise(handle, int(rng.integers(40, 400))) for handle in range(1, 51)}
    sent = dict.fromkeys(signals, 0)
    async with StreamCall(channel) as call:
        for handle in signals:
            await call.open(handle, model="recurrent", window=WIDTH)
        while open_ := [handle for handle in signals if sent[handle] < len(signals[handle])]:
            commands = []
            for handle in rng.permutation(open_):
                at, size = sent[int(handle)], int(rng.integers(1, 60))
                part = signals[int(handle)][at : at + size]
                commands.append(chunk(int(handle), at, part))
                sent[int(handle)] += len(part)
            await call.send(*commands)
        await call.send(*(pb.Command(handle=handle, close=pb.Close()) for handle in signals))
        shared = 0
        for handle, signal in signals.items():
            await call.wait_for(handle, "closed")
            expected = recurrent_loop(running.repository, signal)
            assert len(outputs(call, handle)) == len(expected)
            for found, loop in zip(outputs(call, handle), expected, strict=True):
                np.testing.assert_allclose(found, loop, atol=1e-5)
            shared += sum(e.result.batch_size > 1 for e in call.of(handle, "result"))
        assert shared > 0


async def test_a_session_survives_cut_connections(
    channel: grpc.aio.Channel, running: Running
) -> None:
    """Each connection brings a part, is cut, and may lose what was under way."""
    signal = noise(7, 403)
    rng = np.random.default_rng(7)
    expected = recurrent_loop(running.repository, signal)
    results: dict[int, Any] = {}
    delivery = sequence = 0
    id_ = token = b""
    for part in range(12):
        async with StreamCall(channel) as call:
            if not id_:
                opened = await call.open(5, model="recurrent", window=WIDTH, ttl_ms=60_000)
                id_, token = opened.session_id, opened.resume_token
            else:
                resume = pb.Resume(session_id=id_, resume_token=token, delivery=delivery)
                await call.send(pb.Command(handle=part, resume=resume))
                resumed = (await call.wait_for(part, "resumed")).resumed
                assert sequence - 60 <= resumed.next_sequence <= sequence
                sequence = resumed.next_sequence
            handle = part or 5
            while sequence < len(signal) * (part + 1) // 12:
                size = int(rng.integers(1, 60))
                await call.send(chunk(handle, sequence, signal[sequence : sequence + size]))
                sequence = min(len(signal), sequence + size)
            if part == 11:
                await call.close(handle)
                assert reasons(call, handle) == []
            elif part % 3:
                await call.wait_for(handle, "result", 3)
                await call.send(
                    pb.Command(
                        handle=handle, ack=pb.Ack(delivery=call.of(handle, "result")[0].delivery)
                    )
                )
            call.cut()
            for event in [*call.of(handle, "result"), *call.of(handle, "closed")]:
                assert event.delivery == delivery + 1  # in order, without a hole or a repetition
                delivery = event.delivery
                if event.HasField("result"):
                    results[event.result.window] = array(event.result.outputs[0])
    assert list(results) == list(range(len(expected)))
    for window, loop in enumerate(expected):
        np.testing.assert_allclose(results[window], loop, atol=1e-5)


async def test_a_session_can_be_taken_from_a_connection_that_still_holds_it(
    channel: grpc.aio.Channel,
) -> None:
    async with StreamCall(channel) as old, StreamCall(channel) as new:
        opened = await old.open(1, model="double", window=2, ttl_ms=10_000)
        await old.send(chunk(1, 0, noise(0, 5)))
        await old.wait_for(1, "result", 2)
        resume = pb.Resume(session_id=opened.session_id, resume_token=opened.resume_token)
        await new.send(pb.Command(handle=9, resume=resume))
        error = (await old.wait_for(1, "error")).error
        assert (error.reason, error.ended) == ("SESSION_TAKEN", True)
        resumed = (await new.wait_for(9, "resumed")).resumed
        assert resumed.next_sequence == 5
        await new.send(chunk(9, 5, noise(1, 1)))
        await new.wait_for(9, "result", 3)
        assert [event.delivery for event in new.of(9, "result")] == [1, 2, 3]
        await old.send(chunk(1, 6, noise(1, 1)))
        assert (await old.wait_for(1, "error", 2)).error.reason == "UNKNOWN_HANDLE"


async def test_wrong_and_expired_tokens(channel: grpc.aio.Channel) -> None:
    async with StreamCall(channel) as call:
        kept = await call.open(1, model="double", window=2, ttl_ms=60_000)
        brief = await call.open(2, model="double", window=2, ttl_ms=1)
        gone = await call.open(3, model="double", window=2)
        call.cut()
    async with StreamCall(channel) as call:
        attempts = [
            (kept.session_id, kept.resume_token[:-1] + b"?"),
            (kept.session_id, b""),
            (b"nobody", kept.resume_token),
            (gone.session_id, b""),
        ]
        for handle, (id_, token) in enumerate(attempts, 1):
            resume = pb.Resume(session_id=id_, resume_token=token)
            await call.send(pb.Command(handle=handle, resume=resume))
            error = (await call.wait_for(handle, "error")).error
            assert (error.code, error.reason) == (5, "UNKNOWN_SESSION")
            assert error.ended
    resume = pb.Resume(session_id=brief.session_id, resume_token=brief.resume_token)
    async with asyncio.timeout(PATIENCE):
        while True:  # until its millisecond is over, after the server has seen the cut
            async with StreamCall(channel) as call:
                await call.send(pb.Command(handle=1, resume=resume))
                event = await call.first(1)
            if event.HasField("error"):
                assert event.error.reason == "UNKNOWN_SESSION"
                break


async def test_bad_commands_are_named_and_harm_nobody(channel: grpc.aio.Channel) -> None:
    signal = noise(3, 64)
    bad = np.array([1, np.nan], np.float32)
    async with StreamCall(channel) as call:
        await call.open(1, model="double", window=8)
        await call.open(2, model="double", window=8)
        await call.send(chunk(1, 0, signal[:10], timestamp=1000))
        cases = [
            (chunk(1, 11, signal[10:12]), "SEQUENCE_GAP", "chunk.sequence"),
            (chunk(1, 4, signal[4:12]), "SEQUENCE_REPEATED", "chunk.sequence"),
            (chunk(1, 10, bad), "NON_FINITE", "chunk.data[0]"),
            (chunk(1, 10, signal[10:11], timestamp=999), "TIME_WENT_BACK", "chunk.timestamp_ns"),
            (chunk(1, 10, b"abc"), "WRONG_CHANNELS", "chunk.data[0]"),
            (chunk(1, 10, signal, signal), "INVALID_INPUT", "chunk.data"),
            (chunk(1, 10, np.zeros(2049, np.float32)), "CHUNK_TOO_LARGE", "chunk.data"),
            (pb.Command(handle=1, ack=pb.Ack(delivery=99)), "INVALID_INPUT", "ack.delivery"),
            (pb.Command(handle=1), "INVALID_INPUT", "command"),
            (
                pb.Command(handle=1, open=opening("double", 4)),
                "HANDLE_IN_USE",
                "handle",
            ),
        ]
        for number, (command, reason, field) in enumerate(cases, 1):
            await call.send(command)
            error = (await call.wait_for(1, "error", number)).error
            assert (error.reason, error.field, error.ended) == (reason, field, False)
            assert error.next_sequence == 10
        await call.send(chunk(7, 0, signal))
        unknown = (await call.wait_for(7, "error")).error
        assert (unknown.code, unknown.reason, unknown.ended) == (5, "UNKNOWN_HANDLE", True)
        await call.send(chunk(1, 10, signal[10:]), chunk(2, 0, signal))
        for handle in (1, 2):
            assert (await call.close(handle)).answered == 8
            np.testing.assert_array_equal(np.concatenate(outputs(call, handle), 1)[0], 2 * signal)
        assert await call.end() is grpc.StatusCode.OK


async def test_what_cannot_be_opened_is_named(channel: grpc.aio.Channel) -> None:
    cases: list[tuple[dict[str, Any], int, str, str]] = [
        ({"model": "nobody"}, 5, "", "no model is called 'nobody'"),
        ({"version": "7"}, 5, "", "no version '7'"),
        ({"window": 0}, 3, "open.window", "expected 1 or more samples, got 0"),
        ({"window": 3000}, 3, "open.window", "expected a buffer for two windows"),
        ({"sample_rate_hz": 0.0}, 3, "open.sample_rate_hz", "expected more than 0"),
        ({"ttl_ms": 10**9}, 3, "open.ttl_ms", "expected at most 600000, got 1000000000"),
        ({"buffer_samples": 5000}, 3, "open.buffer_samples", "expected at most 4096"),
        ({"buffer_samples": 10}, 3, "open.buffer_samples", "got 10"),
        ({"overload": 9}, 3, "open.overload", "got 9"),
        ({"signals": []}, 3, "open.signals", "expected at least one"),
        ({"signals": [pb.Signal(input="z")]}, 3, "open.signals[0].input", "expected one of x"),
        ({"signals": [pb.Signal(datatype="FP64")]}, 3, "open.signals[0].datatype", "FP32"),
        ({"signals": [pb.Signal(channels=2)]}, 3, "open.signals[0]", "of 2 channels"),
        ({"outputs": ["z"]}, 3, "open", "unknown output 'z'"),
        ({"model": "recurrent"}, 3, "open.signals[0]", "8 samples"),
        ({"model": "recurrent", "window": 4, "tail": pb.TAIL_SHORT}, 3, "open.tail", "shape"),
        ({"model": "text"}, 3, "open.signals[0].input", "text"),
        (
            {"model": "recurrent", "window": 4, "initial_state": [pb.Tensor(name="h")]},
            3,
            "open.initial_state",
            "datatype",
        ),
        ({"model": "aligned"}, 3, "open.signals[0].input", "expected one of a, b, got ''"),
    ]
    async with StreamCall(channel) as call:
        for handle, (fields, code, field, said) in enumerate(cases, 1):
            asked = opening(**{"model": "double", "window": 8, **fields})
            await call.send(pb.Command(handle=handle, open=asked))
            error = (await call.wait_for(handle, "error")).error
            assert (error.code, error.field, error.ended) == (code, field, True), error
            assert said in error.message
        assert await call.end() is grpc.StatusCode.OK


async def test_a_message_that_is_none_harms_nobody(channel: grpc.aio.Channel) -> None:
    call: Any = channel.stream_stream("/headrace.stream.v1.SensorStream/Stream")()
    await call.write(b"\xff\xff\xff")
    event = pb.StreamResponse.FromString(await call.read()).events[0]
    assert (event.handle, event.error.reason) == (0, "INVALID_INPUT")
    command = pb.Command(handle=1, open=opening("double", 4))
    await call.write(pb.StreamRequest(commands=[command]).SerializeToString())
    event = pb.StreamResponse.FromString(await call.read()).events[0]
    assert event.HasField("opened")
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_too_many_sessions_on_a_connection(channel: grpc.aio.Channel) -> None:
    async with StreamCall(channel) as call:
        for handle in range(100):
            await call.open(handle, model="double", window=4)
        await call.send(pb.Command(handle=100, open=opening("double", 4)))
        error = (await call.wait_for(100, "error")).error
        assert (error.code, error.reason) == (8, "TOO_MANY_SESSIONS")
        await call.close(0)
        await call.open(100, model="double", window=4)
