"""What goes wrong, as exceptions: one class per status that a caller acts on.

`CLASS_OF` is the whole mapping, the client's half of the server's table of status codes. A status
that is not in it is raised as `HeadraceError` itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

DETAILS_KEY = "grpc-status-details-bin"


class HeadraceError(Exception):
    """A call, or one request of a stream, that failed.

    `code` is the gRPC status and `details` its message. `reason` is the machine-readable reason of
    `google.rpc.ErrorInfo`, empty where the server gave none. `retry_after` is the wait, in seconds,
    that the server asks for before another attempt (`google.rpc.RetryInfo`), or None.
    The error that gRPC raised, if there was one, is `__cause__`.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        details: str,
        reason: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(code, details, reason, retry_after)
        self.code = code
        self.details = details
        self.reason = reason
        self.retry_after = retry_after

    def __str__(self) -> str:
        said = f"{self.code.name}: {self.details}"
        if self.reason:
            said += f" [{self.reason}]"
        if self.retry_after is not None:
            said += f" (retry after {round(self.retry_after, 3):g} s)"
        return said


class ModelNotFound(HeadraceError):
    """NOT_FOUND: the server has no model of this name, or not this version of it."""


class InvalidInput(HeadraceError):
    """INVALID_ARGUMENT: a tensor is missing, unknown, or of the wrong datatype, shape or size."""


class Overloaded(HeadraceError):
    """RESOURCE_EXHAUSTED: the queue is full, the deadline cannot be met, or a message is too large.

    Worth another attempt when `retry_after` is set; without it the same request fails again.
    """


class DeadlineExceeded(HeadraceError):
    """DEADLINE_EXCEEDED: the call's deadline passed, here or on the server."""


class Cancelled(HeadraceError):
    """CANCELLED: the server or `close` cancelled the call.

    Cancelling an asyncio task raises asyncio.CancelledError instead.
    """


class Unavailable(HeadraceError):
    """UNAVAILABLE: no connection, a draining server, or a model that is loading or unloading."""


class InferenceFailed(HeadraceError):
    """INTERNAL: the model itself failed on this input."""


class Unimplemented(HeadraceError):
    """UNIMPLEMENTED: the server does not have this method."""


class PermissionDenied(HeadraceError):
    """PERMISSION_DENIED: the caller is known, and not allowed to do this."""


class Unauthenticated(HeadraceError):
    """UNAUTHENTICATED: the caller's credentials are missing or not valid."""


class SessionLost(HeadraceError):
    """A sensor stream cannot go on: its session ended with its connection, its time to live passed,
    or the server that kept it is gone.

    Results that were delivered stay good; what was sent after them is lost.
    """


class BadResponse(HeadraceError):
    """The server answered with tensors that the protocol does not allow; `code` is UNKNOWN."""

    def __init__(self, details: str) -> None:
        super().__init__(grpc.StatusCode.UNKNOWN, details)
        # What pickle hands to __init__ when the exception crosses processes.
        self.args = (details,)


CLASS_OF: dict[grpc.StatusCode, type[HeadraceError]] = {
    grpc.StatusCode.NOT_FOUND: ModelNotFound,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidInput,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.INTERNAL: InferenceFailed,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
}


# Reasons that mean something else than their status does for a call.
_CLASS_OF_REASON: dict[str, type[HeadraceError]] = {
    "UNKNOWN_SESSION": SessionLost,
    "UNKNOWN_HANDLE": SessionLost,
    "SESSION_TAKEN": SessionLost,
}


def error_of(
    code: grpc.StatusCode, details: str, reason: str = "", retry_after: float | None = None
) -> HeadraceError:
    """The exception for a status, and for the reasons that say more than it."""
    kind = _CLASS_OF_REASON.get(reason) or CLASS_OF.get(code, HeadraceError)
    return kind(code, details, reason, retry_after)


# grpc.aio makes this of a write that fails because the stream has just been ended by the other
# side, whose status it then drops.
_STATUS_LOST = "Internal error from Core"
_ENDED_WHILE_SENDING = "the stream was ended while a request was being sent; gRPC lost the reason"


def from_rpc_error(error: grpc.RpcError) -> HeadraceError:
    """The exception for what a gRPC call raised; the caller chains it (`raise ... from error`)."""
    # Any: pairs in truth, which the published type stubs deny.
    trailing: Any = error.trailing_metadata() or ()
    reason, retry_after = read_details(trailing)
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.INTERNAL and details == _STATUS_LOST:
        code, details = grpc.StatusCode.UNAVAILABLE, _ENDED_WHILE_SENDING
    return error_of(code, details, reason, retry_after)


def read_details(trailing: Iterable[tuple[str, Any]]) -> tuple[str, float | None]:
    """Reason and retry delay (seconds) from a call's trailing metadata, `("", None)` without.

    Details that cannot be read count as absent: they must not hide the error they came with.
    """
    reason, retry_after = "", None
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    packed = next((value for key, value in trailing if key == DETAILS_KEY), b"")
    try:
        for detail in status_pb2.Status.FromString(packed).details:
            if detail.Unpack(info):
                reason = info.reason
            elif detail.Unpack(retry):
                retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    except DecodeError:
        return "", None
    return reason, retry_after
