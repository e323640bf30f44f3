"""The Python client of Headrace, for any server of the Open Inference Protocol over gRPC.

    from headrace.client import Client

    with Client("127.0.0.1:8001") as client:
        result = client.infer("model", {"x": array}, deadline=0.1)
        print(result["y"])

`AsyncClient` is the same with `await`. `Client.stream` sends a signal to a Headrace server, which
cuts it into windows and answers each.
"""

from headrace.client.aio import AsyncClient
from headrace.client.channel import TLS, ChannelOptions
from headrace.client.errors import (
    BadResponse,
    Cancelled,
    DeadlineExceeded,
    HeadraceError,
    InferenceFailed,
    InvalidInput,
    ModelNotFound,
    Overloaded,
    PermissionDenied,
    SessionLost,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from headrace.client.feedback import Truth
from headrace.client.options import InferOptions
from headrace.client.results import (
    InferResult,
    ModelIndex,
    ModelMetadata,
    ServerMetadata,
    StreamAnswer,
    StreamRequest,
    TensorMetadata,
)
from headrace.client.retry import RetryPolicy
from headrace.client.sample import random_inputs
from headrace.client.stream_aio import AsyncSensorStream
from headrace.client.stream_inbox import StreamEvent
from headrace.client.stream_options import Signal, StreamOptions
from headrace.client.stream_results import Flushed, Gap, StreamSummary, WindowResult
from headrace.client.stream_sync import SensorStream
from headrace.client.sync import Client
from headrace.client.tensors import Tensor

__all__ = [
    "TLS",
    "AsyncClient",
    "AsyncSensorStream",
    "BadResponse",
    "Cancelled",
    "ChannelOptions",
    "Client",
    "DeadlineExceeded",
    "Flushed",
    "Gap",
    "HeadraceError",
    "InferOptions",
    "InferResult",
    "InferenceFailed",
    "InvalidInput",
    "ModelIndex",
    "ModelMetadata",
    "ModelNotFound",
    "Overloaded",
    "PermissionDenied",
    "RetryPolicy",
    "SensorStream",
    "ServerMetadata",
    "SessionLost",
    "Signal",
    "StreamAnswer",
    "StreamEvent",
    "StreamOptions",
    "StreamRequest",
    "StreamSummary",
    "Tensor",
    "TensorMetadata",
    "Truth",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "WindowResult",
    "random_inputs",
]
