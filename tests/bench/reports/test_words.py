"""What a report claims: no more than was measured."""

import math

import pytest

from headrace.bench.reports.figures import (
    ANSWERS,
    errors_words,
    load_words,
    number,
    rows,
    share,
    sides,
)
from headrace.bench.reports.words import (
    LIMITED,
    answer,
    concerns,
    facts,
    figure_words,
    headline,
    interval_words,
    judgement,
    verdict,
)
from support import reports


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "–"),
        (0, "0"),
        (0.00001, "<0.0001"),
        (0.01234, "0.0123"),
        (9.996, "10.0"),
        (99.96, "100"),
        (1234.5, "1,234"),
        (1e7, "10,000,000"),
    ],
)
def test_numbers(value: float | None, written: str) -> None:
    assert number(value) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.0, "0%"), (1e-6, "<0.01%"), (0.00123, "0.12%"), (0.05, "5.0%"), (0.681, "68.1%"),
     (1.0, "100%"), (None, "–")],
)  # fmt: skip
def test_shares_are_never_rounded_to_nothing(value: float | None, written: str) -> None:
    assert share(value) == written


@pytest.mark.parametrize(
    ("figure", "low", "high", "judged"),
    [
        ("throughput", 1.1, 1.3, "better"),
        ("throughput", 0.7, 0.9, "worse"),
        ("p99_ms", 0.7, 0.9, "better"),
        ("latency.p999_ms", 1.1, 1.3, "worse"),
        ("cpu_us_per_request", 1.1, 1.3, "worse"),
        ("peak_memory_mb", 0.7, 0.9, "better"),
        ("mean_batch", 1.1, 1.3, "higher"),
        ("throughput", 0.9, 1.3, "no difference shown"),
    ],
)
def test_better_depends_on_the_figure(figure: str, low: float, high: float, judged: str) -> None:
    assert judgement(reports.ratio(figure, (low + high) / 2, low, high)) == judged


def test_what_is_not_shown_to_be_real_is_not_claimed_whatever_the_interval() -> None:
    ratio = reports.ratio("p99_ms", 0.5, 0.4, 0.6, real=False, turns=2)
    assert judgement(ratio) == "too few turns"
    assert verdict(ratio).endswith(": too few turns (2) to call that real")


def test_figures_have_names() -> None:
    assert figure_words("p999_ms") == figure_words("latency.p999_ms") == "p99.9 latency"
    assert figure_words("cpu_us_per_request") == "server CPU per request"
    assert figure_words("some_new_figure") == "some new figure"


def test_ratios_near_1_have_the_decimals_to_tell_them_from_it() -> None:
    assert interval_words(reports.ratio("p50", 1.004, 1.002, 1.006)) == "1.004× (1.002 to 1.006)"
    assert interval_words(reports.ratio("p50", 1.3, 1.2, 1.456)) == "1.30× (1.20 to 1.46)"


def test_a_search_that_found_nothing_says_so() -> None:
    found = reports.measurement(rate=20.0, seconds=1.0)
    section = reports.section(
        "search", found, facts={"rate": None, "low": None, "high": 20.0, "objective_ms": 5.0}
    )
    assert answer(section) == "No rate was found at which p99 stays under 5 ms."
    assert headline(section) == ("none", "")


def test_a_search_whose_bound_was_not_reached_claims_no_highest_rate() -> None:
    facts = {"rate": 80.0, "low": 80.0, "high": None, "objective_ms": 5.0}
    section = reports.section("search", reports.measurement(seconds=1.0), facts=facts)
    assert answer(section).endswith("of those tried.")


def test_facts_have_units() -> None:
    section = reports.section(
        "start",
        facts={"ready_s": 1.31, "first_ms": 34, "highest_goodput": 812.3, "share_kept": 0.42,
               "low": None, "callers": 8.0, "percentile": "p99"},
    )  # fmt: skip
    assert facts(section) == [
        ("ready", "1.31 s"),
        ("first", "34 ms"),
        ("highest goodput", "812/s"),
        ("share kept", "42.0%"),
        ("low", "–"),
        ("callers", "8"),
        ("percentile", "p99"),
    ]


def test_a_warning_is_said_once_with_all_that_it_holds_for() -> None:
    limited = reports.measurement(rate=50.0, seconds=1.0)
    client = limited.client.model_copy(update={"limiting": True, "warnings": ("Fell behind.",)})
    limited = limited.model_copy(update={"client": client})
    other = reports.measurement(rate=60.0, seconds=1.0)
    report = reports.report(reports.section("load", limited, limited, other, title="T"))
    told = [(concern.text, concern.where) for concern in concerns(report)]
    assert told == [
        (LIMITED, "T: 50/s poisson; 50/s poisson"),
        ("Fell behind.", "T: 50/s poisson; 50/s poisson"),
    ]


def test_sides_are_medians_of_their_turns_and_sums_of_their_errors() -> None:
    section = reports.versus(3)
    changed = [
        m.model_copy(update={"errors": {"UNAVAILABLE": i}, "unfinished": i})
        for i, m in enumerate(section.measurements)
    ]
    ours, _ = sides(section.model_copy(update={"measurements": tuple(changed)}))
    assert [len(side.measurements) for side in sides(section)] == [3, 3]
    assert errors_words(ours.errors) == "UNAVAILABLE 6, unfinished 6"
    assert len(rows(section)) == 6


def test_no_p999_is_told_of_fewer_than_a_thousand_requests() -> None:
    deep = next(column for column in ANSWERS if column.title == "p99.9")
    times = [float(i) for i in range(1, 1001)]
    few, enough = (
        reports.measurement(seconds=1.0, latency=reports.distribution(some))
        for some in (times[:-1], times)
    )
    assert deep.of(few) is None
    assert deep.of(enough) == pytest.approx(999, rel=0.002)


@pytest.mark.parametrize(
    ("load", "words"),
    [
        ({"kind": "closed", "callers": 1}, "1 caller"),
        ({"kind": "closed", "callers": 64}, "64 callers"),
        ({"kind": "open", "rate": 1250.5, "arrivals": "gamma"}, "1,250.5/s gamma"),
        ({"kind": "open"}, "open"),
        ({"kind": "steps", "steps": []}, "steps"),
        ({}, "load"),
    ],
)
def test_loads_have_short_names(load: dict[str, object], words: str) -> None:
    assert load_words(load) == words
