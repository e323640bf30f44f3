"""Everything of a job that can be done before the clock runs: metadata, inputs, serialising."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import grpc
import numpy as np

from headrace.bench.adaptors import adaptor
from headrace.bench.calls import Kind
from headrace.bench.errors import BenchError
from headrace.bench.inputs import bodies, samples
from headrace.bench.spec import Job, RequestSpec, SensorLoad
from headrace.bench.transports import Prepared
from headrace.bench.transports.channel import OPTIONS
from headrace.bench.transports.sensor import Stream
from headrace.client import Signal, StreamOptions
from headrace.client.stream_options import Framing
from headrace.inference.tensors import Array
from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.inference.v2.grpc_service_pb2_grpc import GRPCInferenceServiceStub

INFER = "/inference.GRPCInferenceService/ModelInfer"
# Distinct inputs of each kind of request: enough that no cache makes a server look fast, few enough
# for memory.
_SAMPLES, _SAMPLE_BYTES = 64, 64 << 20
_LEAST_SAMPLES = 4
_PATIENCE = 10.0
T = TypeVar("T")
_LONG = 120.0  # for the first answer of a model


@dataclass(frozen=True)
class Ready:
    """A job's requests, in its order: kinds, or the streams of a sensor load."""

    kinds: tuple[Kind, ...]
    streams: tuple[Stream, ...] = ()


@contextmanager
def calling(address: str) -> Iterator[GRPCInferenceServiceStub]:
    """The stub of a gRPC target, for what is asked beside the load."""
    with grpc.insecure_channel(address, options=list(OPTIONS.items())) as channel:
        yield GRPCInferenceServiceStub(channel)


def prepare(job: Job) -> Ready:
    """Makes the requests. Raises BenchError, naming the address, the model and the status, where
    the server does not answer or does not have the model, and InputError for wrong inputs."""
    rng = np.random.default_rng([job.seed, 2])
    if job.target.protocol == "http":
        return Ready(tuple(_http(job, request, rng) for request in job.requests))
    with calling(job.target.address) as stub:
        if not isinstance(job.load, SensorLoad):
            return Ready(tuple(_grpc(job, stub, request, rng) for request in job.requests))
        load = job.load
        return Ready((), tuple(_stream(job, load, stub, r, rng) for r in job.requests))


def probe(job: Job, ready: Ready) -> None:
    """Sends one request of each kind, alone: what cannot work is found before the load, with the
    server's own words. Raises BenchError."""
    if job.target.protocol == "http":
        return  # the load process sees the status as well
    with grpc.insecure_channel(job.target.address, options=list(OPTIONS.items())) as channel:
        for request, kind in zip(job.requests, ready.kinds, strict=False):
            method: Any = channel.unary_unary(kind.samples[0].path)
            _asked(job, request, partial(method, kind.samples[0].body, timeout=_LONG))


def _grpc(
    job: Job, stub: GRPCInferenceServiceStub, request: RequestSpec, rng: np.random.Generator
) -> Kind:
    metadata = _metadata(job, stub, request)
    first = bodies(request, metadata, _LEAST_SAMPLES, rng)
    rest = bodies(request, metadata, _more(len(first[0])), rng)
    return Kind(tuple(Prepared(INFER, body) for body in first + rest), request.deadline)


def _http(job: Job, request: RequestSpec, rng: np.random.Generator) -> Kind:
    asked = adaptor(job.target.adaptor)
    metadata = asked.metadata(job.target.address, request)
    first = [
        asked.prepare(request, metadata, sample)
        for sample in samples(request, metadata, _LEAST_SAMPLES, rng)
    ]
    rest = [
        asked.prepare(request, metadata, sample)
        for sample in samples(request, metadata, _more(len(first[0].body)), rng)
    ]
    return Kind((*first, *rest), request.deadline)


def _more(size: int) -> int:
    """How many more samples of this many bytes there is room for."""
    return max(0, min(_SAMPLES, _SAMPLE_BYTES // max(1, size)) - _LEAST_SAMPLES)


def _stream(
    job: Job,
    load: SensorLoad,
    stub: GRPCInferenceServiceStub,
    request: RequestSpec,
    rng: np.random.Generator,
) -> Stream:
    """The signal is the model's first input; every other one is the same for all windows."""
    metadata = _metadata(job, stub, request)
    shapes = dict(request.shapes)
    declared = metadata.inputs[0]
    shapes.setdefault(declared.name, _one_window(declared.shape, load.window))
    fixed = request.model_copy(update={"shapes": shapes})
    made = samples(fixed, metadata, _LEAST_SAMPLES, rng)
    signal = np.concatenate([_as_signal(s[declared.name], load.window) for s in made])
    constants = {name: array for name, array in made[0].items() if name != declared.name}
    form = Signal(signal.shape[1], declared.datatype)
    options = StreamOptions(
        signals={declared.name: form},
        version=request.version,
        constants=constants,
        objective=request.deadline,
        ttl=0.0,
        non_finite="allow",
    )
    framing = Framing(load.window, load.sample_rate, load.hop or 0)
    return Stream(request.model, framing, options, signal, request.deadline)


def _one_window(shape: Sequence[int], window: int) -> tuple[int, ...]:
    return tuple(dim if dim > 0 else (1 if axis == 0 else window) for axis, dim in enumerate(shape))


def _as_signal(array: Array, window: int) -> Array:
    """[samples, channels] of an input [1, ...] for one window."""
    if array.ndim == 3 and array.shape[1] != window and array.shape[2] == window:
        array = array.swapaxes(1, 2)
    return array.reshape(-1, array.shape[2] if array.ndim == 3 else 1)


def _metadata(
    job: Job, stub: GRPCInferenceServiceStub, request: RequestSpec
) -> pb.ModelMetadataResponse:
    asked = pb.ModelMetadataRequest(name=request.model, version=request.version)
    return _asked(
        job,
        request,
        lambda: stub.ModelMetadata(asked, timeout=_PATIENCE, wait_for_ready=True),
    )


def _asked(job: Job, request: RequestSpec, call: Callable[[], T]) -> T:
    try:
        return call()
    except grpc.RpcError as error:
        raise BenchError(
            f"model {request.model!r} at {job.target.address}: "
            f"{error.code().name}: {error.details()}"
        ) from error
