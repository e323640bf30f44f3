"""Threads that carry messages go before those that compute, as far as the system has it."""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from collections.abc import Callable
from typing import Any

import pytest

from headrace.server import precedence
from headrace.server.precedence import give_way, go_first, made_first

_GETATTR = {"x86_64": 315, "aarch64": 275}
_HAS_SLICES = tuple(int(part) for part in platform.release().split(".")[:2]) >= (6, 12)


def attributes() -> Any:
    """Those of the calling thread."""
    found = precedence._Attributes()
    size, number = ctypes.sizeof(found), _GETATTR[platform.machine()]
    assert ctypes.CDLL(None).syscall(number, 0, ctypes.byref(found), size, 0) == 0
    return found


def apart(function: Callable[[], object]) -> Any:
    """What `function` returns on a thread of its own, whose standing ends with it."""
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_who_gives_way_has_less_of_a_shared_core() -> None:
    def work() -> int:
        give_way()
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    assert apart(work) == os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) + 5


def test_who_goes_first_has_a_short_slice_and_nothing_else() -> None:
    def work() -> tuple[bool, Any, Any]:
        give_way()
        before = attributes()
        return go_first(), before, attributes()

    taken, before, after = apart(work)
    assert taken
    assert (after.policy, after.nice) == (before.policy, before.nice)
    assert after.runtime == (100_000 if _HAS_SLICES else before.runtime)


def test_what_is_made_first_starts_threads_that_go_first_and_leaves_others_as_they_are() -> None:
    before = attributes().runtime
    shorter = made_first(lambda: apart(lambda: attributes().runtime))
    assert shorter == (100_000 if _HAS_SLICES else before)
    assert attributes().runtime == before


def test_what_fails_while_it_is_made_fails_here() -> None:
    def fails() -> None:
        raise OSError("in use")

    with pytest.raises(OSError, match="in use"):
        made_first(fails)


@pytest.mark.parametrize(
    ("what", "value"), [("platform.machine", "riscv64"), ("os.sched_getscheduler", os.SCHED_FIFO)]
)
def test_elsewhere_all_stays_as_it_is(
    what: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(what, lambda *_: value)
    assert not apart(go_first)


def test_a_system_that_refuses_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precedence, "_CALLS", {platform.machine(): 100_000})
    assert not apart(go_first)
