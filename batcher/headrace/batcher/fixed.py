"""The rule of those who insist: fixed sizes and a fixed delay, as in Triton's dynamic batcher.

For comparing like with like, and for models whose batches must be of certain sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.batcher.policy import close, rank_of_head, wake
from headrace.batcher.queue import Queue
from headrace.batcher.request import Action, Dispatch, Drop, Reason, WakeAt, Why
from headrace.batcher.state import State


@dataclass(frozen=True, slots=True)
class Fixed:
    """Closes a batch at the largest preferred size, or when its first request has waited enough.

    preferred: sizes in rows, ascending; empty stands for the largest size allowed.
    delay: seconds that a request may wait for company while an executor is idle.

    Unlike Triton's, a request of another shape neither joins nor closes a batch: each key has a
    queue of its own.
    """

    preferred: tuple[int, ...] = ()
    delay: float = 0.0

    def decide(self, state: State, now: float) -> Sequence[Action]:
        drops = [Drop(request, Why.EXPIRED) for request in state.expired(now)]
        if drops:
            return drops
        due = [item for item in state.queues.items() if self._due(state, item[1], now)]
        if state.idle and due:
            key, queue = min(due, key=rank_of_head)
            rows, reason = self._size(state, queue)
            return (Dispatch(close(state, key, state.idle[0], rows, reason, now)),)
        return self._wake(state, now)

    def _target(self, state: State) -> int:
        cap = state.limits.max_batch_rows
        return min(cap, max(self.preferred, default=cap))

    def _due(self, state: State, queue: Queue, now: float) -> bool:
        return queue.rows >= self._target(state) or self._ripe_at(queue) <= now

    def _ripe_at(self, queue: Queue) -> float:
        return min(request.arrival for request in queue) + self.delay

    def _size(self, state: State, queue: Queue) -> tuple[int, Reason]:
        """The largest preferred size that can be had; all that waits if none can."""
        sizes = [size for size in self.preferred if size <= queue.rows]
        rows = max(sizes, default=queue.rows)
        return min(rows, self._target(state)), Reason.FULL

    def _wake(self, state: State, now: float) -> Sequence[WakeAt]:
        times = [action.time for action in wake(state)]
        if state.idle:
            times += [ripe for q in state.queues.values() if (ripe := self._ripe_at(q)) > now]
        return (WakeAt(min(times)),) if times else ()
