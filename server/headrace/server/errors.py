"""What can go wrong, and the one table that turns it into a status.

Every way into the server (unary calls, streams, HTTP) answers errors by this table.
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2

from headrace.batcher import errors as batcher


class ServerError(Exception):
    """The root of the server's own errors."""


class InvalidInput(ServerError):
    """What came does not fit. The message names the field, what was expected, what was received."""


class ModelNotFound(ServerError):
    """No model, or no version of it, has this name."""


class ModelUnavailable(ServerError):
    """The model is known but does not serve: it loads, unloads, or failed to load."""


class LoadFailed(ServerError):
    """The model cannot be served, and why."""


class Unsupported(ServerError):
    """A part of the protocol that this server does not offer."""


class Draining(ServerError):
    """The server shuts down and takes no new work."""


class ModelProcessAway(ServerError):
    """The process that runs the models has ended, and its successor does not serve yet."""


class Unauthenticated(ServerError):
    """Who calls is not known, and must be."""


class PermissionDenied(ServerError):
    """Who calls may not do this. Told alike for a model that there is and one that there is not."""


class ConfigurationError(ServerError):
    """The configuration is wrong: one line for each key."""


class DeadlineExceeded(ServerError):
    """The deadline had passed when the request arrived, or passed before it was dispatched.

    `retry_after` says, in seconds, when to try again, where others may be why."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StreamRefused(ServerError):
    """A command of a sensor stream that is not carried out.

    reason: the error's own, of STREAM_REASONS. field: of the command, dotted; empty when none is to
    blame.
    """

    def __init__(self, reason: str, field: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.field = field


@dataclass(frozen=True, slots=True)
class Row:
    """How one error is told. `reason` is the machine-readable `google.rpc.ErrorInfo.reason`."""

    code: grpc.StatusCode
    http: int
    reason: str


INTERNAL = Row(grpc.StatusCode.INTERNAL, 500, "INTERNAL")

TABLE: dict[type[Exception], Row] = {
    ModelNotFound: Row(grpc.StatusCode.NOT_FOUND, 404, "MODEL_NOT_FOUND"),
    InvalidInput: Row(grpc.StatusCode.INVALID_ARGUMENT, 400, "INVALID_INPUT"),
    batcher.Overloaded: Row(grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "OVERLOADED"),
    batcher.Overtaken: Row(grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "OVERTAKEN"),
    batcher.DeadlineTooShort: Row(grpc.StatusCode.DEADLINE_EXCEEDED, 504, "DEADLINE_TOO_SHORT"),
    batcher.Expired: Row(grpc.StatusCode.DEADLINE_EXCEEDED, 504, "EXPIRED_IN_QUEUE"),
    DeadlineExceeded: Row(grpc.StatusCode.DEADLINE_EXCEEDED, 504, "EXPIRED_ON_ARRIVAL"),
    ModelUnavailable: Row(grpc.StatusCode.UNAVAILABLE, 503, "MODEL_UNAVAILABLE"),
    ModelProcessAway: Row(grpc.StatusCode.UNAVAILABLE, 503, "MODEL_PROCESS_AWAY"),
    LoadFailed: Row(grpc.StatusCode.FAILED_PRECONDITION, 412, "LOAD_FAILED"),
    batcher.Draining: Row(grpc.StatusCode.UNAVAILABLE, 503, "DRAINING"),
    Draining: Row(grpc.StatusCode.UNAVAILABLE, 503, "DRAINING"),
    Unsupported: Row(grpc.StatusCode.UNIMPLEMENTED, 501, "UNSUPPORTED"),
    Unauthenticated: Row(grpc.StatusCode.UNAUTHENTICATED, 401, "UNAUTHENTICATED"),
    PermissionDenied: Row(grpc.StatusCode.PERMISSION_DENIED, 403, "PERMISSION_DENIED"),
    batcher.ExecutionFailed: Row(grpc.StatusCode.INTERNAL, 500, "EXECUTION_FAILED"),
    batcher.ExecutorHung: Row(grpc.StatusCode.INTERNAL, 500, "EXECUTOR_HUNG"),
    batcher.OutOfMemory: Row(grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "OUT_OF_MEMORY"),
    MemoryError: Row(grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "OUT_OF_MEMORY"),
    batcher.NoExecutor: Row(grpc.StatusCode.UNAVAILABLE, 503, "NO_EXECUTOR"),
}

_INVALID, _NOT_FOUND = (grpc.StatusCode.INVALID_ARGUMENT, 400), (grpc.StatusCode.NOT_FOUND, 404)
_EXHAUSTED = (grpc.StatusCode.RESOURCE_EXHAUSTED, 429)
_CLOSING = (grpc.StatusCode.FAILED_PRECONDITION, 412)

STREAM_REASONS: dict[str, Row] = {
    reason: Row(*status, reason)
    for reason, status in {
        "SEQUENCE_GAP": _INVALID,
        "SEQUENCE_REPEATED": _INVALID,
        "TIME_WENT_BACK": _INVALID,
        "WRONG_CHANNELS": _INVALID,
        "NON_FINITE": _INVALID,
        "CHUNK_TOO_LARGE": _INVALID,
        "INVALID_INPUT": _INVALID,
        "HANDLE_IN_USE": _INVALID,
        "UNKNOWN_HANDLE": _NOT_FOUND,
        "UNKNOWN_SESSION": _NOT_FOUND,
        "CREDIT_EXCEEDED": _EXHAUSTED,
        "TOO_MANY_SESSIONS": _EXHAUSTED,
        "TOO_MANY_FLUSHES": _EXHAUSTED,
        "STATE_MEMORY": _EXHAUSTED,
        "STREAM_MEMORY": _EXHAUSTED,
        "SESSION_CLOSING": _CLOSING,
        "SESSION_TAKEN": (grpc.StatusCode.ABORTED, 409),
    }.items()
}

DOMAIN = "headrace"
_KNOWING = (batcher.Overloaded, batcher.DeadlineTooShort, DeadlineExceeded)
_LONGEST_MESSAGE = 1500


def row_of(error: Exception) -> Row:
    """The table's row for `error`; INTERNAL for what nobody expected."""
    if isinstance(error, StreamRefused):
        return STREAM_REASONS[error.reason]
    for kind in type(error).__mro__:
        if kind in TABLE:
            return TABLE[kind]
    return INTERNAL


def retry_after(error: Exception) -> float | None:
    """Seconds after which the caller may try again, where the error knows."""
    return error.retry_after if isinstance(error, _KNOWING) else None


def message_of(error: Exception) -> str:
    """What callers are told, cut to what fits where gRPC carries status messages: a trailer of 8 KB
    in which it stands twice, once with up to three bytes for each of its own."""
    text = (str(error) or type(error).__name__).encode()
    if len(text) <= _LONGEST_MESSAGE:
        return text.decode()
    return text[:_LONGEST_MESSAGE].decode(errors="ignore") + "..."


def rich_status(error: Exception) -> status_pb2.Status:
    """`error` as google.rpc.Status, with ErrorInfo and, where it helps, RetryInfo."""
    row = row_of(error)
    status = status_pb2.Status(code=code_pb2.Code.Value(row.code.name), message=message_of(error))
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=row.reason, domain=DOMAIN))
    wait = retry_after(error)
    if wait is not None:
        info = error_details_pb2.RetryInfo()
        info.retry_delay.FromNanoseconds(int(wait * 1e9))
        status.details.add().Pack(info)
    return status
