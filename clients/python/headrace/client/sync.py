"""The client for programs without an event loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterable, Mapping
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
from headrace.client.stream_options import Framing, StreamKeywords, StreamOptions
from headrace.client.stream_sync import SensorStream, StreamConnection
from headrace.client.stream_upload import Plan
from headrace.client.tensors import Inputs
from headrace.feedback.v1.feedback_pb2_grpc import FeedbackStub
from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.inference.v2.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from headrace.inference.v2.model_config_pb2 import ModelConfig
from headrace.stream.v1.stream_pb2_grpc import SensorStreamStub

T = TypeVar("T")


class Client:
    """A connection to a server of the Open Inference Protocol; one may serve many threads.

    `address` is `host:port`, or any target that gRPC understands (`dns:///...`, `unix:...`).
    `headers` are sent with every call, and so is `token`, as a bearer token: over TLS, unless
    `ChannelOptions.token_in_plain_text` allows it without. The connection is made by the first
    call.

    Every method takes `deadline`, in seconds for the whole call with its retries, None for no
    limit; and raises the exceptions of `headrace.client.errors`.
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
        self._stream_channel: grpc.Channel | None = None
        self._streams: StreamConnection | None = None
        self._opening = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Calls and streams under way raise `Cancelled`."""
        self._closed = True
        if self._streams is not None:
            self._streams.close()
        if self._stream_channel is not None:
            self._stream_channel.close()
        self._channel.close()

    def infer(
        self,
        model: str,
        inputs: Inputs,
        options: InferOptions | None = None,
        **keywords: Unpack[InferKeywords],
    ) -> InferResult:
        """Run `model` on `inputs` (arrays by input name) and return its outputs by name.

        Options are given as keywords, as an `InferOptions` object, or both: the keywords win.
        `Input` says which arrays become which datatype, `InferResult` how outputs come back.

        Raises TypeError or ValueError for inputs that cannot be sent, `InvalidInput` for ones that
        the model does not take, `ModelNotFound`, `Overloaded` and `Unavailable` once the retry
        policy gives up, `DeadlineExceeded`, and `InferenceFailed` when the model itself fails.
        A request with the parameter `sequence_id` is not retried: repeating it is not harmless.
        """
        options = merged("infer", InferOptions, options, keywords)
        return self._run(messages.infer(model, inputs, options), options.deadline, options.headers)

    def infer_stream(
        self,
        requests: Iterable[StreamRequest],
        *,
        deadline: float | None = None,
        headers: Headers | None = None,
    ) -> Generator[StreamAnswer, None, None]:
        """Send `requests` on one call and yield each answer as it comes, matched by its `id`.

        A request that fails gives an answer with `error` set and the stream goes on; only the
        end of the call itself raises. Nothing is retried. `deadline` covers the whole stream.
        The call starts with the first `next()`, ends when the generator is closed, and `requests`
        is iterated in another thread. What it raises is raised here, after the answers to what
        was sent.
        """
        self._expect_open()
        seconds = checked(deadline)
        kept = messages.Kept()

        def outgoing() -> Generator[pb.ModelInferRequest, None, None]:
            with kept:
                for position, request in enumerate(requests):
                    yield messages.stream_request(request, position)

        metadata = messages.metadata(self._headers, headers)
        call = self._stub.ModelStreamInfer(outgoing(), timeout=seconds, metadata=metadata)
        try:
            for response in call:
                yield messages.stream_answer(response)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()
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
    ) -> SensorStream:
        """A signal sent as it comes, answered window by window (Headrace servers only).

        `window` and `hop` are in samples, `sample_rate` in samples per second; without `hop`
        windows follow each other. Further options are keywords, a `StreamOptions`, or both: the
        keywords win. The stream is opened by `with`; `SensorStream` says how it is used. All
        streams of a client share one connection, apart from that of its calls.

        Raises TypeError or ValueError for options that cannot be.
        """
        options = merged("stream", StreamOptions, options, keywords)
        plan = Plan(model, Framing(window, sample_rate, hop), options)
        return SensorStream(self._stream_connection(), plan)

    def _stream_connection(self) -> StreamConnection:
        self._expect_open()
        with self._opening:
            if self._streams is None:
                channel = self._stream_channel = _open(self._address, for_streams(self._options))
                stub = SensorStreamStub(channel)
                metadata = messages.metadata(self._headers)
                self._streams = StreamConnection(
                    lambda requests: stub.Stream(requests, metadata=metadata), self._retry
                )
        return self._streams

    def server_live(self, *, deadline: float | None = None) -> bool:
        """Whether the server says that it is up. Raises `Unavailable` where there is none."""
        return self._run(messages.server_live(), deadline)

    def server_ready(self, *, deadline: float | None = None) -> bool:
        """Whether the server takes requests; False while it loads and while it drains."""
        return self._run(messages.server_ready(), deadline)

    def model_ready(self, model: str, version: str = "", *, deadline: float | None = None) -> bool:
        """Whether this model (an empty `version`: any of its versions) takes requests."""
        return self._run(messages.model_ready(model, version), deadline)

    def server_metadata(self, *, deadline: float | None = None) -> ServerMetadata:
        """Name, version and protocol extensions of the server."""
        return self._run(messages.server_metadata(), deadline)

    def model_metadata(
        self, model: str, version: str = "", *, deadline: float | None = None
    ) -> ModelMetadata:
        """Names, datatypes and shapes of the model's inputs and outputs."""
        return self._run(messages.model_metadata(model, version), deadline)

    def model_config(
        self, model: str, version: str = "", *, deadline: float | None = None
    ) -> ModelConfig:
        """The model's configuration, a protobuf message in Triton's format."""
        return self._run(messages.model_config(model, version), deadline)

    def model_statistics(
        self, model: str = "", version: str = "", *, deadline: float | None = None
    ) -> tuple[pb.ModelStatistics, ...]:
        """Counts and times (nanoseconds) per model version; an empty `model` asks for all."""
        return self._run(messages.model_statistics(model, version), deadline)

    def repository_index(
        self, *, ready: bool = False, deadline: float | None = None
    ) -> tuple[ModelIndex, ...]:
        """The models of the repository; with `ready`, only those that take requests."""
        return self._run(messages.repository_index(ready), deadline)

    def load_model(self, model: str, *, deadline: float | None = None) -> None:
        """Load a model of the repository, or load it anew; returns when it is ready."""
        self._run(messages.load_model(model), deadline)

    def unload_model(self, model: str, *, deadline: float | None = None) -> None:
        """Stop serving a model."""
        self._run(messages.unload_model(model), deadline)

    def report(
        self,
        model: str,
        truths: Mapping[str, Truth],
        version: str = "",
        *,
        deadline: float | None = None,
    ) -> tuple[str, ...]:
        """Tell what was right, by the ids of earlier requests (Headrace servers only).

        `Truth` says what may be told; an empty `version` stands for whichever answered. Returns the
        ids whose answers the server does not have: not sampled, forgotten, or scored already.

        Raises TypeError for what is no truth, `InvalidInput` for one that does not fit its answer,
        `Unimplemented` where nobody watches how good the model's answers are.
        """
        return self._run(feedback.report(model, version, truths), deadline)

    def reset_reference(
        self, model: str, version: str = "", *, deadline: float | None = None
    ) -> None:
        """Have the model's next requests be what later ones are compared with for drift."""
        self._run(feedback.reset_reference(model, version), deadline)

    def _expect_open(self) -> None:
        if self._closed:
            raise RuntimeError("this Client is closed")

    def _run(self, call: Call[T], deadline: float | None, headers: Headers | None = None) -> T:
        self._expect_open()
        stub: Any = self._feedback if call.of_feedback else self._stub
        method = getattr(stub, call.method)
        metadata = messages.metadata(self._headers, headers)
        attempts = Attempts(self._retry if call.repeatable else NO_RETRY, deadline)
        while True:
            try:
                response = method(call.request, timeout=attempts.remaining(), metadata=metadata)
            except grpc.RpcError as error:
                wait = attempts.wait_after(error)
            else:
                return call.read(response)
            time.sleep(wait)


def _open(address: str, options: ChannelOptions) -> grpc.Channel:
    if options.tls is None:
        return grpc.insecure_channel(target(address, options), **settings(options))
    return grpc.secure_channel(
        target(address, options), options.tls.credentials(), **settings(options)
    )
