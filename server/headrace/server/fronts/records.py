"""What is said of a call, and of its end, between a front process and the model process.

    call      (number, head, id, raw, arrival, remaining, caller, extra)
    answer    (number, response)                       the message
              (number, offset, size)                   where it lies in the arena
              (number, reason, message, retry_after)   an error of the server's table

head: of the message, without id and raw tensors: bytes, or the number that Heads gave them when
they came before; None for what is no message, and `id` then says why. raw: the raw tensors, as
bytes each or as (offset, sizes) in the arena. arrival: of the monotonic clock, which processes
share. remaining: seconds that the deadline had left then. extra: None, or (metadata, token, names)
of who calls, as far as the other side asks for them.
"""

from __future__ import annotations

from typing import Any

from headrace.batcher.errors import Overloaded
from headrace.server import errors

# Heads that are remembered, on both sides alike: how many, and of how many bytes at most.
MOST_HEADS, LONGEST_HEAD = 512, 1024


class Heads:
    """Numbers for heads that come again and again. Both ends hold one, and the rule by which heads
    are numbered and forgotten knows nothing but the heads that were sent: so they agree."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._heads: list[bytes] = []

    def sent(self, head: bytes) -> int | bytes:
        """What to send for `head`."""
        number = self._numbers.get(head)
        if number is not None:
            return number
        self._remember(head)
        return head

    def received(self, sent: int | bytes) -> bytes:
        """The head for what was sent. Raises IndexError for a number that nothing has."""
        if isinstance(sent, int):
            return self._heads[sent]
        self._remember(sent)
        return sent

    def _remember(self, head: bytes) -> None:
        if len(head) > LONGEST_HEAD:
            return
        if len(self._heads) >= MOST_HEADS:
            self._numbers.clear()
            self._heads.clear()
        self._numbers[head] = len(self._heads)
        self._heads.append(head)


def told(number: int, error: Exception) -> tuple[Any, ...]:
    """The answer that says `error`."""
    text = str(error) or type(error).__name__
    return number, errors.row_of(error).reason, text, errors.retry_after(error)


def heard(reason: str, message: str, retry_after: float | None) -> Exception:
    """The error that `told` was given, or one that the table tells alike."""
    kind = _BY_REASON.get(reason, RuntimeError)
    if issubclass(kind, Overloaded):
        return kind(message, retry_after or 0.0)
    if retry_after is not None:
        return kind(message, retry_after)
    return kind(message)


_BY_REASON: dict[str, type[Exception]] = {row.reason: kind for kind, row in errors.TABLE.items()}
