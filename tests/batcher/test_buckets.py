"""Boundaries pay by their own model, and nothing is padded for nothing."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.batcher.buckets import (
    CANDIDATES,
    Buckets,
    Company,
    Cost,
    _merged,
    choose,
    expected_seconds,
)

SIZES = [1, 2, 4, 8, 16, 32]


def flat(length: int, rows: int) -> float:
    """Whatever a batch holds, it takes as long."""
    return 1.0


def proportional(length: int, rows: int) -> float:
    """No gain in batches at all."""
    return 1e-3 * length * rows


def affine(fixed: float, row: float, element: float) -> Cost:
    return lambda length, rows: fixed + row * rows + element * length * rows


def unknown(length: int, rows: int) -> float:
    return math.nan


def feed(
    buckets: Buckets, lengths: list[int], others: float, cost: Cost, rebuilds: int = 3
) -> None:
    """Until the boundaries were chosen so many times."""
    built = 0
    for length in itertools.cycle(lengths):
        built += buckets.seen(length, 1, others, cost)
        if built == rebuilds:
            return


def test_before_anything_was_seen_every_length_is_itself() -> None:
    buckets = Buckets(32)
    assert [buckets.of(n) for n in (0, 1, 7, 1000)] == [0, 1, 7, 1000]
    assert buckets.company == Company()


def test_without_company_every_length_is_itself() -> None:
    buckets = Buckets(32)
    feed(buckets, list(range(1, 500)), 0.0, flat)
    assert buckets.boundaries == []
    assert buckets.of(77) == 77


def test_without_gain_from_batches_every_length_is_itself() -> None:
    buckets = Buckets(32)
    feed(buckets, [10, 20, 30, 40], 30.0, proportional)
    assert buckets.boundaries == []


def test_where_length_costs_nothing_all_share_one_bucket() -> None:
    buckets = Buckets(32)
    feed(buckets, [10, 20, 30, 40], 8.0, flat)
    assert buckets.boundaries == [40]
    assert [buckets.of(n) for n in (1, 10, 39, 40, 41)] == [40, 40, 40, 40, 41]


def test_a_rare_long_row_does_not_stretch_the_others() -> None:
    buckets = Buckets(32)
    feed(buckets, [10] * 30 + [12] * 30 + [1000], 8.0, affine(1.0, 0.01, 0.01))
    assert buckets.boundaries == [12, 1000]


def test_costs_that_are_not_known_pad_nothing() -> None:
    buckets = Buckets(32)
    feed(buckets, [10, 20], 8.0, unknown)
    assert buckets.boundaries == []


def test_a_length_that_came_but_once_is_forgotten() -> None:
    buckets = Buckets(32)
    buckets.seen(5000, 1, 8.0, flat)
    feed(buckets, [10, 20], 8.0, flat)
    assert buckets.boundaries == [5000]
    feed(buckets, [10, 20], 8.0, flat)
    assert buckets.boundaries == [20]


def test_rebuilds_become_rare() -> None:
    buckets = Buckets(32)
    built = [n for n in range(1, 20_000) if buckets.seen(7, 1, 2.0, flat)]
    gaps = np.diff(built).tolist()
    assert gaps == sorted(gaps)
    assert gaps[-1] == gaps[-2] == 4096


def test_company_is_what_rows_meet_on_the_average() -> None:
    buckets = Buckets(32)
    buckets.seen(7, 3, 8.0, flat)
    buckets.seen(7, 1, 0.0, flat)
    assert buckets.company == Company(own=2.5, others=6.0)
    assert buckets.company.rows(0.5) == 5.5


def test_what_is_remembered_is_bounded() -> None:
    buckets = Buckets(32)
    for length in range(10_000):
        buckets.seen(1 + length * 7919 % 10_007, 1, 60.0, affine(1.0, 0.01, 0.001))
    assert len(buckets._counts) <= 256
    assert 1 < len(buckets.boundaries) < CANDIDATES


counted = st.dictionaries(st.integers(1, 400), st.floats(0.1, 100.0), min_size=1, max_size=12)
companies = st.builds(Company, st.floats(1.0, 5.0), st.just(0.0) | st.floats(0.0, 100.0))
costs = st.builds(affine, st.floats(0, 10), st.floats(0, 1), st.floats(1e-6, 0.1))


@given(counted, companies, costs)
def test_the_choice_is_never_worse_than_exact_lengths_or_a_single_bucket(
    counts: dict[int, float], company: Company, cost: Cost
) -> None:
    lengths = sorted(counts)
    weights = np.array([counts[n] for n in lengths])
    chosen = choose(lengths, weights, company, SIZES, cost)
    every = list(range(len(lengths)))
    ends = [lengths.index(boundary) for boundary in chosen] or every

    def expected(ends: list[int]) -> float:
        return expected_seconds(ends, lengths, weights, company, SIZES, cost)

    best = expected(ends)
    assert best <= expected(every) * (1 + 1e-9)
    assert best <= expected([len(lengths) - 1]) * (1 + 1e-9)
    if company.others == 0.0:
        assert chosen == []


@given(
    st.dictionaries(st.integers(1, 40), st.floats(0.1, 100.0), min_size=2, max_size=6),
    companies,
    costs,
)
def test_the_choice_is_the_best_of_all(
    counts: dict[int, float], company: Company, cost: Cost
) -> None:
    lengths = sorted(counts)
    weights = np.array([counts[n] for n in lengths])
    last = len(lengths) - 1
    every = [
        expected_seconds([*inner, last], lengths, weights, company, SIZES, cost)
        for count in range(last + 1)
        for inner in itertools.combinations(range(last), count)
    ]
    chosen = choose(lengths, weights, company, SIZES, cost)
    ends = [lengths.index(boundary) for boundary in chosen] or list(range(len(lengths)))
    mine = expected_seconds(ends, lengths, weights, company, SIZES, cost)
    assert mine == pytest.approx(min(every), rel=1e-9)


@given(
    st.lists(st.integers(1, 3000), min_size=1, max_size=300),
    st.floats(0.0, 64.0),
    costs,
    st.integers(1, 64),
)
def test_a_boundary_is_never_shorter_than_the_length(
    lengths: list[int], others: float, cost: Cost, largest: int
) -> None:
    buckets = Buckets(largest)
    for length in lengths:
        buckets.seen(length, 1, others, cost)
    assert buckets.boundaries == sorted(set(buckets.boundaries))
    assert set(buckets.boundaries) <= set(lengths)
    for length in (*lengths, 1, 4000):
        padded = buckets.of(length)
        assert padded >= length
        assert padded == length or padded in buckets.boundaries


@given(
    st.dictionaries(st.integers(1, 1000), st.floats(0.1, 10.0), min_size=1, max_size=60),
    st.integers(1, 40),
)
def test_merging_keeps_the_rows_and_the_longest(counts: dict[int, float], most: int) -> None:
    merged = _merged(counts, most)
    assert len(merged) == min(most, len(counts))
    assert set(merged) <= set(counts)
    assert max(merged) == max(counts)
    assert sum(merged.values()) == pytest.approx(sum(counts.values()))
