"""What the named cases share: how one is registered, and what it is given to work with.

This file and the files of cases are read twice: by pytest, which wants only the names, and by the
subprocess that runs them. So nothing here imports tritonclient; `Env` brings it.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import struct
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from google.rpc import error_details_pb2, status_pb2

Function = Callable[..., Awaitable[None] | None]

SERVICE = "inference.GRPCInferenceService"
# No case measures time. This ends one that would wait for ever.
PATIENCE = 30.0


@dataclass
class Cases:
    """The cases of one file by name, in order."""

    functions: dict[str, tuple[Function, tuple[Any, ...]]] = field(default_factory=dict)

    def __call__(self, function: Function) -> Function:
        """Registers a case that takes an Env."""
        self.functions[function.__name__] = (function, ())
        return function

    def each(self, values: Mapping[str, Any]) -> Callable[[Function], Function]:
        """Registers a case for each value, which it takes beside the Env; named by the key."""

        def register(function: Function) -> Function:
            for name, value in values.items():
                self.functions[f"{function.__name__}[{name}]"] = (function, (value,))
            return function

        return register


@dataclass(frozen=True)
class Failure:
    """How a call failed, details included."""

    code: grpc.StatusCode
    message: str
    reason: str
    retry_after: float | None


class Env:
    """A server, and tritonclient to talk to it."""

    def __init__(self, address: str, http_address: str) -> None:
        import tritonclient.grpc as triton
        import tritonclient.grpc.aio as triton_aio
        from tritonclient.grpc import service_pb2, service_pb2_grpc

        self.address = address
        self.triton: Any = triton
        self.triton_aio: Any = triton_aio
        self.pb: Any = service_pb2
        self.client: Any = triton.InferenceServerClient(address)
        self.channel = grpc.insecure_channel(address)
        self.stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        self._http_address = http_address

    def close(self) -> None:
        self.client.close()
        self.channel.close()

    # Requests, as tritonclient makes them and by hand.

    def inputs(self, aio: bool = False, **arrays: Any) -> list[Any]:
        """InferInput objects for arrays by name."""
        from tritonclient.utils import np_to_triton_dtype

        module = self.triton_aio if aio else self.triton
        made = []
        for name, array in arrays.items():
            tensor = module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            made.append(tensor)
        return made

    def message(
        self, model: str, *tensors: tuple[str, str, Sequence[int], Any], **more: Any
    ) -> Any:
        """A ModelInferRequest; each tensor is (name, datatype, shape, content): bytes go to the raw
        contents, a dictionary to the typed ones."""
        request = self.pb.ModelInferRequest(model_name=model, **more)
        for name, datatype, shape, content in tensors:
            tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
            if isinstance(content, bytes):
                request.raw_input_contents.append(content)
            elif content is not None:
                tensor.contents.SetInParent()
                for contents_field, values in content.items():
                    getattr(tensor.contents, contents_field).extend(values)
        return request

    def lab(
        self, model: str, steps: int = 0, index: int = 0, value: float = 1.0, **more: Any
    ) -> Any:
        """A request of one row to a `lab` model. Its answer is y = [2 value + 1]."""
        return self.message(
            model,
            ("x", "FP32", [1, 1], struct.pack("<f", value)),
            ("steps", "INT64", [1], struct.pack("<q", steps)),
            ("index", "INT64", [1], struct.pack("<q", index)),
            **more,
        )

    # What the server says about itself.

    def statistics(self, model: str) -> Any:
        """The only served version's ModelStatistics."""
        (found,) = self.stub.ModelStatistics(self.pb.ModelStatisticsRequest(name=model)).model_stats
        return found

    def metric(self, name: str, model: str) -> float:
        """One number from /metrics, 0 when there is none."""
        connection = http.client.HTTPConnection(self._http_address, timeout=PATIENCE)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        found = re.search(rf'^{name}\{{[^}}]*model="{model}"[^}}]*\}} (\S+)$', text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def until_busy(self, model: str, executors: int = 1) -> None:
        wait_for(lambda: self.metric("headrace_executors_busy", model) == executors, "busy")

    def until_queued(self, model: str, requests: int) -> None:
        wait_for(lambda: self.metric("headrace_queue_requests", model) == requests, "queued")

    @contextlib.contextmanager
    def occupied(self, model: str, steps: int = 50_000_000) -> Iterator[Any]:
        """Inside the block the model's only executor runs a request that does not end by itself.

        Leaving the block cancels it, which ends the run.
        """
        blocker = self.stub.ModelInfer.future(self.lab(model, steps))
        try:
            self.until_busy(model)
            yield blocker
        finally:
            blocker.cancel()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Asks until it is so."""
    ends = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < ends, f"this never came: {what}"
        time.sleep(0.005)


def failure(call: Callable[..., Any], *arguments: Any) -> Failure:
    """How `call` fails. A call that succeeds fails the case."""
    try:
        answer = call(*arguments)
    except grpc.RpcError as error:
        return failure_of(error)
    raise AssertionError(f"this was answered: {answer}")


def failure_of(error: Any) -> Failure:
    """The status of a failed call and what its details say."""
    trailing = dict(error.trailing_metadata() or ())
    reason, retry_after = "", None
    status = status_pb2.Status.FromString(trailing.get("grpc-status-details-bin", b""))
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    if status.details:
        # The status stands in two places, which must agree.
        assert (status.code, status.message) == (error.code().value[0], error.details())
    return Failure(error.code(), error.details() or "", reason, retry_after)


def equal(actual: Any, expected: Any) -> None:
    """The same dtype, shape and elements."""
    assert actual.dtype == expected.dtype, (actual.dtype, expected.dtype)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    assert np.array_equal(actual, expected), (actual, expected)
