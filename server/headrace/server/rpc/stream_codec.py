"""Between the messages of headrace.stream.v1 and what sessions are made of."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from headrace.inference.tensors import DATATYPES, decode_raw, encode_raw
from headrace.server import errors
from headrace.server.contract import InputTensor
from headrace.server.errors import StreamRefused
from headrace.server.streams.events import Closed, Event, Flushed, Gap, GapReason, Result
from headrace.server.streams.options import Overload
from headrace.server.streams.terms import Layout, OpenRequest, SignalRequest
from headrace.server.streams.window import Tail
from headrace.stream.v1 import stream_pb2 as pb

_OVERLOAD = {
    pb.OVERLOAD_UNSPECIFIED: Overload.REFUSE,
    pb.OVERLOAD_REFUSE: Overload.REFUSE,
    pb.OVERLOAD_DROP_OLDEST: Overload.DROP_OLDEST,
    pb.OVERLOAD_LATEST_ONLY: Overload.LATEST_ONLY,
}
_TAIL = {
    pb.TAIL_UNSPECIFIED: Tail.DROP,
    pb.TAIL_DROP: Tail.DROP,
    pb.TAIL_PAD: Tail.PAD,
    pb.TAIL_SHORT: Tail.SHORT,
}
_NON_FINITE = {
    pb.NON_FINITE_UNSPECIFIED: False,
    pb.NON_FINITE_REFUSE: False,
    pb.NON_FINITE_ALLOW: True,
}
_LAYOUT = {
    pb.LAYOUT_UNSPECIFIED: None,
    pb.LAYOUT_SAMPLES: Layout.SAMPLES,
    pb.LAYOUT_SAMPLES_CHANNELS: Layout.SAMPLES_CHANNELS,
    pb.LAYOUT_CHANNELS_SAMPLES: Layout.CHANNELS_SAMPLES,
}
_GAP = {
    GapReason.OVERLOADED: pb.Gap.OVERLOADED,
    GapReason.LATE: pb.Gap.LATE,
    GapReason.FAILED: pb.Gap.FAILED,
    GapReason.UNAVAILABLE: pb.Gap.UNAVAILABLE,
    GapReason.STOPPING: pb.Gap.STOPPING,
}
_EVENTS_TAG = bytes([pb.StreamResponse.EVENTS_FIELD_NUMBER << 3 | 2])
_HANDLE_TAG = bytes([pb.Event.HANDLE_FIELD_NUMBER << 3])


def read_open(message: pb.Open, caller: str) -> OpenRequest:
    """What a client asks. Raises StreamRefused for values that the protocol does not have."""
    return OpenRequest(
        model=message.model,
        version=message.version,
        signals=[_signal(signal, number) for number, signal in enumerate(message.signals)],
        window=message.window,
        hop=message.hop,
        context=message.context,
        rate=message.sample_rate_hz,
        objective=message.latency_objective_us / 1e6 or math.inf,
        overload=_known(_OVERLOAD, message.overload, "overload"),
        tail=_known(_TAIL, message.tail, "tail"),
        allow_non_finite=_known(_NON_FINITE, message.non_finite, "non_finite"),
        ttl=message.ttl_ms / 1e3,
        buffer=message.buffer_samples,
        outputs=list(message.outputs),
        constants=_tensors(message.constants, "constants"),
        initial_state=_tensors(message.initial_state, "initial_state"),
        priority=message.priority,
        caller=caller,
    )


def _signal(signal: pb.Signal, number: int) -> SignalRequest:
    layout = _known(_LAYOUT, signal.layout, f"signals[{number}].layout")
    return SignalRequest(signal.input, signal.datatype, signal.channels, layout)


def _known(values: dict[Any, Any], value: int, field: str) -> Any:
    if value not in values:
        raise StreamRefused(
            "INVALID_INPUT",
            f"open.{field}",
            f"expected one of {', '.join(map(str, values))}, got {value}",
        )
    return values[value]


def _tensors(messages: Iterable[pb.Tensor], field: str) -> list[InputTensor]:
    tensors = []
    for message in messages:
        datatype = DATATYPES.get(message.datatype)
        problem = f"unknown datatype '{message.datatype}'"
        if datatype is not None:
            try:
                if any(dim < 0 for dim in message.shape):
                    raise ValueError(f"expected dimensions of 0 or more, got {message.shape}")
                array = decode_raw(message.data, datatype, list(message.shape))
                tensors.append(InputTensor(message.name, message.datatype, array))
                continue
            except ValueError as error:
                problem = str(error)
        raise StreamRefused("INVALID_INPUT", f"open.{field}", f"'{message.name}': {problem}")
    return tensors


def encode_delivery(delivery: int, event: Event) -> bytes:
    """An Event message without its handle, which is the connection's."""
    message = pb.Event(delivery=delivery)
    if isinstance(event, Result):
        _result(message.result, event)
    elif isinstance(event, Gap):
        span = event.span
        gap = message.gap
        gap.first_window, gap.end_window = span.first_window, span.end_window
        gap.first_sample, gap.end_sample = span.first_sample, span.end_sample
        gap.reason, gap.message = _GAP[event.reason], event.message
    elif isinstance(event, Flushed):
        message.flushed.windows, message.flushed.samples = event.windows, event.samples
    elif isinstance(event, Closed):
        closed = message.closed
        closed.reason = pb.Closed.ASKED if event.asked else pb.Closed.STOPPING
        closed.samples, closed.windows = event.samples, event.windows
        closed.answered, closed.dropped = event.answered, event.dropped
    message_bytes: bytes = message.SerializeToString()
    return message_bytes


def _result(message: pb.Result, event: Result) -> None:
    span, computed = event.span, event.computed
    message.window = span.first_window
    message.first_sample, message.end_sample = span.first_sample, span.end_sample
    message.start_ns, message.end_ns = event.start_ns, event.end_ns
    message.queue_us = int(computed.queue_seconds * 1e6)
    message.compute_us = int(computed.compute_seconds * 1e6)
    message.batch_size = computed.batch_size
    for spec, array in computed.outputs:
        data = encode_raw(array, DATATYPES[spec.datatype])
        message.outputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape, data=data)


def encode_error(error: Exception, ended: bool, next_sequence: int) -> bytes:
    """An Error as an Event message without its handle."""
    message = pb.Event()
    row = errors.row_of(error)
    told = message.error
    told.code, told.reason = row.code.value[0], row.reason
    told.field = error.field if isinstance(error, StreamRefused) else ""
    told.message, told.ended = errors.message_of(error), ended
    told.next_sequence = next_sequence
    encoded: bytes = message.SerializeToString()
    return encoded


def envelope(handle: int, event: bytes) -> bytes:
    """An entry of StreamResponse.events: protobuf merges the fields that stand side by side."""
    body = _HANDLE_TAG + _varint(handle) + event if handle else event
    return _EVENTS_TAG + _varint(len(body)) + body


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
