"""Bounds what sessions and sequences hold in memory, all of them together. Sizes are bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from headrace.server.errors import StreamRefused


class StateBudget:
    """`limit` and `used` are bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def reserve(self, nbytes: int) -> None:
        """Raises StreamRefused where nothing is left."""
        if self.used + nbytes > self.limit:
            raise StreamRefused(
                "STATE_MEMORY",
                "",
                f"expected room for {nbytes} bytes of state, {self.used} of {self.limit} bytes are "
                "in use",
            )
        self.used += nbytes

    def release(self, nbytes: int) -> None:
        self.used -= nbytes


class StreamMemory:
    """What sessions hold of samples and results, `used`, up to `limit` and as much again.

    Below the limit a session takes what its own bounds allow. Above it, each may still have its
    share, the limit over the number of sessions that may be: so nobody who reads waits for those
    who do not. Together that is never more than twice the limit.
    """

    def __init__(self, limit: int, sessions: int) -> None:
        self.limit = limit
        self.share = max(1, limit // sessions)
        self.used = 0

    @property
    def crowded(self) -> bool:
        """Whether nobody should have more than his share."""
        return self.used >= self.limit

    def allows(self, held: int, more: int) -> bool:
        """Whether a session that holds `held` may take `more` for samples."""
        after = self.used + more
        if after <= self.limit:
            return True
        return held + more <= self.share and after <= 2 * self.limit

    def has_room(self, more: int) -> bool:
        """Whether a result of `more` can be kept."""
        return self.used + more <= 2 * self.limit


class Holding:
    """What one session holds of `memory`: `nbytes`, of these `in_runs` of windows that run and
    `in_slots` of results that wait for those before them."""

    def __init__(self, memory: StreamMemory) -> None:
        self.nbytes = self.in_runs = self.in_slots = 0
        self._memory: StreamMemory | None = memory
        self._replaced: deque[tuple[int, int]] = deque()

    def check(self, more: int) -> None:
        """Raises StreamRefused where there is no room for `more` of samples."""
        memory = self._memory
        if memory is not None and not memory.allows(self.nbytes, more):
            raise StreamRefused(
                "STREAM_MEMORY",
                "chunk.data",
                f"expected room for {more} bytes of samples, {memory.used} bytes are in use by all "
                f"sessions, the limit is {memory.limit} (max_stream_bytes)",
            )

    def has_room(self, more: int) -> bool:
        """Whether a result of `more` can be kept."""
        return self._memory is None or self._memory.has_room(more)

    def most_untaken(self, most: int) -> int:
        """How much of results may wait for the client, who asks for `most`."""
        memory = self._memory
        return min(most, memory.share) if memory is not None and memory.crowded else most

    def replaced(self, nbytes: int, running: Collection[int]) -> None:
        """Blocks of `nbytes` are full. They stay in memory as long as a window of theirs runs."""
        if running:
            self._replaced.append((max(running), nbytes))

    def account(self, nbytes: int, running: Collection[int]) -> None:
        """Has all sessions know what this one holds: `nbytes`, and what it has said before."""
        if self._memory is None:
            return
        replaced = self._replaced
        while replaced and not any(index <= replaced[0][0] for index in running):
            replaced.popleft()
        nbytes += self.in_runs + self.in_slots
        if replaced:
            nbytes += sum(block for _, block in replaced)
        self._memory.used += nbytes - self.nbytes
        self.nbytes = nbytes

    def let_go(self) -> None:
        """The session has ended: nothing of it is counted any more."""
        if self._memory is not None:
            self._memory.used -= self.nbytes
        self._memory, self.nbytes = None, 0
