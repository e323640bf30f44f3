"""Any chunking gives the windows of a loop over the whole signal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.server.streams.window import Framing, Span, Tail, Window, Windower
from server.streams.reference import Expected, offline

FRAMINGS = st.builds(
    Framing,
    window=st.integers(1, 8),
    hop=st.integers(1, 12),
    context=st.integers(0, 5),
    tail=st.sampled_from(Tail),
)


def windower(framing: Framing, channels: int = 1) -> Windower:
    return Windower(framing, [np.dtype("<i4")], [channels])


def ramp(count: int, channels: int = 1) -> Any:
    return np.arange(1, count * channels + 1, dtype=np.int32).reshape(count, channels)


def drain(cutter: Windower) -> list[Window]:
    """All that waits, past the flushes."""
    found = []
    while cutter.waiting or cutter.at_mark:
        if cutter.at_mark:
            cutter.pass_mark()
        else:
            found.append(cutter.cut())
    return found


def assert_same(found: list[Window], expected: list[Expected]) -> None:
    assert [window.span for window in found] == [window.span for window in expected]
    for window, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(window.arrays[0], other.array)


@given(
    FRAMINGS,
    st.lists(st.tuples(st.integers(0, 30), st.booleans(), st.booleans()), max_size=12),
    st.integers(1, 3),
)
def test_any_chunking_and_any_haste(
    framing: Framing, steps: list[tuple[int, bool, bool]], channels: int
) -> None:
    """Each step brings a chunk, and may flush behind it, and may take what waits."""
    signal = ramp(sum(size for size, _, _ in steps), channels)
    cutter, found, flushes, at = windower(framing, channels), [], [], 0
    for size, flush, take in steps:
        cutter.append([signal[at : at + size]])
        at += size
        if flush:
            cutter.flush()
            flushes.append(at)
        if take:
            found += drain(cutter)
    found += drain(cutter)
    assert_same(found, offline(framing, signal, flushes))
    assert cutter.received == len(signal)


@given(FRAMINGS, st.lists(st.integers(0, 30), min_size=1, max_size=6), st.data())
def test_what_is_skipped_is_said_and_the_rest_stays(
    framing: Framing, sizes: list[int], data: st.DataObject
) -> None:
    signal = ramp(sum(sizes))
    cutter, at = windower(framing), 0
    expected = offline(framing, signal, [len(signal)])
    found: dict[int, Window] = {}
    skipped: set[int] = set()
    for size in sizes:
        cutter.append([signal[at : at + size]])
        at += size
        if at == len(signal) and size == sizes[-1]:
            cutter.flush()
        while cutter.waiting:
            if data.draw(st.booleans()):
                window = cutter.cut()
                found[window.span.first_window] = window
            else:
                span = cutter.skip(data.draw(st.integers(1, cutter.waiting)))
                lost = expected[span.first_window : span.end_window]
                assert (span.first_sample, span.end_sample) == (
                    lost[0].span.first_sample,
                    lost[-1].span.end_sample,
                )
                skipped.update(range(span.first_window, span.end_window))
    kept = [window for window in expected if window.span.first_window in found]
    assert_same(list(found.values()), kept)
    assert not skipped & set(found)
    if cutter.marks:
        assert skipped | set(found) == set(range(len(expected)))


@given(FRAMINGS, st.lists(st.integers(1, 40), max_size=30))
def test_what_is_kept_is_bounded_and_never_returns(framing: Framing, sizes: list[int]) -> None:
    cutter, before = windower(framing), 0
    for size in sizes:
        cutter.append([ramp(size)])
        drain(cutter)
        assert cutter.received - cutter.released <= framing.window + framing.context
        assert cutter.released >= before
        before = cutter.released


def test_windows_are_views_that_later_samples_do_not_touch() -> None:
    cutter = windower(Framing(4, 2))
    cutter.append([ramp(4)])
    window = cutter.cut()
    before = window.arrays[0].copy()
    assert window.arrays[0].base is not None
    for _ in range(20):
        cutter.append([ramp(3)])
        drain(cutter)
    np.testing.assert_array_equal(window.arrays[0], before)


def test_aligned_signals_are_cut_alike() -> None:
    cutter = Windower(Framing(2, 2, 1), [np.dtype("<f4"), np.dtype("<i2")], [1, 3])
    cutter.append([np.ones((3, 1), np.float32), np.full((3, 3), 7, np.int16)])
    window = cutter.cut()
    assert [array.shape for array in window.arrays] == [(3, 1), (3, 3)]
    assert [array.dtype.str for array in window.arrays] == ["<f4", "<i2"]
    assert window.arrays[1][:, 0].tolist() == [0, 7, 7]


def test_nothing_is_cut_that_does_not_wait() -> None:
    cutter = windower(Framing(4, 4))
    cutter.append([ramp(3)])
    with pytest.raises(IndexError):
        cutter.cut()
    with pytest.raises(IndexError):
        cutter.skip(1)


def test_an_hour_at_once_is_one_block() -> None:
    cutter = windower(Framing(512, 512, 64))
    cutter.append([ramp(16_000 * 60)])
    assert cutter.waiting == 16_000 * 60 // 512
    span = cutter.skip(cutter.waiting - 1)
    assert span == Span(0, 1874, 0, 1874 * 512)
    assert cutter.cut().span.first_sample == 1874 * 512
