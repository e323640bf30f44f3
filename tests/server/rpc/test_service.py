"""The walk of a request from bytes to bytes, without a transport."""

from __future__ import annotations

import asyncio
import gc
import pathlib
import time
import weakref
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest

from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.server.errors import InvalidInput
from headrace.server.executors.session import Provider
from headrace.server.models.registry import Registry
from headrace.server.models.repository import Catalogue
from headrace.server.models.served import Host
from headrace.server.rpc.limits import Limits
from headrace.server.rpc.service import InferenceService
from headrace.server.streams.budget import StateBudget
from headrace.server.streams.sequences import Sequences
from headrace.server.telemetry.watch import Watch
from server import graphs

# More than this many of a thousand requests would be a habit.
_FEW = 20


@pytest.fixture
def repository(tmp_path: pathlib.Path) -> pathlib.Path:
    graphs.save(graphs.plus(1.0), tmp_path / "m" / "1" / "model.onnx")
    return tmp_path


@pytest.fixture
async def registry(repository: pathlib.Path) -> AsyncIterator[Registry]:
    made = Registry(Catalogue([repository]), Host(Provider.CPU))
    await made.load_all()
    yield made
    await made.drain()


@pytest.fixture
def service(registry: Registry) -> InferenceService:
    return InferenceService(Sequences(registry, StateBudget(1 << 20), 60.0), Watch())


@pytest.fixture
def _uncollected() -> Iterator[None]:
    """Inside the test nothing is freed but by its reference count."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def request(value: float, id_: str = "", version: str = "", datatype: str = "FP32") -> bytes:
    raw = np.full((1, 3), value, np.float32).tobytes()
    message = pb.ModelInferRequest(
        model_name="m", model_version=version, id=id_, raw_input_contents=[raw]
    )
    message.inputs.add(name="x", datatype=datatype, shape=[1, 3])
    return message.SerializeToString()


async def answer(service: InferenceService, data: bytes) -> pb.ModelInferResponse:
    response, charge = await service.answer(data, time.monotonic(), None, "test")
    charge.release()
    return pb.ModelInferResponse.FromString(response)


def values(response: pb.ModelInferResponse) -> list[float]:
    return list(np.frombuffer(response.raw_output_contents[0], np.float32))


async def test_each_is_answered_with_its_own(service: InferenceService) -> None:
    asked = [answer(service, request(n, f"{n}")) for n in range(50)]
    for number, response in enumerate(await asyncio.gather(*asked)):
        assert (response.id, values(response)) == (f"{number}", [number + 1] * 3)
    assert service.outcomes == {"OK": 50}


async def test_what_was_learned_of_a_kind_ends_with_its_model(
    service: InferenceService, registry: Registry, repository: pathlib.Path
) -> None:
    """The same bytes again after a reload are checked against the new model, and named by it."""
    for _ in range(3):
        response = await answer(service, request(1))
        assert (response.model_version, values(response)) == ("1", [2] * 3)
    graphs.save(graphs.plus(5.0), repository / "m" / "2" / "model.onnx")
    await registry.load("m")
    for _ in range(3):
        response = await answer(service, request(1))
        assert (response.model_version, values(response)) == ("2", [6] * 3)
    graphs.save(graphs.identity(("batch", 3), "INT32"), repository / "m" / "3" / "model.onnx")
    await registry.load("m")
    for _ in range(2):
        with pytest.raises(InvalidInput, match=r"expected datatype INT32 \(int32\), got FP32"):
            await answer(service, request(1))
    assert (await answer(service, request(1, datatype="INT32"))).model_version == "3"
    assert service.outcomes == {"OK": 7, "INVALID_INPUT": 2}


@pytest.mark.usefixtures("_uncollected")
async def test_a_request_leaves_nothing_for_the_collector(service: InferenceService) -> None:
    """Cycles would be freed in pauses that grow with all that is in memory."""
    for _ in range(10):
        await asyncio.gather(*(answer(service, request(n)) for n in range(8)))
    gc.collect()
    for _ in range(125):
        begun = [service.begin_call(request(n), tuple, None, "") for n in range(8)]
        await asyncio.gather(*(b.future for b in begun))
        for one in begun:
            service.finish(one)
            service.sent(one)
        del begun, one
    assert gc.collect() < _FEW


@pytest.mark.usefixtures("_uncollected")
async def test_a_model_that_has_gone_is_freed_without_the_collector(
    service: InferenceService, registry: Registry
) -> None:
    """What was loaded when the server started is kept from the collector: `serve`."""
    await answer(service, request(1))
    await answer(service, request(1))
    gone = weakref.ref(registry.get("m"))
    await registry.unload("m")
    await asyncio.sleep(0)
    assert gone() is None


async def test_an_answer_without_room_is_refused_and_counted(registry: Registry) -> None:
    sequences, limits = (
        Sequences(registry, StateBudget(1 << 20), 60.0),
        Limits(bytes_in_flight=5000),
    )
    service = InferenceService(sequences, Watch(), limits=limits)
    begun = service.begin_call(request(1), tuple, None, "")
    await begun.future
    asked = service.in_flight.nbytes
    unread = 2 * limits.bytes_in_flight - asked
    service.in_flight.hold(unread, asked)
    with pytest.raises(MemoryError):
        service.finish(begun)
    assert service.outcomes == {"OUT_OF_MEMORY": 1}
    assert service.in_flight.nbytes == unread


async def test_what_a_request_holds_is_held_until_its_answer_has_left(
    service: InferenceService,
) -> None:
    begun = service.begin_call(request(1), tuple, None, "")
    asked = service.in_flight.nbytes
    await begun.future
    response = service.finish(begun)
    assert service.in_flight.nbytes == asked + len(response)
    service.sent(begun)
    left = service.begin_call(request(1), tuple, None, "")
    service.left(left)
    assert service.in_flight.nbytes == 0
