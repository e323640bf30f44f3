"""Callers who know the right answers, and count how each of their requests ended."""

from __future__ import annotations

import asyncio
import enum
import itertools
import random
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import grpc

from headrace.client.errors import from_rpc_error
from headrace.inference.v2 import grpc_service_pb2 as pb

METHOD = "/inference.GRPCInferenceService/ModelInfer"
# Who has waited so long without a deadline has been forgotten by the server.
PATIENCE = 60.0
# Values are exact in 32 bits, and so are their answers.
_VALUES = 1 << 20


class End(enum.Enum):
    """How a request ended for its caller.

    LATE: at its deadline, without an answer. LEFT: by the caller's own doing. LOST: without any of
    the ends that the server's table of statuses knows.
    """

    RIGHT = "right"
    REFUSED = "refused"
    LATE = "late"
    FAILED = "failed"
    LEFT = "left"
    LOST = "lost"
    WRONG = "wrong"


Tally = Counter[End]

_ENDS = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: End.REFUSED,
    grpc.StatusCode.UNAVAILABLE: End.REFUSED,
    grpc.StatusCode.DEADLINE_EXCEEDED: End.LATE,
    grpc.StatusCode.INTERNAL: End.FAILED,
}
# What gRPC itself says before a request has gone anywhere: nobody listens (any more).
_NOBODY_LISTENS = ("failed to connect", "connection refused", "connections to all backends")


def end_of(error: grpc.aio.AioRpcError, deadline: float | None, *, stopping: bool) -> End:
    """Every refusal of the server brings its reason; a connection that breaks brings none.

    A call that began when the server was already told to stop may meet its very end.
    """
    told = from_rpc_error(error)
    if told.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return End.LATE if deadline is not None else End.LOST
    if told.reason:
        return _ENDS.get(told.code, End.LOST)
    nobody = any(words in told.details.lower() for words in _NOBODY_LISTENS)
    nobody |= stopping and told.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    return End.REFUSED if nobody else End.LOST


class Callers:
    """Calls of `work` on one server, over one connection. `stopping`: it has been told to stop."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self._infer: Any = channel.unary_unary(METHOD)
        self._numbers = itertools.count(1)
        self._random = random.Random(0)
        self.stopping = False

    def next_value(self) -> float:
        """What a request asks with, so that its answer is its own."""
        return float(next(self._numbers) % _VALUES)

    async def call(self, value: float | None = None, deadline: float | None = None) -> End:
        """One request; `value` is one of the faults, or nothing for one to be answered."""
        stopping = self.stopping
        x = self.next_value() if value is None else value
        try:
            data = await self._infer(message("work", x), timeout=deadline or PATIENCE)
        except grpc.aio.AioRpcError as error:
            return end_of(error, deadline, stopping=stopping)
        found = first_of(pb.ModelInferResponse.FromString(data))
        return End.RIGHT if found == 2 * x + 1 else End.WRONG

    async def offer(
        self,
        tally: Tally,
        rate: float,
        over: Callable[[], bool],
        deadline: float | None = None,
        call: Callable[[], Coroutine[Any, Any, End]] | None = None,
    ) -> None:
        """`rate` requests a second at random moments, whatever becomes of them, until it is `over`.
        Returns when all have ended, counted in `tally`. `call`: makes one, unless it is `call`."""
        loop, begun = asyncio.get_running_loop(), set[asyncio.Task[End]]()

        def ended(task: asyncio.Task[End]) -> None:
            begun.discard(task)
            tally[task.result()] += 1

        due = loop.time()
        while not over():
            due += self._random.expovariate(rate)
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            task = loop.create_task(call() if call else self.call(None, deadline))
            begun.add(task)
            task.add_done_callback(ended)
        while begun:
            await asyncio.wait(begun)

    async def saturate(self, tally: Tally, callers: int, seconds: float) -> float:
        """As many callers, each of whom asks again when answered. Returns answers a second."""
        stop = time.monotonic() + seconds

        async def caller() -> None:
            while time.monotonic() < stop:
                tally[await self.call()] += 1

        began = time.monotonic()
        await asyncio.gather(*(caller() for _ in range(callers)))
        return tally[End.RIGHT] / (time.monotonic() - began)

    async def leave(self, tally: Tally) -> None:
        """One request whose caller may be gone before it is answered."""
        task = asyncio.create_task(self.call())
        await asyncio.wait([task], timeout=self._random.uniform(0, 0.05))
        task.cancel()
        await asyncio.wait([task])
        tally[End.LEFT if task.cancelled() else task.result()] += 1

    async def recovered(self) -> float:
        """Seconds until a lone request is answered right again."""
        began = time.monotonic()
        while await self.call(None, PATIENCE) is not End.RIGHT:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.01)
        return time.monotonic() - began


def after(seconds: float) -> Callable[[], bool]:
    """Whether so many seconds have passed since this was asked for."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


@asynccontextmanager
async def calling(address: str) -> AsyncIterator[Callers]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield Callers(channel)


def message(model: str, value: float, width: int = 1, id_: str = "") -> bytes:
    """A ModelInferRequest of one row, every element of which is `value`."""
    asked = pb.ModelInferRequest(model_name=model, id=id_)
    asked.inputs.add(name="x", datatype="FP32", shape=(1, width))
    asked.raw_input_contents.append(struct.pack("<f", value) * width)
    return asked.SerializeToString()


def first_of(response: pb.ModelInferResponse) -> float:
    """The first element of its only output."""
    (raw,) = response.raw_output_contents
    return float(struct.unpack_from("<f", raw)[0])
