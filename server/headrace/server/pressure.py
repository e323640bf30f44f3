"""Whether the processors that bring requests have any time left.

On a CPU, batches run on the same cores as the event loop and the transport. When the loop's thread
is always running, or waiting for a core to run on, requests pile up before they reach a queue,
where no scheduler sees them. Linux counts both times for each thread; elsewhere nothing is ever
pressed.
"""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

from headrace.batcher.state import Device

_PERIOD = 0.1
# Of the last periods together: pressed from the one share on, relieved below the other.
_PRESSED, _RELIEVED = 0.6, 0.5
_SMOOTHING = 0.5


class Pressure:
    """Sets `device.pressed` from what the thread of the running event loop has to wait."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._file = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        self._loop = asyncio.get_running_loop()
        self._share = 0.0
        self._busy, self._at = self._read(), time.monotonic()
        self._timer = self._loop.call_later(_PERIOD, self._look)

    def close(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        busy, now = self._read(), time.monotonic()
        share = (busy - self._busy) / max(now - self._at, 1e-9)
        self._busy, self._at = busy, now
        self._share += _SMOOTHING * (share - self._share)
        self._device.pressed = self._share > (_RELIEVED if self._device.pressed else _PRESSED)
        self._timer = self._loop.call_later(_PERIOD, self._look)

    def _read(self) -> float:
        """Seconds for which the thread has run or waited for a core; 0 where nobody counts."""
        try:
            running, waiting, _ = self._file.read_text().split()
        except (OSError, ValueError):
            return 0.0
        return (int(running) + int(waiting)) / 1e9
