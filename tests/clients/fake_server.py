"""A real gRPC server on a local port, scripted by each test, and either client to call it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc
import numpy as np
from google.rpc import error_details_pb2, status_pb2

from headrace.client import (
    AsyncClient,
    Client,
    InferResult,
    RetryPolicy,
    StreamAnswer,
    StreamRequest,
)
from headrace.client.errors import DETAILS_KEY
from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.inference.v2 import grpc_service_pb2_grpc as rpc

# Long enough for any machine: no test waits for it to pass.
LONG = 60.0
QUICK = RetryPolicy(max_attempts=4, initial_backoff=0.001, max_backoff=0.001)
X = np.array([[1, 2]], np.float32)
Script = Callable[[pb.ModelInferRequest, Any], pb.ModelInferResponse]


def echo(request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(
        model_name=request.model_name, model_version="1", id=request.id
    )
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        response.raw_output_contents.append(raw)
    return response


def fail(code: grpc.StatusCode, retry_after_ms: int | None = None) -> Script:
    def script(request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:
        if retry_after_ms is not None:
            status = status_pb2.Status(code=code.value[0], message="no")
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromMilliseconds(retry_after_ms)
            status.details.add().Pack(retry)
            status.details.add().Pack(error_details_pb2.ErrorInfo(reason="OVERLOADED"))
            context.set_trailing_metadata(((DETAILS_KEY, status.SerializeToString()),))
        context.abort(code, "no")
        raise AssertionError("abort raises")

    return script


class FakeServer(rpc.GRPCInferenceServiceServicer):
    """Runs `scripts` in turn, one for each ModelInfer, then echoes; keeps what it saw."""

    def __init__(self) -> None:
        self.address = ""
        self.scripts: list[Script] = []
        self.requests: list[pb.ModelInferRequest] = []
        self.remaining: list[float | None] = []
        self.metadata: list[dict[str, str]] = []
        self.waiting = threading.Event()
        self.cancelled = threading.Event()

    def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:
        self.requests.append(request)
        self.remaining.append(context.time_remaining())
        self.metadata.append(dict(context.invocation_metadata()))
        script = self.scripts.pop(0) if self.scripts else echo
        return script(request, context)

    def hang(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:
        context.add_callback(self.cancelled.set)
        self.waiting.set()
        self.cancelled.wait(LONG)
        return pb.ModelInferResponse()

    def ModelStreamInfer(
        self, request_iterator: Any, context: Any
    ) -> Iterator[pb.ModelStreamInferResponse]:
        context.add_callback(self.cancelled.set)
        for request in request_iterator:
            self.requests.append(request)
            if request.model_name == "hang":
                self.cancelled.wait(LONG)
            if request.model_name == "abort":
                context.abort(grpc.StatusCode.UNAVAILABLE, "draining")
            if request.model_name == "full":
                answer = pb.ModelStreamInferResponse(error_message="queue full")
                answer.infer_response.id = request.id
                parameters = answer.infer_response.parameters
                parameters["headrace_status"].string_param = "RESOURCE_EXHAUSTED"
                parameters["headrace_error_reason"].string_param = "OVERLOADED"
                parameters["headrace_retry_after_ms"].int64_param = 250
                yield answer
            else:
                yield pb.ModelStreamInferResponse(infer_response=echo(request, context))

    def ModelReady(self, request: pb.ModelReadyRequest, context: Any) -> pb.ModelReadyResponse:
        return pb.ModelReadyResponse(ready=request.name == "m" and request.version == "2")

    def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: Any
    ) -> pb.RepositoryIndexResponse:
        response = pb.RepositoryIndexResponse()
        response.models.add(name="m", version="2", state="READY" if request.ready else "LOADING")
        return response

    def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Any
    ) -> pb.RepositoryModelLoadResponse:
        if request.model_name != "m":
            context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        return pb.RepositoryModelLoadResponse()


class Either:
    """One of the two clients behind one face, so that a test holds for both."""

    def __init__(self, kind: str, address: str) -> None:
        self._kind = kind
        self._address = address

    async def call(self, method: str, *args: Any, **keywords: Any) -> Any:
        if self._kind == "asyncio":
            async with AsyncClient(self._address, retry=QUICK, headers={"who": "me"}) as client:
                return await getattr(client, method)(*args, **keywords)

        def run() -> Any:
            with Client(self._address, retry=QUICK, headers={"who": "me"}) as client:
                return getattr(client, method)(*args, **keywords)

        return await asyncio.to_thread(run)

    async def infer(self, **keywords: Any) -> InferResult:
        result = await self.call("infer", "m", {"x": X}, **{"deadline": LONG, **keywords})
        assert isinstance(result, InferResult)
        return result

    async def stream(
        self, requests: Iterable[StreamRequest], answers: list[StreamAnswer], **keywords: Any
    ) -> None:
        """Fill `answers`, which thus keep what came before an exception."""
        if self._kind == "asyncio":
            async with AsyncClient(self._address) as client:
                async for answer in client.infer_stream(requests, **keywords):
                    answers.append(answer)  # noqa: PERF401 -- what came before an exception counts
            return

        def run() -> None:
            with Client(self._address) as client:
                for answer in client.infer_stream(requests, **keywords):
                    answers.append(answer)  # noqa: PERF402 -- as above

        await asyncio.to_thread(run)
