"""Two thousand callers at once, of whom many leave, come late or send nonsense, and a reload.

Every request ends exactly once, nobody gets another's answer, and what the callers saw agrees with
what the server counted. The server runs in this process, so that its counters outlive the reload.
"""

from __future__ import annotations

import asyncio
import enum
import pathlib
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from headrace.client import (
    AsyncClient,
    DeadlineExceeded,
    InferenceFailed,
    InferResult,
    InvalidInput,
    Overloaded,
    RetryPolicy,
    StreamRequest,
)
from headrace.server.app import running
from headrace.server.config import load_settings
from headrace.server.models.served import ServedModel
from headrace.server.telemetry import refusals
from support import models, server
from support.waiting import until

# So many call at once; so many more while the model is reloaded, one as another ends; and so many
# when it has been.
AT_ONCE, MEANWHILE, AFTERWARDS = 2000, 300, 300
TOTAL = AT_ONCE + MEANWHILE + AFTERWARDS
# Of those that call at once, so many do it in streams.
STREAMS, PER_STREAM = 4, 100
RELOAD_AFTER = AT_ONCE // 4
QUEUE = 1500
CONFIG = f"""
instance_group [{{ count: 2 kind: KIND_CPU }}]
dynamic_batching {{ default_queue_policy {{ max_queue_size: {QUEUE} }} }}
"""


class Plan(enum.Enum):
    """What a caller means to do."""

    GOOD = "good"
    LEAVE = "leave"
    EXPIRE = "expire"
    EXPIRE_IN_QUEUE = "expire in queue"
    FAIL = "fail"
    NONSENSE = "nonsense"


class End(enum.Enum):
    """How it ended for the caller."""

    ANSWERED = "answered"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    OVERLOADED = "overloaded"
    FAILED = "failed"
    REFUSED = "refused"


# A caller whose queue was full is turned away whatever it meant to do.
ALLOWED: dict[Plan, set[End]] = {
    Plan.GOOD: {End.ANSWERED, End.OVERLOADED},
    Plan.LEAVE: {End.ANSWERED, End.OVERLOADED, End.CANCELLED},
    Plan.EXPIRE: {End.ANSWERED, End.OVERLOADED, End.EXPIRED},
    Plan.EXPIRE_IN_QUEUE: {End.ANSWERED, End.OVERLOADED, End.EXPIRED},
    Plan.FAIL: {End.FAILED, End.OVERLOADED},
    Plan.NONSENSE: {End.REFUSED},
}
STREAMABLE = (Plan.GOOD, Plan.FAIL, Plan.NONSENSE)
PLANS = random.Random(0).choices(list(Plan), weights=[60, 14, 9, 6, 1, 10], k=TOTAL)


@dataclass(frozen=True)
class Caller:
    """One request, recognisable by its values: number * 4 + row, exact in 32 bits."""

    number: int
    plan: Plan
    rows: int
    width: int
    steps: int
    index: int

    def inputs(self) -> dict[str, Any]:
        x = np.repeat(self.number * 4 + np.arange(self.rows), self.width)
        index = np.full(self.rows, self.index)
        if self.plan is Plan.FAIL:
            index[-1] = 1000
        inputs: dict[str, Any] = {
            "x": x.reshape(self.rows, self.width).astype(np.float32),
            "steps": np.full(self.rows, self.steps),
            "index": index,
        }
        if self.plan is Plan.NONSENSE:
            wrong: dict[int, Any] = {
                0: {"x": inputs["x"].astype(np.float64)},
                1: {"index": index[:, None]},
                2: {"steps": np.zeros(self.rows + 1, np.int64)},
                3: {"unknown": index},
            }
            inputs |= wrong[self.number % 4]
        return inputs

    def check(self, result: InferResult) -> None:
        expected = self.inputs()
        np.testing.assert_array_equal(result["y"], 2 * expected["x"] + 1)
        np.testing.assert_array_equal(result["picked"], 100 + expected["index"])


def draw(seed: int) -> list[Caller]:
    rng = random.Random(seed)
    plans = rng.sample(PLANS, TOTAL)
    return [
        Caller(
            number,
            plan,
            rows=rng.randint(1, 3),
            width=rng.randint(1, 2),
            steps=rng.choice((0, 0, 100, 1500)),
            index=rng.randrange(10),
        )
        for number, plan in enumerate(plans)
    ]


class Chaos:
    """The callers, and what became of each."""

    def __init__(self, client: AsyncClient, seed: int) -> None:
        self.client = client
        self.rng = random.Random(seed)
        self.ends: dict[int, End] = {}
        self.versions: Counter[str] = Counter()
        self.progress = asyncio.Condition()

    async def ended(self, caller: Caller, end: End) -> None:
        assert caller.number not in self.ends, "a second end"
        self.ends[caller.number] = end
        async with self.progress:
            self.progress.notify_all()

    async def until_ended(self, count: int) -> None:
        async with self.progress:
            await self.progress.wait_for(lambda: len(self.ends) >= count)

    def answered(self, caller: Caller, result: InferResult) -> End:
        caller.check(result)
        self.versions[result.version] += 1
        return End.ANSWERED

    async def call(self, caller: Caller) -> End:
        """One unary call."""
        deadline = parameters = None
        if caller.plan is Plan.EXPIRE:
            deadline = self.rng.uniform(0.001, 0.1)
        elif caller.plan is Plan.EXPIRE_IN_QUEUE:
            parameters = {"timeout": self.rng.randint(1, 50_000)}
        try:
            result = await self.client.infer(
                "lab", caller.inputs(), deadline=deadline, parameters=parameters
            )
        except Exception as error:  # noqa: BLE001 (a kind that is not known fails there)
            return end_of(error)
        return self.answered(caller, result)

    async def unary(self, caller: Caller, after: int = 0) -> None:
        """One unary call, begun when so many others have ended, and left as planned."""
        await self.until_ended(after)
        if caller.plan is not Plan.LEAVE:
            await self.ended(caller, await self.call(caller))
            return
        call = asyncio.create_task(self.call(caller))
        # At once, or when so many others have ended: in the queue, or while it runs.
        patience = asyncio.create_task(self.until_ended(self.rng.choice((0, 300, 600, 900, 1200))))
        try:
            await asyncio.wait([call, patience], return_when=asyncio.FIRST_COMPLETED)
        finally:
            call.cancel()
            patience.cancel()
            await asyncio.wait([call, patience])
        await self.ended(caller, End.CANCELLED if call.cancelled() else call.result())

    async def stream(self, callers: list[Caller]) -> None:
        """Many requests in one call, where the plans to leave and to expire are not made."""
        by_id = {f"#{position}": caller for position, caller in enumerate(callers)}
        requests = [StreamRequest("lab", caller.inputs()) for caller in callers]
        async for answer in self.client.infer_stream(requests):
            caller = by_id.pop(answer.id)
            if answer.error is not None:
                await self.ended(caller, end_of(answer.error))
            else:
                await self.ended(caller, self.answered(caller, answer.unwrap()))
        assert not by_id, "the stream ended before its answers"


def end_of(error: Exception) -> End:
    ends: dict[type[Exception], End] = {
        DeadlineExceeded: End.EXPIRED,
        Overloaded: End.OVERLOADED,
        InferenceFailed: End.FAILED,
        InvalidInput: End.REFUSED,
    }
    if type(error) not in ends:
        raise error
    return ends[type(error)]


@pytest.mark.parametrize("seed", [1, 2])
async def test_chaos(tmp_path: pathlib.Path, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING")
    models.write(tmp_path, "lab", models.lab(), config=CONFIG)
    surprises: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: surprises.append(what))
    flags = {"models": [tmp_path], "grpc_port": 0, "http_port": 0, "rpc_engine": server.ENGINE}
    settings = load_settings(flags, None, {})
    async with running(settings) as (app, addresses):
        generations = [app.registry.get("lab")]
        retry = RetryPolicy(max_attempts=1)
        async with AsyncClient(addresses.grpc, retry=retry) as client:
            chaos, callers = Chaos(client, seed), draw(seed)
            streamed = [c for c in callers[:AT_ONCE] if c.plan in STREAMABLE]
            streamed = streamed[: STREAMS * PER_STREAM]
            numbers = {caller.number for caller in streamed}
            async with asyncio.timeout(server.PATIENCE), asyncio.TaskGroup() as tasks:
                for caller in callers[:AT_ONCE]:
                    if caller.number not in numbers:
                        tasks.create_task(chaos.unary(caller))
                for stream in range(STREAMS):
                    tasks.create_task(chaos.stream(streamed[stream::STREAMS]))
                for late, caller in enumerate(callers[AT_ONCE:-AFTERWARDS]):
                    tasks.create_task(chaos.unary(caller, after=RELOAD_AFTER + 4 * late))
                await chaos.until_ended(RELOAD_AFTER)
                models.write(tmp_path, "lab", models.lab(), version=2, config=CONFIG)
                await client.load_model("lab")
                generations.append(app.registry.get("lab"))
                for caller in callers[-AFTERWARDS:]:
                    tasks.create_task(chaos.unary(caller))
            await until_idle(generations)
    assert surprises == []
    logged = [one for one in caplog.records if one.name != refusals.__name__]  # those are meant
    assert [record.getMessage() for record in logged] == []
    check_ends(callers, chaos)
    check_counters(callers, chaos, generations)


async def until_idle(generations: list[ServedModel]) -> None:
    """A caller that leaves is gone before the server knows; it knows soon."""

    async def idle() -> bool:
        states = [model.runner.state for model in generations]
        return not any(s.queued_requests or any(s.running.values()) for s in states)

    await until(idle)


def check_ends(callers: list[Caller], chaos: Chaos) -> None:
    assert sorted(chaos.ends) == list(range(TOTAL))
    for caller in callers:
        assert chaos.ends[caller.number] in ALLOWED[caller.plan], caller
    # Nothing was shown about an end that nobody met.
    table = Counter(chaos.ends.values())
    assert set(table) >= {End.ANSWERED, End.CANCELLED, End.EXPIRED, End.FAILED, End.REFUSED}
    assert set(chaos.versions) == {"1", "2"}


def check_counters(callers: list[Caller], chaos: Chaos, generations: list[ServedModel]) -> None:
    seen = Counter(chaos.ends.values())
    figures = [model.statistics for model in generations]
    ended: Counter[str] = sum((f.ended for f in figures), Counter())
    answered = sum(f.success.count for f in figures)
    # Who leaves, or expires while running, may have been answered all the same.
    gone = seen[End.CANCELLED] + seen[End.EXPIRED]
    assert seen[End.ANSWERED] <= answered <= seen[End.ANSWERED] + gone
    # What fails and what is refused has no other end than the one that both sides see.
    assert ended["model failed"] == seen[End.FAILED]
    assert sum(f.fail.count for f in figures) == ended.total()
    refused = ended.total() - ended["model failed"] - ended["cancelled"]
    refused -= ended["deadline passed in the queue"]
    assert seen[End.OVERLOADED] <= refused <= seen[End.OVERLOADED] + gone
    assert answered + ended.total() <= TOTAL - seen[End.REFUSED]
    # Who neither leaves nor expires has been counted; the others may never have arrived.
    certain = sum(chaos.ends[c.number] not in (End.CANCELLED, End.EXPIRED) for c in callers)
    assert answered + ended.total() >= certain - seen[End.REFUSED]
    rows = sum(c.rows for c in callers if chaos.ends[c.number] is End.ANSWERED)
    assert sum(f.rows for f in figures) >= rows
    for figure in figures:
        sizes = {size: took.infer.count for size, took in figure.sizes.items()}
        assert sum(sizes.values()) == figure.executions
        assert sum(size * count for size, count in sizes.items()) >= figure.rows
        assert figure.reasons.total() >= figure.executions
        assert figure.success.count == figure.infer.count == figure.queue.count
        assert max(sizes) > 1, "nothing was batched, so nothing was shown"
    for model in generations:
        state = model.runner.state
        assert (state.queued_requests, state.queued_bytes, len(state.queues)) == (0, 0, 0)
        assert not model.runner._callers._promises
