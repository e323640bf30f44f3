"""Everything a decision may look at: the queues, the executors, and what was learned of them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

from headrace.batcher.cost import CostTable
from headrace.batcher.cost_model import CostModel
from headrace.batcher.demand import Demands
from headrace.batcher.line import Line
from headrace.batcher.queue import Queue
from headrace.batcher.request import Batch, Phase, Request

_CROWD_SMOOTHING: Final = 0.1
_NOBODY: list[str] = []
# So many runs it takes until a team that takes over is warm: threads sleep, caches are others'.
_WARM: Final = 8
# And an executor, after a run with more than so many times the rows.
_SETTLED: Final = 2
_ALIKE: Final = 1.25


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one runner, each counted over all its queues.

    max_batch_rows: rows that may share a batch; a single request with more still runs, alone.
    max_queued_requests: requests that wait; the next one is refused.
    max_queued_bytes: bytes of payload that wait; a request that would exceed them is refused
        unless nothing else waits.
    hang_seconds: a run that takes longer, and far longer than was predicted, is given up with its
        executor (`watchdog.py`); infinite for never.
    """

    max_batch_rows: int = 8
    max_queued_requests: int = 8192
    max_queued_bytes: int = 1 << 30
    hang_seconds: float = math.inf

    def __post_init__(self) -> None:
        for name in ("max_batch_rows", "max_queued_requests", "max_queued_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not self.hang_seconds > 0:
            raise ValueError(f"hang_seconds: expected more than 0, got {self.hang_seconds}")


class Device:
    """What several runners have in common.

    `running` counts the batches on it at this moment. `pressed`: the processors that run batches
    are also those that bring requests here and take answers away, and have no time left. `lock`:
    held by whoever changes a state on it, or walks through one; of use once a runner has put one
    here, whose executors' threads decide too.
    """

    __slots__ = ("lock", "pressed", "running")

    def __init__(self) -> None:
        self.running = 0
        self.pressed = False
        self.lock: AbstractContextManager[Any] = nullcontext()


class State:
    """The waiting and the running of one runner. Changes are made by the scheduler alone.

    `kinds` names each executor's kind: those of one kind are taken to be equally fast, and learn
    from each other. `teams` numbers them: executors of different teams would take each other's
    cores, so they never run at the same time; 0, the main team, where nothing is said. `crowd` is
    how many other requests an arriving one usually finds here, waiting or running. What waits is
    held twice: in `queues` by compatibility key, and in `shares` by priority and then caller.
    `absent` executors are out of service: they were given up while they ran, and not replaced yet.
    """

    def __init__(
        self,
        kinds: Mapping[str, str],
        limits: Limits,
        teams: Mapping[str, int] | None = None,
        device: Device | None = None,
    ) -> None:
        self.limits = limits
        self.kinds = kinds
        self.teams = teams or dict.fromkeys(kinds, 0)
        self.device = device or Device()
        self.crowd = 0.0
        self.cost = CostModel(limits.max_batch_rows)
        self.demands = Demands()
        self.queues: dict[Hashable, Queue] = {}
        self.shares: dict[int, dict[Hashable, Queue]] = {}
        self.running: dict[str, Batch | None] = dict.fromkeys(kinds)
        # The team that runs something, the main one when nothing runs; and its idle executors, in
        # the order they were given. Asked for at every event, so kept rather than searched for.
        self.in_charge = 0
        self.idle: list[str] = []
        self.absent: set[str] = set()
        # The team that ran last, and how many runs it has had since it took over.
        self._ran, self._runs = 0, _WARM
        # Of each executor's last run the key and the rows, and how many were like it before.
        self._last: dict[str, tuple[Hashable, int, int]] = {}
        self._line_up()
        self.queued_requests = 0
        self.queued_bytes = 0
        self.hopeless = 0
        self.line = Line()
        self._deadlines: list[tuple[float, int, Request]] = []

    def __repr__(self) -> str:
        busy = sum(batch is not None for batch in self.running.values())
        return (
            f"<State: {self.queued_requests} requests queued under {len(self.queues)} keys, "
            f"{busy} of {len(self.running)} executors busy>"
        )

    def _line_up(self) -> None:
        """Settles who carries the load among the executors that are there, all while none is."""
        there = [name for name in self.kinds if name not in self.absent] or list(self.kinds)
        self.there, self._main = there, self.teams[there[0]]
        self.peers = {
            name: [o for o in there if self.teams[o] == self.teams[name] and self.kinds[o] == kind]
            for name, kind in self.kinds.items()
        }
        # Those that carry the load are of the first one's kind; the others of its team help.
        self.executors = self.peers[there[0]]
        main = [name for name in there if self.teams[name] == self._main]
        self.helpers = [name for name in main if name not in self.executors]
        self._others = [name for name in there if name not in main]
        self._look_for_idle()

    def _look_for_idle(self) -> None:
        busy = (self.teams[name] for name, batch in self.running.items() if batch is not None)
        self.in_charge = team = next(busy, self._main)
        self.idle = [
            name
            for name, batch in self.running.items()
            if batch is None and self.teams[name] == team and name not in self.absent
        ]

    @property
    def able(self) -> bool:
        """Whether any executor is there."""
        return len(self.absent) < len(self.kinds)

    @property
    def alternatives(self) -> list[str]:
        """The executors of other teams than the main one, when they could start now.

        They take the whole device, so they start only while nothing else runs on it.
        """
        if self.device.running:
            return _NOBODY
        return self._others

    @property
    def candidates(self) -> list[str]:
        """The executors that the next batch may run on: those that could start it now, or all of
        them while none could, or only helpers, for which it need not settle."""
        idle = [name for name in self.idle if name not in self.helpers]
        return [*idle, *self.alternatives] if idle else self.there

    def table(self, executor: str, key: Hashable, row_bytes: float) -> CostTable:
        """What batches of `key` cost on `executor`."""
        return self.cost.table(self.kinds[executor], key, row_bytes)

    def free_in(self, executor: str, now: float) -> float:
        """Seconds until `executor` is expected to be free; 0 when it is idle or overdue."""
        if self.teams[executor] != self.in_charge:
            return max(self._remaining(batch, now) for batch in self.running.values())
        return self._remaining(self.running[executor], now)

    def _remaining(self, batch: Batch | None, now: float) -> float:
        if batch is None or batch.expected != batch.expected:
            return 0.0
        return max(0.0, batch.started + batch.expected - now)

    def meet(self) -> None:
        """Notes how many requests one that arrives now finds here."""
        here = self.queued_requests
        for batch in self.running.values():
            if batch is not None:
                here += batch.live
        self.crowd += _CROWD_SMOOTHING * (here - self.crowd)

    def expired(self, now: float) -> Iterator[Request]:
        """The waiting requests whose deadline is `now` or earlier, each once."""
        stack = [0] if self._deadlines else []
        seen: set[Request] = set()  # one that was retried has an entry for each time it waited
        while stack:
            at = stack.pop()
            if at >= len(self._deadlines) or self._deadlines[at][0] > now:
                continue
            request = self._deadlines[at][2]
            if request.phase is Phase.QUEUED and request not in seen:
                seen.add(request)
                yield request
            stack += (2 * at + 1, 2 * at + 2)

    def next_deadline(self) -> float | None:
        """The earliest deadline among the waiting requests, None when none has any."""
        while self._deadlines and self._deadlines[0][2].phase is not Phase.QUEUED:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def enqueue(self, request: Request) -> None:
        queue = self.queues.get(request.key)
        if queue is None:
            queue = self.queues[request.key] = Queue()
        queue.add(request)
        level = self.shares.setdefault(request.priority, {})
        share = level.get(request.caller)
        if share is None:
            share = level[request.caller] = Queue()
        share.add(request)
        request.phase = Phase.QUEUED
        self.queued_requests += 1
        self.queued_bytes += request.nbytes
        if request.deadline != math.inf:
            heapq.heappush(self._deadlines, (request.deadline, request.sequence, request))

    def withdraw(self, request: Request) -> None:
        """Takes a waiting request out for good."""
        queue = self.queues[request.key]
        queue.remove(request)
        self._left(queue, [request])
        request.phase = Phase.ENDED

    def start(self, batch: Batch) -> None:
        """Moves the head of the batch's queue onto its executor."""
        queue = self.queues[batch.key]
        queue.remove_head(len(batch.requests))
        for request in batch.requests:
            request.phase = Phase.RUNNING
            request.started = batch.started
        self._left(queue, batch.requests)
        if (team := self.teams[batch.executor]) != self._ran:
            self._ran, self._runs = team, 0
        batch.cold = self._runs < _WARM
        batch.settled = self._settled(batch)
        batch.undisturbed = not self.device.running and not self.queued_requests
        self._runs += 1
        self.running[batch.executor] = batch
        self.device.running += 1
        self._look_for_idle()

    def _settled(self, batch: Batch) -> bool:
        """Whether the executor of `batch`, which begins, has run others like it right before. After
        larger ones, or another key's, the caches hold what those needed."""
        key, rows, count = self._last.get(batch.executor, (batch.key, batch.rows, _SETTLED))
        count = count + 1 if key == batch.key and rows <= _ALIKE * batch.rows else 0
        self._last[batch.executor] = (batch.key, batch.rows, count)
        return count >= _SETTLED

    def finish(self, executor: str) -> Batch:
        """Frees `executor`. Raises KeyError when it ran nothing."""
        batch = self.running[executor]
        if batch is None:
            raise KeyError(executor)
        self.running[executor] = None
        self.device.running -= 1
        self._look_for_idle()
        return batch

    def lose(self, executor: str) -> Batch:
        """Takes `executor` out of service with its batch. Raises KeyError when it ran nothing."""
        batch = self.finish(executor)
        self.absent.add(executor)
        self._line_up()
        return batch

    def restore(self, executor: str) -> None:
        """`executor` is there again, and idle."""
        self.absent.discard(executor)
        self._line_up()

    def _left(self, queue: Queue, requests: list[Request]) -> None:
        self.queued_requests -= len(requests)
        self.queued_bytes -= sum(request.nbytes for request in requests)
        if not queue:
            del self.queues[requests[0].key]
        for request in requests:
            self._leave_share(request)
        # Entries of requests that left keep their payloads alive until their deadline comes up.
        if len(self._deadlines) > 2 * self.queued_requests + 64:
            live = [entry for entry in self._deadlines if entry[2].phase is Phase.QUEUED]
            heapq.heapify(live)
            self._deadlines = live

    def _leave_share(self, request: Request) -> None:
        level = self.shares[request.priority]
        share = level[request.caller]
        share.remove(request)
        if not share:
            del level[request.caller]
            if not level:
                del self.shares[request.priority]
