"""Which threads go first where they share processors: those that carry messages, not those that
compute.

Theory of operation. Linux lets a thread that runs have its slice, some milliseconds, before one
that has just been woken; the nice value decides about shares, not about that. What carries
messages works for some microseconds and then sleeps, and the next batch waits for it meanwhile.
A thread with a shorter slice than the one that runs may break into it (Linux 6.12 and later;
before, it is ignored). Measured: docs/decisions/0023-messages-go-first.md.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import platform
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, TypeVar

_log = logging.getLogger(__name__)

_NICE: Final = 5
# The shortest slice that Linux takes, in nanoseconds.
_SLICE: Final = 100_000
# The number of sched_setattr, which the C library of Debian 12 does not have yet.
_CALLS: Final = {"x86_64": 314, "aarch64": 274}

Made = TypeVar("Made")


class _Attributes(ctypes.Structure):
    """`struct sched_attr`, see sched_setattr(2); in its first version, which all kernels take."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


def give_way() -> None:
    """Lets the event loop go first where the calling thread and it want the same core.

    Requests then gather in the queue, where they can be batched, rather than in the transport. With
    a model on which batching pays, 32 callers and two cores this gave half as much throughput again
    (docs/performance.md). Linux alone has a priority for each thread.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICE)


def go_first() -> bool:
    """Has the calling thread, and those it starts from now on, break into others' slices. Returns
    whether the system took it; nothing is lost where it did not, or where its slices are fixed."""
    number = _CALLS.get(platform.machine())
    if sys.platform != "linux" or number is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    size = ctypes.sizeof(_Attributes)
    attributes = _Attributes(size, os.SCHED_OTHER, 0, nice, 0, _SLICE, 0, 0)
    if ctypes.CDLL(None, use_errno=True).syscall(number, 0, ctypes.byref(attributes), 0):
        code = ctypes.get_errno()
        _log.debug("sched_setattr: %s", errno.errorcode.get(code, code))
        return False
    return True


def made_first(make: Callable[[], Made]) -> Made:
    """What `make` returns, or raises, where the threads that it starts are to go first."""
    made: Future[Made] = Future()

    def work() -> None:
        go_first()
        try:
            made.set_result(make())
        except BaseException as error:  # noqa: BLE001 (raised by who asked for it)
            made.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return made.result()
