"""Parts of shared memory never overlap, and all of it comes back."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.server.fronts.arena import ALIGNMENT, Slots, Writer, aligned, map_to_read, new_memory
from headrace.server.fronts.leases import Leases

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="front processes need Linux")
SIZE = 1 << 16


@given(st.lists(st.integers(-8, 6000), max_size=60))
def test_slots_never_overlap(steps: list[int]) -> None:
    """A number takes so many bytes; one below 0 gives back one of those that are taken."""
    slots = Slots(SIZE)
    taken: dict[int, int] = {}
    for step in steps:
        if step < 0:
            if taken:
                start = sorted(taken)[step % len(taken)]
                del taken[start]
                slots.give(start)
            continue
        found = slots.take(step)
        if found is None:
            assert not any(fits(gap, step) for gap in gaps(taken))
            continue
        start = found
        assert start % ALIGNMENT == 0
        assert start >= 0
        assert start + step <= SIZE
        for other, size in taken.items():
            assert start + max(1, step) <= other or other + max(1, size) <= start
        taken[start] = step
    assert len(slots) == len(taken)
    for start in taken:
        slots.give(start)
    assert slots.take(SIZE) == 0


def gaps(taken: dict[int, int]) -> Iterator[int]:
    """The sizes of what lies free."""
    at = 0
    for start in sorted(taken):
        yield start - at
        at = start + aligned(taken[start])
    yield SIZE - at


def fits(gap: int, size: int) -> bool:
    return gap >= aligned(size)


def test_what_is_not_taken_cannot_be_given() -> None:
    slots = Slots(SIZE)
    start = slots.take(10)
    assert start is not None
    slots.give(start)
    with pytest.raises(KeyError):
        slots.give(start)


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = new_memory("test", SIZE)
    yield descriptor
    os.close(descriptor)


def test_what_one_side_writes_the_other_reads(memory: int) -> None:
    writer, leases = Writer(memory, SIZE), Leases(map_to_read(memory, SIZE))
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    offset = writer.put([b"abc", b"", array], [3, 0, array.nbytes], apart=True)
    assert offset is not None
    view = leases.view(offset, 3 * ALIGNMENT)
    assert bytes(view[:3]) == b"abc"
    read = np.frombuffer(view[2 * ALIGNMENT : 2 * ALIGNMENT + array.nbytes], np.float32)
    np.testing.assert_array_equal(read.reshape(2, 3), array)
    assert not read.flags.writeable


def test_what_does_not_fit_is_not_placed(memory: int) -> None:
    writer = Writer(memory, SIZE)
    assert writer.put([bytes(SIZE + 1)], [SIZE + 1]) is None
    assert writer.put([bytes(SIZE)], [SIZE]) == 0
    assert writer.put([b"x"], [1]) is None


def test_a_part_is_lent_until_the_last_view_of_it_has_gone(memory: int) -> None:
    leases = Leases(map_to_read(memory, SIZE))
    gc.collect()
    gc.disable()
    try:
        view = leases.view(128, 64)
        array = np.frombuffer(view[:16], np.float32)
        rows = array.reshape(2, 2)[1:]
        del view, array
        assert leases.ended() == []
        del rows
        assert leases.ended() == [128]
        assert leases.ended() == []
    finally:
        gc.enable()
