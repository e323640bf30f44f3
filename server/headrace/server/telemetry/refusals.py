"""Tells the log that requests are being refused, and why: once a second after it began, and then
now and then while it goes on. A line for each would bury what else is there."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Final

from headrace.batcher.request import Why

_log = logging.getLogger(__name__)

# Who left, or was ended with the server, is no sign of too much load.
_OVERLOAD: Final = frozenset(
    {Why.QUEUE_FULL, Why.QUEUE_BYTES, Why.TOO_LATE, Why.TOO_SHORT, Why.EXPIRED, Why.OVERTAKEN}
)
# Seconds that the first line tells of, and each that follows.
_FIRST: Final = 1.0
_NEXT: Final = 30.0


class Refusals:
    """Of one version of a model. To be used on the event loop."""

    def __init__(self, model: str, version: str) -> None:
        self._name = f"{model} version {version}"
        self._counts: Counter[Why] = Counter()
        self._watching = False

    def count(self, why: Why) -> None:
        """A request was refused, or let go of, for this reason."""
        if why not in _OVERLOAD:
            return
        self._counts[why] += 1
        if not self._watching:
            self._watching = True
            self._tell_after(_FIRST)

    def _tell_after(self, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds, self._tell, seconds)

    def _tell(self, seconds: float) -> None:
        self._watching = bool(self._counts)
        if not self._watching:
            return
        number = self._counts.total()
        told = ", ".join(f"{n} {why.value}" for why, n in self._counts.most_common())
        requests = "1 request was" if number == 1 else f"{number} requests were"
        text = "%s: %s refused or let go of in %.0f s: %s"
        _log.warning(text, self._name, requests, seconds, told)
        self._counts.clear()
        self._tell_after(_NEXT)
