"""Files that are read again when they have changed, while the server runs."""

from __future__ import annotations

import logging
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from headrace.server.errors import ConfigurationError

_log = logging.getLogger(__name__)

# How old what is known of a file may be, in seconds: files are not looked at for every call.
FRESH_SECONDS = 1.0

T = TypeVar("T")
_Stamp = tuple[tuple[int, int, int] | None, ...]


class Reloaded(Generic[T]):
    """What `read` makes of `paths`, made anew after one of them has changed.

    What cannot be read keeps what was read before, and is logged once. A link is followed, so a
    file that is replaced by moving a link, as Kubernetes mounts secrets, counts as changed.
    """

    def __init__(
        self,
        paths: Sequence[pathlib.Path],
        read: Callable[[], T],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Reads for the first time: raises the ConfigurationError of `read`."""
        self._paths = paths
        self._read = read
        self._clock = clock
        self._looked = clock()
        self._stamp = _stamp(paths)
        self._value = read()

    def current(self) -> T:
        """The latest that could be read, at most FRESH_SECONDS late. Never raises."""
        now = self._clock()
        if now - self._looked >= FRESH_SECONDS:
            self._looked = now
            stamp = _stamp(self._paths)
            if stamp != self._stamp:
                self._stamp = stamp
                self._reread()
        return self._value

    def _reread(self) -> None:
        names = ", ".join(map(str, self._paths))
        try:
            self._value = self._read()
        except ConfigurationError as error:
            _log.error(
                "%s: changed, and not taken up, what was read before stays: %s", names, error
            )
        else:
            _log.info("%s: changed, and read again", names)


def _stamp(paths: Sequence[pathlib.Path]) -> _Stamp:
    """What tells one state of the files from another."""
    stamps: list[tuple[int, int, int] | None] = []
    for path in paths:
        try:
            found = path.stat()
        except OSError:
            stamps.append(None)
        else:
            stamps.append((found.st_ino, found.st_size, found.st_mtime_ns))
    return tuple(stamps)
