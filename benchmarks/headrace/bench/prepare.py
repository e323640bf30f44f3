"""Everything of a job that can be done before the clock runs: inputs, serialising, a first try."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from headrace.bench import inputs
from headrace.bench.adaptors import adaptor
from headrace.bench.calls import Kind
from headrace.bench.declared import metadata, refused
from headrace.bench.errors import BenchError
from headrace.bench.spec import Job, RequestSpec, SensorLoad
from headrace.bench.transports import Prepared
from headrace.bench.transports.channel import OPTIONS
from headrace.bench.transports.sensor import Stream
from headrace.client import Signal, StreamOptions
from headrace.client.stream_options import Framing
from headrace.inference.tensors import Array
from headrace.inference.v2.grpc_service_pb2 import ModelMetadataResponse

INFER = "/inference.GRPCInferenceService/ModelInfer"
# Distinct inputs of each kind of request: enough that no cache makes a server look fast, few enough
# for memory.
_MOST_SAMPLES, _MOST_BYTES = 64, 64 << 20
_LEAST_SAMPLES = 4
_PATIENCE = 120.0  # for the first answer of a model


@dataclass(frozen=True)
class Requests:
    """Those of a job, in its order: kinds, or for a sensor load streams."""

    kinds: tuple[Kind, ...] = ()
    streams: tuple[Stream, ...] = ()


def prepare(job: Job) -> Requests:
    """Makes the requests. Raises BenchError, naming the address, the model and the status, where
    the server does not answer or does not have the model, and for inputs that cannot be had."""
    rng = np.random.default_rng([job.seed, 2])  # not the sequences of arrival times and draws
    try:
        if isinstance(job.load, SensorLoad):
            return Requests(streams=tuple(_stream(job, job.load, r, rng) for r in job.requests))
        return Requests(kinds=tuple(_kind(job, request, rng) for request in job.requests))
    except ValueError as error:
        raise BenchError(str(error)) from error


def probe(job: Job, requests: Requests) -> None:
    """Sends one gRPC request of each kind, alone: what cannot work is found before the load, with
    the server's own words. Raises BenchError."""
    if job.target.protocol == "http":
        return
    with grpc.insecure_channel(job.target.address, options=list(OPTIONS.items())) as channel:
        method: Any = channel.unary_unary(INFER)
        # None for a sensor load, whose sessions say it when they are opened.
        for request, kind in zip(job.requests, requests.kinds, strict=False):
            try:
                method(kind.samples[0].body, timeout=_PATIENCE)
            except grpc.RpcError as error:
                raise refused(job.target, request, error) from error


def _kind(job: Job, request: RequestSpec, rng: np.random.Generator) -> Kind:
    declared = metadata(job.target, request)
    made = _prepared(job, request, declared, _LEAST_SAMPLES, rng)
    room = _MOST_BYTES // max(1, len(made[0].body))
    more = min(_MOST_SAMPLES, room) - len(made)
    if more > 0:
        made += _prepared(job, request, declared, more, rng)
    return Kind(tuple(made), request.deadline)


def _prepared(
    job: Job,
    request: RequestSpec,
    declared: ModelMetadataResponse,
    count: int,
    rng: np.random.Generator,
) -> list[Prepared]:
    if job.target.protocol == "http":
        make = adaptor(job.target.adaptor or "oip")
        samples = inputs.samples(request, declared, count, rng)
        return [make(request.model, sample) for sample in samples]
    bodies = inputs.bodies(request, declared, count, rng)
    return [Prepared(INFER, body) for body in bodies]


def _stream(job: Job, load: SensorLoad, request: RequestSpec, rng: np.random.Generator) -> Stream:
    """The signal is the model's first input; every other one is the same for all windows."""
    declared = metadata(job.target, request)
    if not declared.inputs:
        raise BenchError(f"model {request.model!r} at {job.target.address}: it has no inputs")
    first = declared.inputs[0]
    shape = request.shapes.get(first.name, one_window(first.shape, load.window))
    fixed = request.model_copy(update={"shapes": {**request.shapes, first.name: shape}})
    samples = inputs.samples(fixed, declared, _LEAST_SAMPLES, rng)
    signal = np.concatenate([as_signal(sample[first.name], load.window) for sample in samples])
    options = StreamOptions(
        signals={first.name: Signal(signal.shape[1], first.datatype)},
        version=request.version,
        constants={name: array for name, array in samples[0].items() if name != first.name},
        objective=request.deadline,
        ttl=0.0,
        non_finite="allow",
    )
    framing = Framing(load.window, load.sample_rate, load.hop or 0)
    return Stream(request.model, framing, options, signal, request.deadline)


def one_window(shape: Sequence[int], window: int) -> tuple[int, ...]:
    """`shape` with its open dimensions filled in: one row, and as long as a window."""
    return tuple(dim if dim > 0 else (1 if axis == 0 else window) for axis, dim in enumerate(shape))


def as_signal(array: Array, window: int) -> Array:
    """The samples [n, channels] of an input for one window: [1, n], [1, n, channels] or
    [1, channels, n], where n is `window`."""
    if array.ndim == 3 and array.shape[1] != window and array.shape[2] == window:
        array = array.swapaxes(1, 2)
    return array.reshape(-1, array.shape[2] if array.ndim == 3 else 1)
