"""What goes wrong, one function for each: it does its worst, and counts who was hurt."""

from __future__ import annotations

import asyncio
import pathlib
import random
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import grpc

from headrace.bench.transports import frames
from headrace.inference.v2 import grpc_service_pb2 as pb
from soaking.callers import METHOD, Callers, End, Tally, after, first_of, message
from soaking.faulty import HANG, LET_GO, NO_MEMORY, RAISE
from soaking.serving import ECHO_WIDTH, Server

_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
_LOAD = "/inference.GRPCInferenceService/RepositoryModelLoad"
_READY = "/inference.GRPCInferenceService/ModelReady"
_PAUSE = 0.02
# Requests of a reader that does not read; their answers fill the windows of its connection.
_UNREAD = 64
# Seconds that the wall clock is off by, in turn.
_JUMPS = (3600, -3600, 86400 * 365, -86400, 0)


async def raise_errors(callers: Callers, tally: Tally, seconds: float) -> str:
    return await _mark(callers, tally, seconds, RAISE)


async def run_out_of_memory(callers: Callers, tally: Tally, seconds: float) -> str:
    return await _mark(callers, tally, seconds, NO_MEMORY)


async def _mark(callers: Callers, tally: Tally, seconds: float, fault: float) -> str:
    over, count = after(seconds), 0
    while not over():
        tally[await callers.call(fault)] += 1
        count += 1
        await asyncio.sleep(_PAUSE)
    return f"{count} runs"


async def hang(callers: Callers, tally: Tally, _: float) -> str:
    """One executor of two; then both; and then what hung comes back."""
    began = time.monotonic()
    tally[await callers.call(HANG)] += 1
    told = time.monotonic() - began
    both = []
    for _turn in range(4):  # some may share a run
        both.append(asyncio.create_task(callers.call(HANG)))
        await asyncio.sleep(_PAUSE)
    unready, took = await _until_replaced(callers, both)
    for task in both:
        tally[task.result()] += 1
    tally[await callers.call(LET_GO)] += 1
    seen = f"not ready for {took:.2g} s" if unready else "never seen not ready"
    return f"told after {told:.1f} s; with all executors hung {seen}"


async def _until_replaced(callers: Callers, hanging: list[asyncio.Task[End]]) -> tuple[bool, float]:
    """Whether the model was seen not to be ready while `hanging` ended, and for how long."""
    asked = pb.ModelReadyRequest(name="work").SerializeToString()
    ready: Any = callers.channel.unary_unary(_READY)
    first = last = 0.0
    while not all(task.done() for task in hanging) or last:
        if pb.ModelReadyResponse.FromString(await ready(asked)).ready:
            if last and all(task.done() for task in hanging):
                break
        else:
            last = time.monotonic()
            first = first or last
        await asyncio.sleep(0.002)
    return bool(first), last - first


async def vanish(callers: Callers, tally: Tally, seconds: float, address: str) -> str:
    """Callers who leave while they wait, in a stream, and in the middle of a message."""
    over, streams, messages = after(seconds), 0, 0
    while not over():
        await callers.leave(tally)
        await _leave_stream(callers, tally)
        await asyncio.to_thread(cut_message, address)
        tally[End.LEFT] += 1
        streams, messages = streams + 1, messages + 1
    return f"{streams} streams and {messages} messages cut"


async def _leave_stream(callers: Callers, tally: Tally) -> None:
    opened: Any = callers.channel.stream_stream(_STREAM)
    call, count = opened(), 5
    for number in range(count):
        await call.write(message("work", float(number)))
    await asyncio.sleep(random.uniform(0, 0.03))
    call.cancel()
    tally[End.LEFT] += count


def cut_message(address: str) -> None:
    """Half of a message, and then a connection reset."""
    host, _, port = address.rpartition(":")
    whole = message("echo", 1.0, ECHO_WIDTH)
    headers = [(":method", "POST"), (":scheme", "http"), (":path", METHOD)]
    headers += [(":authority", address), ("te", "trailers"), ("content-type", "application/grpc")]
    block, half = frames.request_block(headers), whole[: len(whole) // 2]
    body = struct.pack(">BI", 0, len(whole)) + half
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            frames.PREFACE
            + frames.settings({})
            + frames.frame(frames.HEADERS, frames.END_HEADERS, 1, block)
            + frames.frame(frames.DATA, 0, 1, body)
        )
        # Closed like this, the socket says RST rather than FIN.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def read_slowly(callers: Callers, tally: Tally, seconds: float, address: str) -> str:
    """Streams whose answers nobody takes for a while. Each has a connection of its own."""
    ended = await asyncio.gather(*(_slow_reader(address, seconds) for _ in range(4)))
    for one in ended:
        tally.update(one)
    return f"{len(ended)} streams with {_UNREAD} answers of {4 * ECHO_WIDTH >> 10} KiB unread"


async def _slow_reader(address: str, seconds: float) -> Tally:
    ended = Tally()
    async with grpc.aio.insecure_channel(address) as channel:
        opened: Any = channel.stream_stream(_STREAM)
        call = opened()
        for number in range(_UNREAD):
            await call.write(message("echo", float(number), ECHO_WIDTH, str(number)))
        await call.done_writing()
        await asyncio.sleep(seconds)
        wanted = {str(number) for number in range(_UNREAD)}
        while (data := await call.read()) is not grpc.aio.EOF:
            reply = pb.ModelStreamInferResponse.FromString(data)
            ended[_checked(reply)] += 1
            wanted.discard(reply.infer_response.id)
    ended[End.LOST] += len(wanted)
    return ended


def _checked(reply: pb.ModelStreamInferResponse) -> End:
    if reply.error_message:
        return End.REFUSED
    response = reply.infer_response
    return End.RIGHT if first_of(response) == 2 * float(response.id) else End.WRONG


async def reload(callers: Callers, server: Server, times: int) -> str:
    """Loads `work` anew so many times. Tells what memory the server had along the way."""
    asked = pb.RepositoryModelLoadRequest(model_name="work").SerializeToString()
    load: Any = callers.channel.unary_unary(_LOAD)
    held = []
    for _ in range(times):
        await load(asked)
        held.append(server.resident() / 2**20)
    quarter = -(-times // 4)
    parts = [held[at : at + quarter] for at in range(0, times, quarter)]
    return "RSS by quarters: " + ", ".join(f"{sum(p) / len(p):.0f}" for p in parts) + " MiB"


async def move_the_clock(file: pathlib.Path, seconds: float) -> str:
    for jump in _JUMPS:
        with file.open("r+b") as mapped:  # in place: the server has it in memory
            mapped.write(struct.pack("<q", jump))
        await asyncio.sleep(seconds / len(_JUMPS))
    return f"{len(_JUMPS)} jumps, by up to a year"


async def beside(
    callers: Callers,
    tally: Tally,
    rate: float,
    fault: Any,
    deadline: float | None = None,
) -> str:
    """`fault`, a coroutine, with load from others for as long as it takes. Returns what it says."""
    task: asyncio.Task[str] = asyncio.ensure_future(fault)
    over: Callable[[], bool] = task.done
    await callers.offer(tally, rate, over, deadline)
    return await task
