"""What every transport needs to know of a call: who makes it, and how its errors are told."""

from __future__ import annotations

import asyncio
import logging
from itertools import count
from typing import NoReturn

import grpc

from headrace.server import errors
from headrace.server.rpc.guard import Context

_log = logging.getLogger(__name__)

# The metadata by which a caller, or a proxy before it, says whose share of a model it takes.
CALLER = "headrace-caller"

# Connections that a front passes on come from a socket file: their peers are all the same.
PASSED_ON = "unix:"
_calls_passed_on = count()


def caller_of(context: Context) -> str:
    """Who calls: by the call's metadata, else the connection it came on, or the call itself where
    connections cannot be told apart."""
    for key, value in context.invocation_metadata() or ():
        if key == CALLER and value:
            return str(value)
    peer = str(context.peer())
    return f"{peer}{next(_calls_passed_on)}" if peer == PASSED_ON else peer


def remaining_of(context: Context) -> float | None:
    """Seconds of the call's deadline; None where it has none, which the stubs do not know."""
    remaining: float | None = context.time_remaining()
    return remaining


def log_unexpected(error: Exception) -> None:
    """An error that no caller can be blamed for leaves its traceback in the log."""
    if errors.row_of(error) is errors.INTERNAL:
        _log.error("unexpected error", exc_info=error)


def details_of(error: Exception) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata that tell `error` in full."""
    return (("grpc-status-details-bin", errors.rich_status(error).SerializeToString()),)


async def abort(context: Context, error: Exception) -> NoReturn:
    """Ends the call with the table's status for `error`, details included."""
    log_unexpected(error)
    code, message = errors.row_of(error).code, errors.message_of(error)
    try:
        await context.abort(code, message, details_of(error))
    except grpc.aio.InternalError as gone:
        # The caller has hung up, at its deadline most likely: there is nobody left to tell.
        raise asyncio.CancelledError from gone
