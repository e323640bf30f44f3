"""Memory that large tensors leave behind, kept for the next ones.

Left to itself, glibc's allocator gives blocks of megabytes back to the system once they are freed.
The next ones come page by page, each zeroed: on grpcio 8500 page faults for a request of 16 MB in
and out, and more than half of its processor time (docs/performance.md, "Memory that is freed").
See mallopt(3).
"""

from __future__ import annotations

import ctypes
import os
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_OWN_BLOCKS = (
    32 << 20
)  # the most that glibc allows: larger blocks are mapped, and unmapped when freed
# Free bytes at the end of the heap from which on they go back to the system.
_KEPT = 128 << 20
_SET_BY_THE_USER = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Has this process keep up to 128 MB of freed memory. Returns False where that is not to be
    had: with another C library than glibc, or where the environment sets the allocator up."""
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _SET_BY_THE_USER):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_THRESHOLD, _OWN_BLOCKS) and mallopt(_M_TRIM_THRESHOLD, _KEPT))
