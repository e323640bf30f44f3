"""Around every call: it is watched, whoever makes it is checked, and its errors are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import grpc

from headrace.batcher.errors import Overloaded
from headrace.server import errors
from headrace.server.rpc.calls import abort, caller_of
from headrace.server.rpc.guard import Context, asked_by, shown_by
from headrace.server.rpc.limits import InFlight, message_cost
from headrace.server.security.guard import Guard
from headrace.server.telemetry.watch import Watch

# Smaller messages of control are taken on whatever is in flight: who looks after the server asks by
# them how it fares. Bytes.
_SMALL = 16 << 10
# A context tells its status as gRPC's constant or as its number, by the way it was set.
_STATUS_NAMES = {key: code.name for code in grpc.StatusCode for key in (code, code.value[0])}


@asynccontextmanager
async def watched(watch: Watch, method: str, context: Context) -> AsyncIterator[None]:
    """One call, of its whole length, around what answers it or raises the status it ends with."""
    call = watch.begin(method, context.invocation_metadata)
    call.caller = caller_of(context)
    try:
        yield
    except asyncio.CancelledError:
        watch.cancelled(call)
        raise
    except grpc.aio.AbortError:
        status: Any = context.code()
        watch.aborted(call, _STATUS_NAMES.get(status, "UNKNOWN"), context.details())
        raise
    except Exception as error:
        watch.failed(call, error)
        raise
    watch.answered(call)


@asynccontextmanager
async def admitted(guard: Guard, in_flight: InFlight, context: Context) -> AsyncIterator[None]:
    """One stream, inside the block. Ends the call unless whoever makes it may open streams at all,
    and has not too many."""
    with ExitStack() as opened:
        try:
            caller = guard.check("stream", None, partial(shown_by, context)) or caller_of(context)
            opened.enter_context(in_flight.stream(caller))
        except (errors.ServerError, Overloaded) as error:
            await abort(context, error)
        yield


@contextmanager
def charged(in_flight: InFlight, caller: str, request: Any) -> Iterator[None]:
    """What a parsed message of `caller` holds, inside the block. Raises Overloaded."""
    charge = in_flight.take(caller, message_cost(request))
    try:
        yield
    finally:
        charge.release()


def guarded(
    method: Callable[[Any], Awaitable[Any]],
    watch: Watch,
    name: str,
    guard: Guard,
    in_flight: InFlight,
) -> Callable[[Any, Context], Awaitable[Any]]:
    """A unary handler of `method`, which raises the errors of the table. `name`: in full."""
    short = name.rpartition("/")[2]

    async def handler(request: Any, context: Context) -> Any:
        try:
            async with watched(watch, name, context):
                if isinstance(request, errors.InvalidInput):
                    guard.check("read", None, partial(shown_by, context))
                    raise request
                asked = asked_by(short, request)
                if asked is not None:
                    guard.check(*asked, partial(shown_by, context))
                if request.ByteSize() < _SMALL:
                    return await method(request)
                with charged(in_flight, caller_of(context), request):
                    return await method(request)
        except Exception as error:  # noqa: BLE001 (the table knows what each error means)
            await abort(context, error)

    return handler
