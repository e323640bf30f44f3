"""A share for each caller, in the real server: a flood from one does not lock out another."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
import time
from collections.abc import AsyncIterator, Iterator

import grpc
import numpy as np
import pytest

from headrace.client import (
    AsyncClient,
    HeadraceError,
    InferResult,
    InvalidInput,
    Overloaded,
    RetryPolicy,
    StreamRequest,
)
from support import models, server

ROW = {"x": np.ones((1, 4), np.float32)}
FLOOD = 300
# The flood alone would take FLOOD runs; the others have time for this many.
RUNS = 30
# Another process, and so another connection: it keeps FLOOD calls under way until it is killed.
FLOODER = """
import asyncio, sys
import numpy as np
from headrace.client import AsyncClient, HeadraceError

async def main(address, count, caller):
    headers = {"headrace-caller": caller} if caller else None
    async with AsyncClient(address, headers=headers) as client:
        async def call():
            while True:
                try:
                    await client.infer("slow", {"x": np.ones((1, 4), np.float32)})
                except HeadraceError:
                    await asyncio.sleep(0.1)
        await asyncio.gather(*(call() for _ in range(count)))

asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[server.RunningServer]:
    folder = tmp_path_factory.mktemp("fairness")
    slow = models.slowed(models.scaled(), steps=2000)
    toml = "max_batch_size = 1\ninstances = 1\n"
    models.write(folder / "models", "slow", slow, toml=toml)
    free = models.slowed(models.scaled(), steps=2000)
    models.write(folder / "models", "batched", free, toml="instances = 1\n")
    with server.serving(folder / "log", folder / "models") as found:
        yield found


@contextlib.asynccontextmanager
async def flood(running: server.RunningServer, caller: str = "") -> AsyncIterator[None]:
    """A flood from another process, once its calls wait in the queue."""
    command = [sys.executable, "-c", FLOODER, running.grpc, str(FLOOD), caller]
    process = await asyncio.create_subprocess_exec(*command)
    try:
        await _until_queued(running, FLOOD - 20)
        yield
    finally:
        process.kill()
        await process.wait()
        await _until_queued(running, 0)


async def _until_queued(running: server.RunningServer, count: int) -> None:
    """Waits for at least `count` requests of "slow" in the queue; for 0, until none is left."""
    pattern = re.compile(r'headrace_queue_requests\{model="slow".*\} (\S+)')
    stop = time.monotonic() + server.PATIENCE
    while time.monotonic() < stop:
        found = pattern.search((await asyncio.to_thread(running.get, "/metrics"))[1])
        if found and (float(found[1]) >= count if count else float(found[1]) == 0):
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"never {count} requests in the queue")


async def one_after_another(
    address: str, caller: str | None = None
) -> list[InferResult | HeadraceError]:
    """20 calls, each with time for RUNS runs of the model."""
    headers = {"headrace-caller": caller} if caller else None
    async with AsyncClient(address, retry=RetryPolicy(max_attempts=1), headers=headers) as client:
        explained = await client.infer("slow", ROW, parameters={"headrace_explain": True})
        deadline = RUNS * int(explained.parameters["headrace_expected_us"]) / 1e6
        outcomes: list[InferResult | HeadraceError] = []
        for _ in range(20):
            try:
                outcomes.append(await client.infer("slow", ROW, deadline=deadline))
            except HeadraceError as error:
                outcomes.append(error)
        return outcomes


@pytest.mark.parametrize("callers", [("", None), ("flooder", "polite")])
async def test_calls_one_after_another_are_in_time_beside_a_flood(
    running: server.RunningServer, callers: tuple[str, str | None]
) -> None:
    """Told apart by their connections, or by what they say."""
    async with flood(running, callers[0]):
        outcomes = await one_after_another(running.grpc, callers[1])
    assert [type(outcome) for outcome in outcomes] == [InferResult] * 20


async def test_one_who_is_the_flooder_has_no_share_beside_it(running: server.RunningServer) -> None:
    """What the test above would see if there were no shares."""
    async with flood(running, "same"):
        outcomes = await one_after_another(running.grpc, "same")
    assert Overloaded in {type(outcome) for outcome in outcomes}


async def test_a_name_that_is_too_long_is_refused(running: server.RunningServer) -> None:
    async with AsyncClient(running.grpc, headers={"headrace-caller": "c" * 129}) as client:
        with pytest.raises(InvalidInput, match="'headrace-caller': expected at most 128") as caught:
            await client.infer("slow", ROW)
        assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stream_has_one_name_for_all_its_requests(running: server.RunningServer) -> None:
    async with AsyncClient(running.grpc, headers={"headrace-caller": "c" * 129}) as client:
        requests = [StreamRequest("slow", ROW) for _ in range(2)]
        answers = [answer async for answer in client.infer_stream(requests)]
    assert len(answers) == 2
    for answer in answers:
        assert isinstance(answer.error, InvalidInput)
        assert "'headrace-caller'" in str(answer.error)


async def test_the_solo_answer_is_computed_alone_under_load(running: server.RunningServer) -> None:
    async with AsyncClient(running.grpc) as client:
        explain = {"headrace_explain": True}
        calls = [
            client.infer("batched", ROW, parameters=explain, solo=number % 4 == 0)
            for number in range(64)
        ]
        results = await asyncio.gather(*calls)
    shared = [int(result.parameters["headrace_batch_requests"]) for result in results]
    assert set(shared[::4]) == {1}
    assert max(shared) > 1
