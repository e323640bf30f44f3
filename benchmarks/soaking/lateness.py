"""Answers that come after their deadlines: what callers saw, against what the server has counted.

With a deadline of gRPC's own nobody sees a late answer, so the requests here bring theirs as the
parameter `timeout`, and each is answered however late. How long an answer was under way, the
network's grain and its caller's own, is known of each: it is what its caller measured beyond what
the server says of queue and run. Without that, none may be late that the server has not counted.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc

from headrace.inference.v2 import grpc_service_pb2 as pb
from soaking.callers import METHOD, PATIENCE, Callers, End, Tally, after, end_of, first_of, message
from soaking.counters import late_answers
from soaking.faulty import HANG, LET_GO
from soaking.serving import Server

# Requests that are held until they are late for certain, one after the other.
_HELD = 3
_DEADLINE = 0.25  # seconds, of the others


@dataclass
class Lateness:
    """late: answers after their deadline, by their callers' clock. overdue: those that were late
    without what they were under way. counted: by the server, as computed for nobody."""

    late: int = 0
    overdue: int = 0
    counted: int = 0

    @property
    def complaint(self) -> str:
        if self.overdue <= self.counted:
            return ""
        return f"{self.overdue} answers were late when they left, the server counted {self.counted}"

    def __str__(self) -> str:
        return (
            f"{self.late} answers after their deadlines, {self.late - self.overdue} of them late "
            f"only by what they were under way; the server counted {self.counted}"
        )


async def compare(
    callers: Callers, tally: Tally, server: Server, rate: float, seconds: float
) -> Lateness:
    """Some requests that are late for certain, and then `rate` a second for so long."""
    seen, (before, _) = Lateness(), await late_answers(server)
    for _ in range(_HELD):
        await _hold(callers, tally, seen)
    call = partial(_call, callers, seen, None, _DEADLINE)
    await callers.offer(tally, rate, after(seconds), call=call)
    seen.counted = (await late_answers(server))[0] - before
    return seen


async def _hold(callers: Callers, tally: Tally, seen: Lateness) -> None:
    """A run that hangs beyond its request's deadline, and comes back."""
    held = asyncio.create_task(_call(callers, seen, HANG, 0.05))
    await asyncio.sleep(0.1)
    while not held.done():
        tally[await callers.call(LET_GO)] += 1
        await asyncio.wait([held], timeout=0.01)
    tally[held.result()] += 1


async def _call(callers: Callers, seen: Lateness, value: float | None, deadline: float) -> End:
    x = callers.next_value() if value is None else value
    asked = pb.ModelInferRequest.FromString(message("work", x))
    asked.parameters["timeout"].int64_param = int(deadline * 1e6)
    asked.parameters["headrace_explain"].bool_param = True
    infer: Any = callers.channel.unary_unary(METHOD)
    began = time.monotonic()
    try:
        data = await infer(asked.SerializeToString(), timeout=PATIENCE)
    except grpc.aio.AioRpcError as error:
        return end_of(error, deadline, stopping=callers.stopping)
    took = time.monotonic() - began
    answer = pb.ModelInferResponse.FromString(data)
    told = answer.parameters
    inside = told["headrace_queue_us"].int64_param + told["headrace_compute_us"].int64_param
    seen.late += took > deadline
    seen.overdue += inside > deadline * 1e6
    return End.RIGHT if first_of(answer) == 2 * x + 1 else End.WRONG
