"""How a sensor stream is opened: options as object and as keywords, and the message they make."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Literal, TypedDict, get_args

import numpy as np
import numpy.typing as npt

from headrace.client.options import expect
from headrace.client.tensors import Inputs, as_tensor
from headrace.inference.tensors import DATATYPES, Datatype, datatype_of, encode_raw
from headrace.stream.v1 import stream_pb2 as pb

Overload = Literal["refuse", "drop_oldest", "latest_only"]
Tail = Literal["drop", "pad", "short"]
NonFinite = Literal["refuse", "allow"]
Layout = Literal["", "samples", "samples_channels", "channels_samples"]

_OVERLOAD = {
    "refuse": pb.OVERLOAD_REFUSE,
    "drop_oldest": pb.OVERLOAD_DROP_OLDEST,
    "latest_only": pb.OVERLOAD_LATEST_ONLY,
}
_TAIL = {"drop": pb.TAIL_DROP, "pad": pb.TAIL_PAD, "short": pb.TAIL_SHORT}
_NON_FINITE = {"refuse": pb.NON_FINITE_REFUSE, "allow": pb.NON_FINITE_ALLOW}
_LAYOUT = {
    "": pb.LAYOUT_UNSPECIFIED,
    "samples": pb.LAYOUT_SAMPLES,
    "samples_channels": pb.LAYOUT_SAMPLES_CHANNELS,
    "channels_samples": pb.LAYOUT_CHANNELS_SAMPLES,
}
# What the protocol's uint32 and milliseconds in uint64 can hold, and a little sense.
_MOST_SAMPLES, _MOST_SECONDS = 2**32 - 1, 10**9


@dataclass(frozen=True, slots=True)
class Signal:
    """One input of the model that windows are cut for.

    channels: values of one sample. dtype: of the arrays that are sent, as the model's input has it;
        a NumPy dtype, or "BF16" for `uint16` bit patterns. Nothing is converted.
    layout: how a window lies in the input after the batch dimension: "samples" [n],
        "samples_channels" [n, c] or "channels_samples" [c, n]; empty where only one fits. Arrays
        that are sent are always [samples, channels].
    """

    channels: int = 1
    dtype: npt.DTypeLike = np.float32
    layout: Layout = ""

    def __post_init__(self) -> None:
        _check_range("channels", self.channels, 1, _MOST_SAMPLES)
        _check_choice("layout", self.layout, get_args(Layout))
        if not self.datatype.itemsize:
            raise ValueError("dtype: text is no signal")

    @property
    def datatype(self) -> Datatype:
        """The protocol's name for `dtype`. Raises TypeError where it has none."""
        if isinstance(self.dtype, str) and self.dtype in DATATYPES:
            return DATATYPES[self.dtype]
        return datatype_of(np.empty(0, self.dtype))


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """Options of a sensor stream. Times are in seconds, lengths in samples.

    signals: the inputs that carry the signal, by name, in which case each `send` brings a dict of
        arrays; None for the model's only input, with `channels`, `dtype` and `layout` as `Signal`
        has them.
    version: of the model; empty follows the highest one that is served.
    context: samples before a window that the model gets in front of it; zeros at the start.
    tail: what becomes of samples that fill no window at a flush or at the end: "drop", "pad" with
        zeros, or "short".
    overload: what gives way when windows come faster than they are computed or taken: "refuse"
        makes `send` wait; "drop_oldest" and "latest_only" drop windows, each reported in a `Gap`.
    objective: from the arrival of a window's last sample to its result; a window that cannot make
        it is dropped, in a `Gap`. None: best effort.
    ttl: how long the session outlives its connection. 0: a broken connection ends it.
    outputs: names of the outputs to send; None for all.
    constants: inputs that are no signals, the same for every window; shaped for one window, batch
        dimension included.
    initial_state: where a stateful model starts, by state input; zeros for those not named.
    non_finite: whether NaN and infinities are refused (`send` raises ValueError) or given to the
        model.
    priority: 1 is the most urgent; 0 leaves it to the model.
    buffer: samples that may wait on the server; 0 for as many as it allows. The client keeps at
        most as many, to send again after a broken connection.
    max_unread: results that wait here to be taken before `send` and the server wait too.
    """

    signals: Mapping[str, Signal] | None = None
    channels: int = 1
    dtype: npt.DTypeLike = np.float32
    layout: Layout = ""
    version: str = ""
    context: int = 0
    tail: Tail = "drop"
    overload: Overload = "refuse"
    objective: float | None = None
    ttl: float = 60.0
    outputs: Sequence[str] | None = None
    constants: Inputs = field(default_factory=dict)
    initial_state: Inputs = field(default_factory=dict)
    non_finite: NonFinite = "refuse"
    priority: int = 0
    buffer: int = 0
    max_unread: int = 4096

    def __post_init__(self) -> None:
        if isinstance(self.outputs, str):
            raise TypeError(f"outputs takes a sequence of names: [{self.outputs!r}]")
        if self.signals is not None and not self.signals:
            raise ValueError("signals: expected at least one, got none")
        _check_choice("tail", self.tail, get_args(Tail))
        _check_choice("overload", self.overload, get_args(Overload))
        _check_choice("non_finite", self.non_finite, get_args(NonFinite))
        _check_range("context", self.context, 0, _MOST_SAMPLES)
        _check_range("priority", self.priority, 0, _MOST_SAMPLES)
        _check_range("buffer", self.buffer, 0, 2**63)
        _check_range("max_unread", self.max_unread, 1, 2**63)
        _check_range("ttl", self.ttl, 0, _MOST_SECONDS)
        if self.objective is not None and not 0 < self.objective <= _MOST_SECONDS:
            raise ValueError(f"objective: expected more than 0 seconds, got {self.objective}")

    @property
    def formats(self) -> Mapping[str, Signal]:
        """Every signal by the name of its input; the empty name is the model's only input."""
        if self.signals is not None:
            return self.signals
        return {"": Signal(self.channels, self.dtype, self.layout)}


class StreamKeywords(TypedDict, total=False):
    """The fields of `StreamOptions` as keywords of `stream`."""

    signals: Mapping[str, Signal] | None
    channels: int
    dtype: npt.DTypeLike
    layout: Layout
    version: str
    context: int
    tail: Tail
    overload: Overload
    objective: float | None
    ttl: float
    outputs: Sequence[str] | None
    constants: Inputs
    initial_state: Inputs
    non_finite: NonFinite
    priority: int
    buffer: int
    max_unread: int


@dataclass(frozen=True, slots=True)
class Framing:
    """How windows are cut. hop: 0 is the window. sample_rate: samples per second."""

    window: int
    sample_rate: float
    hop: int = 0

    def __post_init__(self) -> None:
        expect("window", self.window, Integral, "a number of samples")
        expect("hop", self.hop, Integral, "a number of samples")
        expect("sample_rate", self.sample_rate, Real, "samples per second")
        _check_range("window", self.window, 1, _MOST_SAMPLES)
        _check_range("hop", self.hop, 0, _MOST_SAMPLES)
        if not (math.isfinite(self.sample_rate) and self.sample_rate > 0):
            raise ValueError(f"sample_rate: expected more than 0, got {self.sample_rate}")


def opening(model: str, framing: Framing, options: StreamOptions) -> pb.Open:
    """The message that opens the session.

    Raises TypeError or ValueError, naming the tensor, for constants and states that cannot be sent.
    """
    return pb.Open(
        model=model,
        version=options.version,
        signals=[
            pb.Signal(
                input=name,
                datatype=signal.datatype.name,
                channels=signal.channels,
                layout=_LAYOUT[signal.layout],
            )
            for name, signal in options.formats.items()
        ],
        window=framing.window,
        hop=framing.hop,
        sample_rate_hz=framing.sample_rate,
        context=options.context,
        latency_objective_us=max(1, round(options.objective * 1e6)) if options.objective else 0,
        overload=_OVERLOAD[options.overload],
        tail=_TAIL[options.tail],
        non_finite=_NON_FINITE[options.non_finite],
        # Rounded up: 0 would mean that the session does not outlive its connection.
        ttl_ms=math.ceil(options.ttl * 1e3),
        buffer_samples=options.buffer,
        outputs=list(options.outputs or ()),
        constants=_tensors("constants", options.constants),
        initial_state=_tensors("initial_state", options.initial_state),
        priority=options.priority,
    )


def _tensors(field_: str, values: Inputs) -> list[pb.Tensor]:
    tensors = []
    for name, value in values.items():
        try:
            array, datatype = as_tensor(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{field_} {name!r}: {error}") from error
        tensors.append(
            pb.Tensor(
                name=name,
                datatype=datatype.name,
                shape=array.shape,
                data=encode_raw(array, datatype),
            )
        )
    return tensors


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        expected = ", ".join(map(repr, choices))
        raise ValueError(f"{name}: expected one of {expected}, got {value!r}")


def _check_range(name: str, value: float, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ValueError(f"{name}: expected {least} to {most}, got {value}")
