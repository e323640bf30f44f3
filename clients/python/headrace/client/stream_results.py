"""What comes back on a sensor stream, as plain typed objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from headrace.client.errors import BadResponse
from headrace.client.tensors import as_output
from headrace.inference.tensors import DATATYPES, Array, decode_raw
from headrace.stream.v1 import stream_pb2 as pb

GapReason = Literal["overloaded", "late", "failed", "unavailable", "stopping", "unspecified"]

_REASON: dict[int, GapReason] = {
    pb.Gap.OVERLOADED: "overloaded",
    pb.Gap.LATE: "late",
    pb.Gap.FAILED: "failed",
    pb.Gap.UNAVAILABLE: "unavailable",
    pb.Gap.STOPPING: "stopping",
}


@dataclass(frozen=True, slots=True, eq=False)
class WindowResult(Mapping[str, Array]):
    """The answer to one window: its outputs by name, and what it spans.

    Arrays are for one window, batch dimension included; see `InferResult` for their dtypes.

    window: its index, counting every window of the stream. first_sample, end_sample: what it
        spans, without context and padding; `end_sample` itself is not in it.
    start_ns, end_ns: the same in time, in nanoseconds of the client's clock, by the timestamps that
        were sent and the sample rate; without timestamps the first sample is at 0.
    queue_seconds: from the window's last sample to the start of its run. compute_seconds: of the
        run. batch_size: windows and requests that shared it.
    """

    window: int
    first_sample: int
    end_sample: int
    start_ns: int
    end_ns: int
    outputs: Mapping[str, Array]
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    batch_size: int = 1

    # Two results are the same when they are the same object: comparing arrays gives arrays.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __getitem__(self, name: str) -> Array:
        return self.outputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs)

    def __len__(self) -> int:
        return len(self.outputs)

    @property
    def start(self) -> float:
        """`start_ns` in seconds."""
        return self.start_ns / 1e9

    @property
    def end(self) -> float:
        """`end_ns` in seconds."""
        return self.end_ns / 1e9


@dataclass(frozen=True, slots=True)
class Gap:
    """Windows that have no result, in their place among those that have one.

    The windows from `first_window` up to, but not with, `end_window`; the samples likewise.
    reason: "overloaded": given way, as the overload choice says; "late": the objective could not be
        met; "failed": the model failed on this very window; "unavailable": the model is not served
        now; "stopping": the server stops. message: for people.
    """

    first_window: int
    end_window: int
    first_sample: int
    end_sample: int
    reason: GapReason
    message: str

    @property
    def windows(self) -> int:
        """How many there are."""
        return self.end_window - self.first_window


@dataclass(frozen=True, slots=True)
class StreamSummary:
    """What a stream came to: samples that the server received, windows that it cut of them, and how
    many of these had results and how many lie in gaps."""

    samples: int
    windows: int
    answered: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Flushed:
    """All that came before a flush is answered: windows and samples so far."""

    windows: int
    samples: int


def read_result(message: pb.Result) -> WindowResult:
    """Raises BadResponse where the message contradicts itself."""
    return WindowResult(
        message.window,
        message.first_sample,
        message.end_sample,
        message.start_ns,
        message.end_ns,
        {tensor.name: _array(tensor) for tensor in message.outputs},
        message.queue_us / 1e6,
        message.compute_us / 1e6,
        message.batch_size,
    )


def _array(tensor: pb.Tensor) -> Array:
    datatype = DATATYPES.get(tensor.datatype)
    if datatype is None:
        raise BadResponse(f"output {tensor.name!r}: no datatype {tensor.datatype!r}")
    try:
        return as_output(decode_raw(tensor.data, datatype, tensor.shape), datatype)
    except ValueError as error:
        raise BadResponse(f"output {tensor.name!r}: {error}") from error


def read_gap(message: pb.Gap) -> Gap:
    return Gap(
        message.first_window,
        message.end_window,
        message.first_sample,
        message.end_sample,
        _REASON.get(message.reason, "unspecified"),
        message.message,
    )


def read_closed(message: pb.Closed) -> StreamSummary:
    return StreamSummary(message.samples, message.windows, message.answered, message.dropped)
