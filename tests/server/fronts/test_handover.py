"""A call from a front process to the model process and back, without sockets or processes."""

from __future__ import annotations

import asyncio
import mmap
import os
import sys
from collections import deque
from typing import Any

import numpy as np
import pytest

from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.server.errors import Draining, InvalidInput, ModelNotFound, ModelProcessAway
from headrace.server.fronts.arena import Writer, map_to_read, new_memory
from headrace.server.fronts.behind import _FrontEnd
from headrace.server.fronts.leases import Leases
from headrace.server.fronts.link import HELLO, Link
from headrace.server.fronts.remote import Remote
from headrace.server.rpc.service import Received
from headrace.server.rpc.wire import Parts, Reader, WireRequest
from headrace.server.security.access import Shown
from headrace.server.security.guard import nothing_shown

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="front processes need Linux")
SIZE = 1 << 20
LARGE = 200_000


class Pipe:
    """A transport to another link, which gets what is written in the next turn."""

    def __init__(self, to: Link) -> None:
        self.to = to
        self.closed = False

    def writelines(self, parts: Any) -> None:
        data = b"".join(parts)
        asyncio.get_running_loop().call_soon(self._arrive, data)

    def _arrive(self, data: bytes) -> None:
        if not self.closed:
            self.to.data_received(data)

    def close(self) -> None:
        self.closed = True


class Begun:
    def __init__(self, wire: WireRequest) -> None:
        self.wire = wire
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()


class Service:
    """Stands for InferenceService: takes calls on, and answers them when it is told to."""

    def __init__(self) -> None:
        self.reader = Reader()
        self.begun: deque[Begun] = deque()
        self.gone: list[Begun] = []
        self.over = 0
        self.asked: list[dict[str, Any]] = []
        self.refuse: Exception | None = None

    def assemble(self, parts: Parts) -> Received:
        return self.reader.assemble(parts)

    def begin_received(
        self,
        received: Received,
        metadata: Any,
        remaining: Any,
        caller: str,
        shown: Any,
        arrival: float,
    ) -> Begun:
        if isinstance(received, InvalidInput):
            raise received
        if self.refuse is not None:
            raise self.refuse
        self.asked.append(
            {"metadata": metadata(), "remaining": remaining, "caller": caller, "shown": shown()}
        )
        self.begun.append(Begun(received))
        return self.begun[-1]

    def finish(self, begun: Begun, join: Any) -> Any:
        return join([b"answer to ", begun.wire.id.encode(), begun.future.result()])

    def sent(self, begun: Begun) -> None:
        self.over += 1

    def left(self, begun: Begun) -> None:
        begun.future.cancel()
        self.gone.append(begun)


class Both:
    """Both ends."""

    def __init__(self) -> None:
        requests, responses = new_memory("requests", SIZE), new_memory("responses", SIZE)
        self.service = Service()
        self.lost: list[int] = []
        self.writer = Writer(requests, SIZE)
        self.answers = Writer(responses, SIZE)
        read: mmap.mmap = map_to_read(responses, SIZE)
        self.remote = Remote(self.writer, read, lambda: self.lost.append(1))
        leases = Leases(map_to_read(requests, SIZE))
        service: Any = self.service
        self.end = _FrontEnd(service, leases, self.answers, lambda _: self.lost.append(2))
        for descriptor in (requests, responses):
            os.close(descriptor)
        self.remote.link.connection_made(Pipe(self.end.link))
        self.end.link.connection_made(Pipe(self.remote.link))

    def ask(self, id_: str = "", size: int = 16, **options: Any) -> Any:
        return self.remote.begin(
            request(id_, size),
            options.get("metadata", tuple),
            options.get("remaining"),
            "caller",
            options.get("shown", nothing_shown),
        )


def request(id_: str, size: int) -> bytes:
    raw = np.arange(size // 4, dtype=np.float32).tobytes()
    message = pb.ModelInferRequest(model_name="m", id=id_, raw_input_contents=[raw])
    message.inputs.add(name="x", datatype="FP32", shape=[size // 4])
    return message.SerializeToString()


@pytest.fixture
async def both() -> Both:
    return Both()


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("size", [16, LARGE, 2 * SIZE])
async def test_calls_arrive_and_are_answered_in_any_order(both: Both, size: int) -> None:
    asked = [both.ask(f"{n}", size) for n in range(3)]
    await turns()
    for begun in reversed(both.service.begun):
        (raw,) = begun.wire.raw
        np.testing.assert_array_equal(np.frombuffer(raw, np.float32), np.arange(size // 4))
        begun.future.set_result(bytes(size))
    del begun, raw
    both.service.begun.clear()
    for number, one in enumerate(asked):
        assert await one.future == b"answer to %d" % number + bytes(size)
    # Whoever reads gives back what lay in shared memory.
    await turns()
    both.ask("last")
    await turns()
    both.service.begun.pop().future.set_result(b"")
    await turns()
    assert (len(both.writer.slots), len(both.answers.slots)) == (0, 0)
    assert both.service.over == 4


async def test_what_is_read_still_is_not_given_back(both: Both) -> None:
    """The caller leaves; a run goes on that reads the tensors where they lie."""
    asked = both.ask("", LARGE)
    await turns()
    begun = both.service.begun.pop()
    both.remote.left(asked)
    await turns()
    assert both.service.gone == [begun]
    assert len(both.writer.slots) == 1
    both.service.gone.clear()
    del begun
    both.ask()
    await turns()
    both.service.begun.pop().future.set_result(b"")
    await turns()
    assert len(both.writer.slots) == 0


async def test_a_call_that_leaves_at_once_is_withdrawn(both: Both) -> None:
    both.remote.left(both.ask())
    await turns()
    assert len(both.service.gone) == 1
    assert both.service.gone[0].future.cancelled()


async def test_who_calls_is_told_where_it_is_asked_for(both: Both) -> None:
    metadata = (("traceparent", "00-1"), ("authorization", "Bearer x"))
    shown = Shown(b"digest", ("name",))
    for hello in ((HELLO, False, False), (HELLO, True, False), (HELLO, False, True)):
        both.end.link.send(hello)
        await turns()
        both.ask(metadata=lambda: metadata, shown=lambda: shown, remaining=2.5)
        await turns()
    plain, known, traced = both.service.asked
    assert (plain["metadata"], plain["shown"]) == ((), Shown())
    assert known["shown"] == Shown(b"digest", ["name"])
    assert [tuple(pair) for pair in traced["metadata"]] == [("traceparent", "00-1")]
    assert traced["remaining"] == 2.5


async def test_errors_come_back_as_what_they_are(both: Both) -> None:
    both.service.refuse = ModelNotFound("unknown model")
    asked = both.ask()
    with pytest.raises(ModelNotFound, match="unknown model"):
        await asked.future
    both.service.refuse = None
    asked = both.remote.begin(b"\xff\xff", tuple, None, "", nothing_shown)
    with pytest.raises(InvalidInput, match="cannot be parsed"):
        await asked.future
    asked = both.ask()
    await turns()
    both.service.begun.pop().future.cancel()
    with pytest.raises(Draining):
        await asked.future


async def test_when_the_model_process_goes_its_calls_fail(both: Both) -> None:
    asked = both.ask()
    await turns()
    both.remote.link.connection_lost(None)
    with pytest.raises(ModelProcessAway, match="before it had answered"):
        await asked.future
    with pytest.raises(ModelProcessAway, match="try again"):
        both.ask()
    assert both.lost == [1]


async def test_when_a_front_goes_its_calls_are_withdrawn(both: Both) -> None:
    both.ask()
    await turns()
    (begun,) = both.service.begun
    both.end.link.connection_lost(None)
    assert both.service.gone == [begun]
    assert both.lost == [2]


async def test_after_the_end_nothing_is_taken(both: Both) -> None:
    asked = both.ask("1")
    await turns()
    both.service.begun.pop().future.set_result(b"")
    await turns(1)
    both.end.finish()
    assert await asked.future == b"answer to 1"
    await both.remote.ended.wait()
    with pytest.raises(Draining):
        both.ask()
