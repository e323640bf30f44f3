"""The client for asyncio: `Client` with `await`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from headrace.client import feedback, messages
from headrace.client.channel import ChannelOptions, for_streams, settings, target, with_token
from headrace.client.errors import from_rpc_error
from headrace.client.feedback import Truth
from headrace.client.messages import Call, Headers
from headrace.client.options import InferKeywords, InferOptions, expect, merged
from headrace.client.results import (
    InferResult,
    ModelIndex,
    ModelMetadata,
    ServerMetadata,
    StreamAnswer,
    StreamRequest,
)
from headrace.client.retry import NO_RETRY, Attempts, RetryPolicy, checked
from headrace.client.stream_aio import AsyncSensorStream, AsyncStreamConnection
from headrace.client.stream_options import Framing, StreamKeywords, StreamOptions
from headrace.client.stream_upload import Plan
from headrace.client.tensors import Inputs
from headrace.feedback.v1.feedback_pb2_grpc import FeedbackStub
from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.inference.v2.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from headrace.inference.v2.model_config_pb2 import ModelConfig
from headrace.stream.v1.stream_pb2_grpc import SensorStreamStub

T = TypeVar("T")
Stream = grpc.aio.StreamStreamCall[pb.ModelInferRequest, pb.ModelStreamInferResponse]
Requests = Iterable[StreamRequest] | AsyncIterable[StreamRequest]


class AsyncClient:
    """`Client` for asyncio: the same methods, arguments, results and exceptions, awaited.

    It is made inside the event loop that uses it. Cancelling a task that waits in one of its
    methods cancels the call on the server too.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:8001",
        *,
        channel: ChannelOptions | None = None,
        retry: RetryPolicy | None = None,
        headers: Headers | None = None,
        token: str | None = None,
    ) -> None:
        self._address = address
        self._options = ChannelOptions() if channel is None else channel
        expect("channel", self._options, ChannelOptions)
        self._headers = with_token(headers, token, self._options)
        self._channel = _open(address, self._options)
        self._stub = GRPCInferenceServiceStub(self._channel)
        self._feedback = FeedbackStub(self._channel)
        self._retry = RetryPolicy() if retry is None else retry
        expect("retry", self._retry, RetryPolicy)
        self._closed = False
        self._stream_channel: grpc.aio.Channel | None = None
        self._streams: AsyncStreamConnection | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection and cancel the calls under way."""
        self._closed = True
        if self._streams is not None:
            await self._streams.close()
        if self._stream_channel is not None:
            await self._stream_channel.close()
        await self._channel.close()

    async def infer(
        self,
        model: str,
        inputs: Inputs,
        options: InferOptions | None = None,
        **keywords: Unpack[InferKeywords],
    ) -> InferResult:
        """Run `model` on `inputs`: see `Client.infer`."""
        options = merged("infer", InferOptions, options, keywords)
        call = messages.infer(model, inputs, options)
        return await self._run(call, options.deadline, options.headers)

    async def infer_stream(
        self,
        requests: Requests,
        *,
        deadline: float | None = None,
        headers: Headers | None = None,
    ) -> AsyncGenerator[StreamAnswer, None]:
        """Send `requests`, a plain or async iterable, and yield each answer: see
        `Client.infer_stream`.

        `requests` is iterated in a task of this loop, so a plain iterable should not block. To
        leave the loop over the answers early, wrap this in `contextlib.aclosing`: it ends the call
        at once instead of when the generator is collected.
        """
        self._expect_open()
        seconds = checked(deadline)
        kept = messages.Kept()
        metadata = messages.metadata(self._headers, headers)
        call = self._stub.ModelStreamInfer(timeout=seconds, metadata=metadata)
        sender = asyncio.create_task(_send(call, requests, kept))
        try:
            async for response in call:
                yield messages.stream_answer(response)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        finally:
            # The caller's iterable may be waiting for something that never comes.
            sender.cancel()
            call.cancel()
            await asyncio.wait([sender])
        kept.release()

    def stream(
        self,
        model: str,
        *,
        window: int,
        sample_rate: float,
        hop: int = 0,
        options: StreamOptions | None = None,
        **keywords: Unpack[StreamKeywords],
    ) -> AsyncSensorStream:
        """A signal sent as it comes, answered window by window: see `Client.stream`.

        async with client.stream("model", window=512, sample_rate=16_000) as stream:
            async for event in stream.run(chunks):
                print(event)
        """
        options = merged("stream", StreamOptions, options, keywords)
        plan = Plan(model, Framing(window, sample_rate, hop), options)
        return AsyncSensorStream(self._stream_connection(), plan)

    def _stream_connection(self) -> AsyncStreamConnection:
        self._expect_open()
        if self._streams is None:
            channel = self._stream_channel = _open(self._address, for_streams(self._options))
            stub = SensorStreamStub(channel)
            metadata = messages.metadata(self._headers)
            self._streams = AsyncStreamConnection(
                lambda: stub.Stream(metadata=metadata), self._retry
            )
        return self._streams

    async def server_live(self, *, deadline: float | None = None) -> bool:
        """Whether the server says that it is up. Raises `Unavailable` where there is none."""
        return await self._run(messages.server_live(), deadline)

    async def server_ready(self, *, deadline: float | None = None) -> bool:
        """Whether the server takes requests; False while it loads and while it drains."""
        return await self._run(messages.server_ready(), deadline)

    async def model_ready(
        self, model: str, version: str = "", *, deadline: float | None = None
    ) -> bool:
        """Whether this model (an empty `version`: any of its versions) takes requests."""
        return await self._run(messages.model_ready(model, version), deadline)

    async def server_metadata(self, *, deadline: float | None = None) -> ServerMetadata:
        """Name, version and protocol extensions of the server."""
        return await self._run(messages.server_metadata(), deadline)

    async def model_metadata(
        self, model: str, version: str = "", *, deadline: float | None = None
    ) -> ModelMetadata:
        """Names, datatypes and shapes of the model's inputs and outputs."""
        return await self._run(messages.model_metadata(model, version), deadline)

    async def model_config(
        self, model: str, version: str = "", *, deadline: float | None = None
    ) -> ModelConfig:
        """The model's configuration, a protobuf message in Triton's format."""
        return await self._run(messages.model_config(model, version), deadline)

    async def model_statistics(
        self, model: str = "", version: str = "", *, deadline: float | None = None
    ) -> tuple[pb.ModelStatistics, ...]:
        """Counts and times (nanoseconds) per model version; an empty `model` asks for all."""
        return await self._run(messages.model_statistics(model, version), deadline)

    async def repository_index(
        self, *, ready: bool = False, deadline: float | None = None
    ) -> tuple[ModelIndex, ...]:
        """The models of the repository; with `ready`, only those that take requests."""
        return await self._run(messages.repository_index(ready), deadline)

    async def load_model(self, model: str, *, deadline: float | None = None) -> None:
        """Load a model of the repository, or load it anew; returns when it is ready."""
        await self._run(messages.load_model(model), deadline)

    async def unload_model(self, model: str, *, deadline: float | None = None) -> None:
        """Stop serving a model."""
        await self._run(messages.unload_model(model), deadline)

    async def report(
        self,
        model: str,
        truths: Mapping[str, Truth],
        version: str = "",
        *,
        deadline: float | None = None,
    ) -> tuple[str, ...]:
        """Tell what was right, by the ids of earlier requests: see `Client.report`."""
        return await self._run(feedback.report(model, version, truths), deadline)

    async def reset_reference(
        self, model: str, version: str = "", *, deadline: float | None = None
    ) -> None:
        """Have the model's next requests be what later ones are compared with for drift."""
        await self._run(feedback.reset_reference(model, version), deadline)

    def _expect_open(self) -> None:
        if self._closed:
            raise RuntimeError("this AsyncClient is closed")

    async def _run(
        self, call: Call[T], deadline: float | None, headers: Headers | None = None
    ) -> T:
        self._expect_open()
        stub: Any = self._feedback if call.of_feedback else self._stub
        method = getattr(stub, call.method)
        metadata = messages.metadata(self._headers, headers)
        attempts = Attempts(self._retry if call.repeatable else NO_RETRY, deadline)
        while True:
            try:
                response = await method(
                    call.request, timeout=attempts.remaining(), metadata=metadata
                )
            except grpc.RpcError as error:
                wait = attempts.wait_after(error)
            else:
                return call.read(response)
            await asyncio.sleep(wait)


def _open(address: str, options: ChannelOptions) -> grpc.aio.Channel:
    if options.tls is None:
        return grpc.aio.insecure_channel(target(address, options), **settings(options))
    return grpc.aio.secure_channel(
        target(address, options), options.tls.credentials(), **settings(options)
    )


async def _send(call: Stream, requests: Requests, kept: messages.Kept) -> None:
    # A call that has ended refuses to be written to; why it ended, its answers say.
    with suppress(grpc.RpcError, asyncio.InvalidStateError):
        async with aclosing(_outgoing(requests, kept)) as outgoing:
            async for message in outgoing:
                await call.write(message)
        await call.done_writing()


async def _outgoing(
    requests: Requests, kept: messages.Kept
) -> AsyncGenerator[pb.ModelInferRequest, None]:
    position = 0
    with kept:
        if isinstance(requests, AsyncIterable):
            async for request in requests:
                yield messages.stream_request(request, position)
                position += 1
        else:
            for request in requests:
                yield messages.stream_request(request, position)
                position += 1
