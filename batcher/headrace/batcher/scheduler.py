"""The synchronous heart: takes events, applies decisions, hands back what must be done.

Theory of operation. Every event (a submission, a completion, a cancellation) changes the state at
once and decides nothing. `step` then asks the policy until it has nothing more to say, applies each
action to the state, and returns the actions for its caller to perform: run this batch, tell that
caller. So a burst of events costs one decision, and everything here can be tested with a clock that
stands still.
"""

from __future__ import annotations

from collections.abc import Mapping

from headrace.batcher.admission import full, late
from headrace.batcher.cost import CostTable
from headrace.batcher.fairness import displaced_by, take_turn
from headrace.batcher.policy import Policy
from headrace.batcher.request import (
    Action,
    Batch,
    Dispatch,
    Drop,
    Phase,
    Reject,
    Request,
    WakeAt,
)
from headrace.batcher.state import Device, Limits, State


class Scheduler:
    """One set of executors, the queues before them, and the policy between.

    `kinds` names each executor and its kind; `teams` and `device` are as State has them.
    """

    def __init__(
        self,
        kinds: Mapping[str, str],
        policy: Policy,
        limits: Limits,
        teams: Mapping[str, int] | None = None,
        device: Device | None = None,
    ) -> None:
        self.state = State(kinds, limits, teams, device)
        self._policy = policy
        self._displaced: list[Reject] = []

    def submit(self, request: Request) -> Reject | None:
        """Lets `request` wait, or says why it may not.

        In a full queue it may take the place of others, whose refusals are the next step's first
        actions.
        """
        take_turn(self.state, request)
        refusal, displaced = full(self.state, request), list[Reject]()
        if refusal is not None:
            displaced = displaced_by(self.state, request, refusal)
        if refusal is None or displaced:
            refusal = late(self.state, request)
        self.state.demands.arrived(request)
        self.state.meet()
        if refusal is not None:
            request.phase = Phase.ENDED
            return refusal
        for gone in displaced:
            self.state.withdraw(gone.request)
        self._displaced += displaced
        request.found = self.state.queued_requests
        self.state.demands.let_in(request)
        self.state.enqueue(request)
        return None

    def cancel(self, request: Request) -> Batch | None:
        """Forgets `request`, whose caller has left.

        Returns the batch it ran in when no other member's caller is left: it may be stopped.
        """
        if request.phase is Phase.QUEUED:
            self.state.withdraw(request)
        elif request.phase is Phase.RUNNING:
            request.phase = Phase.ENDED
            for batch in self.state.running.values():
                if batch is not None and request in batch.requests:
                    batch.live -= 1
                    return batch if batch.live == 0 else None
        return None

    def complete(
        self,
        executor: str,
        seconds: float,
        *,
        failed: bool = False,
        now: float | None = None,
        work: float | None = None,
    ) -> list[Request]:
        """Frees `executor`, whose run took `seconds`, `work` of them of the processor where that is
        known, and ended at `now`: as soon as it could have, where that is not given. Returns the
        members that end with this run.

        Those are the members whose callers still wait, unless a batch of several has failed: then
        they wait again, each half to be run without the other, and nothing ends.
        """
        batch = self.state.finish(executor)
        if now is None:
            now = batch.started + seconds
        if not failed:
            self._learn(batch, seconds, work, now)
        elif not batch.live:
            # Stopped, since everybody had left. Were nothing learned of that, a size that takes
            # longer than callers wait would be taken again and again.
            self._table(batch).outlasted(batch.rows, now - batch.started)
        members = [request for request in batch.requests if request.phase is Phase.RUNNING]
        if failed and len(batch.requests) > 1:
            middle = (len(members) + 1) // 2
            self._retry(members[:middle])
            self._retry(members[middle:])
            return []
        for request in members:
            request.phase = Phase.ENDED
            if request.trial and not failed and now <= request.deadline:
                # What was believed of its cost is wrong: the next one is let in to try, too.
                self.state.hopeless = 0
        return members

    def give_up(self, executor: str) -> list[Request]:
        """Takes `executor`, whose run hangs, out of service. Returns the members that end with it.

        They are not run again: with the next executor they might do the same.
        """
        batch = self.state.lose(executor)
        members = [request for request in batch.requests if request.phase is Phase.RUNNING]
        for request in members:
            request.phase = Phase.ENDED
        return members

    def restore(self, executor: str) -> None:
        """Another was put in the place of `executor`, which had been given up."""
        self.state.restore(executor)

    def _learn(self, batch: Batch, seconds: float, work: float | None, now: float) -> None:
        self.state.cost.overhead.observe(batch.rows, now - batch.started - seconds)
        table = self._table(batch)
        table.observe(batch.rows, seconds, batch.cold, work, batch.settled)
        if batch.undisturbed and self.state.demands.last <= batch.started:
            table.observe_undisturbed(batch.rows, seconds)
        if table.known:
            self.state.demands.answered(batch.key, now, batch.rows, table.seconds(1))

    def _table(self, batch: Batch) -> CostTable:
        row_bytes = sum(request.nbytes for request in batch.requests) / batch.rows
        return self.state.table(batch.executor, batch.key, row_bytes)

    def _retry(self, requests: list[Request]) -> None:
        group = object()
        for request in requests:
            request.group = group
            request.solo = len(requests) == 1
            self.state.enqueue(request)

    def step(self, now: float) -> list[Action]:
        """Decides all there is to decide at `now`. At most one WakeAt, the last action."""
        performed: list[Action] = list(self._displaced)
        self._displaced.clear()
        while True:
            progress = False
            for action in self._policy.decide(self.state, now):
                performed.append(action)
                if not isinstance(action, WakeAt):
                    self._apply(action)
                    progress = True
            if not progress:
                return performed

    def _apply(self, action: Dispatch | Drop | Reject) -> None:
        if isinstance(action, Dispatch):
            self.state.start(action.batch)
        else:
            self.state.withdraw(action.request)

    def withdraw_all(self) -> list[Request]:
        """Empties the queues. Returns what waited."""
        waiting = [request for queue in self.state.queues.values() for request in queue]
        for request in waiting:
            self.state.withdraw(request)
        return waiting
