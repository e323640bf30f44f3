"""What a stream may be opened with, and which samples it takes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from headrace.client import Signal, StreamOptions
from headrace.client.stream_options import Framing, opening
from headrace.client.stream_samples import Sampler
from headrace.stream.v1 import stream_pb2 as pb


def test_everything_asked_for_is_in_the_message() -> None:
    options = StreamOptions(
        signals={"a": Signal(3, np.int16, "channels_samples"), "b": Signal(dtype="BF16")},
        version="2",
        context=7,
        tail="pad",
        overload="latest_only",
        objective=0.25,
        ttl=1.5,
        outputs=["y"],
        constants={"sr": np.array(16000)},
        initial_state={"h": np.ones((2, 1), np.float32)},
        non_finite="allow",
        priority=2,
        buffer=1000,
    )
    assert opening("m", Framing(20, 12.5, 10), options) == pb.Open(
        model="m",
        version="2",
        signals=[
            pb.Signal(input="a", datatype="INT16", channels=3, layout=pb.LAYOUT_CHANNELS_SAMPLES),
            pb.Signal(input="b", datatype="BF16", channels=1),
        ],
        window=20,
        hop=10,
        context=7,
        sample_rate_hz=12.5,
        latency_objective_us=250_000,
        overload=pb.OVERLOAD_LATEST_ONLY,
        tail=pb.TAIL_PAD,
        non_finite=pb.NON_FINITE_ALLOW,
        ttl_ms=1500,
        buffer_samples=1000,
        outputs=["y"],
        constants=[pb.Tensor(name="sr", datatype="INT64", data=(16000).to_bytes(8, "little"))],
        initial_state=[
            pb.Tensor(name="h", datatype="FP32", shape=[2, 1], data=np.ones(2, "<f4").tobytes())
        ],
        priority=2,
    )


def test_a_short_time_to_live_is_not_none_at_all() -> None:
    assert opening("m", Framing(1, 1), StreamOptions(ttl=1e-6)).ttl_ms == 1
    assert opening("m", Framing(1, 1), StreamOptions(ttl=0)).ttl_ms == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tail": "cut"}, "tail: expected one of 'drop', 'pad', 'short', got 'cut'"),
        ({"overload": "queue"}, "overload: expected one of 'refuse', .*, got 'queue'"),
        ({"non_finite": ""}, "non_finite: expected one of 'refuse', 'allow', got ''"),
        ({"context": -1}, "context: expected 0 to"),
        ({"ttl": -1}, "ttl: expected 0 to"),
        ({"ttl": float("nan")}, "ttl: expected 0 to"),
        ({"objective": 0}, "objective: expected more than 0 seconds, got 0"),
        ({"max_unread": 0}, "max_unread: expected 1 to"),
        ({"signals": {}}, "signals: expected at least one"),
    ],
)
def test_options_that_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StreamOptions(**wrong)


@pytest.mark.parametrize(
    ("framing", "message"),
    [
        ((0, 1), "window: expected 1 to"),
        ((1, 0), "sample_rate: expected more than 0, got 0"),
        ((1, float("inf")), "sample_rate"),
        ((1, 1, -1), "hop: expected 0 to"),
    ],
)
def test_framings_that_cannot_be(framing: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Framing(*framing)


def test_signals_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="channels: expected 1 to"):
        Signal(0)
    with pytest.raises(ValueError, match="text is no signal"):
        Signal(dtype=object)
    with pytest.raises(TypeError, match="complex128"):
        Signal(dtype=complex)
    with pytest.raises(TypeError, match=r"outputs takes a sequence of names: \['y'\]"):
        StreamOptions(outputs="y")
    with pytest.raises(TypeError, match="constants 'c'"):
        opening("m", Framing(1, 1), StreamOptions(constants={"c": np.array(1j)}))


ONE = {"": Signal()}
TWO = {"a": Signal(2), "b": Signal(dtype=np.int16)}


@pytest.mark.parametrize(
    ("signals", "samples", "message"),
    [
        (ONE, np.zeros(3), "samples: expected float32 .FP32., got float64"),
        (ONE, np.zeros((3, 2), np.float32), r"expected the shape \[samples\] or \[samples, 1\], "),
        (TWO, np.zeros(3, np.float32), "expected a dict of 'a', 'b', got ndarray"),
        (TWO, {"a": [[1, 2]]}, "expected samples of 'a', 'b', got 'a'"),
        (TWO, {"a": [[1, 2]], "b": [1, 2]}, "equally many samples of 'a', 'b', got 1, 2"),
        (TWO, {"a": [1, 2], "b": [1, 2]}, r"signal 'a': expected the shape \[samples, 2\], got"),
        (ONE, [0.0, float("nan")], "expected finite values, got nan in sample 1, channel 0"),
        ({"": Signal(dtype="BF16")}, np.array([0x3F80, 0x7F80], np.uint16), "in sample 1"),
    ],
)
def test_samples_that_do_not_fit(signals: Any, samples: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Sampler(signals, finite=True).read(samples)


def test_samples_travel_as_the_protocol_has_them() -> None:
    sampler = Sampler(TWO, finite=True)
    a = np.arange(8, dtype=np.float32).reshape(2, 4).T  # in no good order in memory
    arrays = sampler.read({"b": [1, 2, 3, 4], "a": a})
    chunk = sampler.cut(arrays, 1, 2, 99)
    assert chunk.count == 2
    assert chunk.timestamp_ns == 99
    assert chunk.data == [
        np.array([1, 5, 2, 6], "<f4").tobytes(),
        np.array([2, 3], "<i2").tobytes(),
    ]
    rest = sampler.rest(chunk, 1)
    assert rest.data == [np.array([2, 6], "<f4").tobytes(), np.array([3], "<i2").tobytes()]
    assert (rest.count, rest.timestamp_ns) == (1, None)


def test_big_endian_and_bfloat16_samples() -> None:
    sampler = Sampler(ONE, finite=True)
    (array,) = sampler.read(np.array([1.5], ">f4"))
    assert sampler.cut([array], 0, 1).data == [np.array([1.5], "<f4").tobytes()]
    for dtype in ("BF16", ml_dtypes.bfloat16):
        sampler = Sampler({"": Signal(dtype=dtype)}, finite=True)
        (array,) = sampler.read(np.array([1.0], ml_dtypes.bfloat16))
        assert sampler.cut([array], 0, 1).data == [b"\x80\x3f"]
        (array,) = sampler.read(np.array([0x3F80], np.uint16))
        assert sampler.cut([array], 0, 1).data == [b"\x80\x3f"]


def test_non_finite_samples_where_they_are_allowed() -> None:
    (array,) = Sampler(ONE, finite=False).read([float("inf")])
    assert np.isinf(array).all()
