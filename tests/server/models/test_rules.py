"""A rule for an output's length is told from all others before it is believed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.server.models.rules import LONGEST_STRIDE, fitting, most_telling


def size(length: int, stride: int, offset: int) -> int:
    return max(0, (length + offset) // stride)


def test_an_equal_length_takes_three_sizes() -> None:
    assert fitting({8: 8, 9: 9, 40: 40}) == [(1, 0)]


def test_sizes_by_no_rule() -> None:
    assert fitting({8: 8, 9: 9, 40: 39}) == []
    assert fitting({8: 16, 9: 18}) == []  # an output that is longer than the input
    assert fitting({8: 0, 9: 0}) == []


def test_candidates_that_agree_tell_nothing() -> None:
    assert most_telling([(1, 0)], range(100)) is None
    assert most_telling([(2, 0), (2, 1)], range(0, 100, 2)) is None
    assert most_telling([(2, 0), (2, 1)], range(100)) == 1


@given(st.integers(1, LONGEST_STRIDE), st.integers(-7, 31), st.integers(8, 32))
def test_asking_for_the_most_telling_length_finds_the_rule(
    stride: int, offset: int, first: int
) -> None:
    lengths = range(first, first + 4 * LONGEST_STRIDE + 1)
    sizes = {n: size(n, stride, offset) for n in (first, first + 1, lengths[-1])}
    asked = 0
    while (telling := most_telling(fitting(sizes), lengths)) is not None:
        assert telling not in sizes
        sizes[telling] = size(telling, stride, offset)
        asked += 1
    assert asked <= 12
    for rule in fitting(sizes):
        assert all(size(n, *rule) == size(n, stride, offset) for n in lengths)
