"""Sensor streams through the real server: what is in a window."""

from __future__ import annotations

import grpc
import numpy as np

from headrace.stream.v1 import stream_pb2 as pb
from support.streaming import (
    WIDTH,
    Running,
    StreamCall,
    array,
    chunk,
    direct,
    noise,
    outputs,
)


async def test_signals_of_several_channels_and_several_signals(channel: grpc.aio.Channel) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(64).astype(np.float32) for _ in "ab")
    m = rng.standard_normal((64, 3)).astype(np.float32)
    async with StreamCall(channel) as call:
        two = [pb.Signal(input="b"), pb.Signal(input="a")]
        await call.open(1, model="aligned", window=16, signals=two, outputs=["difference"])
        await call.send(chunk(1, 0, b[:20], a[:20]), chunk(1, 20, b[20:], a[20:]))
        await call.close(1)
        found = np.concatenate([o[0] for o in outputs(call, 1)])
        np.testing.assert_array_equal(found, a - b)
        await call.open(2, model="matrix", window=16, signals=[pb.Signal(channels=3)])
        await call.send(chunk(2, 0, m[:33]), chunk(2, 33, m[33:]))
        await call.close(2)
        np.testing.assert_array_equal(np.concatenate([o[0] for o in outputs(call, 2)]), m)


async def test_context_padding_and_flush(channel: grpc.aio.Channel) -> None:
    signal = np.arange(1, 11, dtype=np.float32)
    async with StreamCall(channel) as call:
        await call.open(1, model="double", window=4, context=2, tail=pb.TAIL_PAD)
        await call.send(chunk(1, 0, signal[:6]), pb.Command(handle=1, flush=pb.Flush()))
        flushed = (await call.wait_for(1, "flushed")).flushed
        assert (flushed.windows, flushed.samples) == (2, 6)
        await call.send(chunk(1, 6, signal[6:]))
        await call.close(1)
        found = [(o[0] / 2).tolist() for o in outputs(call, 1)]
        assert found == [[0, 0, 1, 2, 3, 4], [3, 4, 5, 6, 0, 0], [5, 6, 7, 8, 9, 10]]
        await call.open(2, model="double", window=4, tail=pb.TAIL_SHORT)
        await call.send(chunk(2, 0, signal))
        await call.close(2)
        assert [o.shape[1] for o in outputs(call, 2)] == [4, 4, 2]


async def test_a_given_state_is_where_it_starts(
    channel: grpc.aio.Channel, running: Running
) -> None:
    state = np.random.default_rng(5).standard_normal((2, 1, 3)).astype(np.float32)
    signal = noise(5, WIDTH)
    expected = direct(running.repository, "recurrent").run(
        ["y"], {"x": signal[None], "state": state}
    )[0]
    async with StreamCall(channel) as call:
        tensor = pb.Tensor(name="state", datatype="FP32", shape=state.shape, data=state.tobytes())
        opened = await call.open(1, model="recurrent", window=WIDTH, initial_state=[tensor])
        assert list(opened.state_inputs) == ["state"]
        await call.send(chunk(1, 0, signal))
        await call.wait_for(1, "result")
        np.testing.assert_allclose(outputs(call, 1)[0], expected, atol=1e-6)


async def test_the_first_window_of_a_session_starts_it(channel: grpc.aio.Channel) -> None:
    async with StreamCall(channel) as call:
        for handle in (1, 2):
            await call.open(handle, model="controlled", window=1, outputs=["y", "seen"])
            await call.send(chunk(handle, 0, np.arange(1, 5, dtype=np.float32)))
            await call.close(handle)
            assert [float(y[0, 0]) for y in outputs(call, handle)] == [1, 3, 6, 10]
            seen = [array(e.result.outputs[1])[0] for e in call.of(handle, "result")]
            assert [row[:3].tolist() for row in seen] == [
                [1, 1, 0],
                [0, 1, 0],
                [0, 1, 0],
                [0, 1, 0],
            ]
