"""Who decides whether a call is traced."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.server.telemetry.sampling import Rule, Sampling, from_environment, traceparent_of

TRACE = "0af7651916cd43dd8448eb211c80319c"
YES, NO = f"00-{TRACE}-b7ad6b7169203331-01", f"00-{TRACE}-b7ad6b7169203331-00"


@pytest.mark.parametrize(
    ("name", "argument", "expected"),
    [
        ("", "", Rule()),
        ("parentbased_always_on", "0.5", Rule()),
        ("ALWAYS_ON", "", Rule(follow=False)),
        ("always_off", "", Rule(ratio=0.0, follow=False)),
        ("parentbased_always_off", "", Rule(ratio=0.0)),
        ("traceidratio", "0.25", Rule(ratio=0.25, follow=False)),
        ("parentbased_traceidratio", "", Rule(ratio=1.0)),
        ("parentbased_traceidratio", "0", Rule(ratio=0.0)),
    ],
)
def test_the_standard_variables(name: str, argument: str, expected: Rule) -> None:
    given = {"OTEL_TRACES_SAMPLER": name, "OTEL_TRACES_SAMPLER_ARG": argument}
    assert from_environment(given) == expected


@pytest.mark.parametrize("argument", ["-0.1", "1.5", "half", "nan"])
def test_a_share_is_a_share(argument: str) -> None:
    given = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": argument}
    with pytest.raises(ValueError, match=r"OTEL_TRACES_SAMPLER_ARG.*0 to 1"):
        from_environment(given)


def test_a_sampler_that_is_not_known() -> None:
    with pytest.raises(ValueError, match=r"OTEL_TRACES_SAMPLER: .*'jaeger_remote'"):
        from_environment({"OTEL_TRACES_SAMPLER": "jaeger_remote"})


def test_callers_decide() -> None:
    assert Rule(ratio=0.0).samples(YES)
    assert not Rule(ratio=1.0).samples(NO)
    assert not Rule(on=False).samples(YES)


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "00",
        f"ff-{TRACE}-b7ad6b7169203331-01",
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-b7ad6b7169203331-01",
    ],
)
def test_what_is_no_traceparent_decides_nothing(wrong: str) -> None:
    assert Rule(ratio=1.0).samples(wrong)
    assert not Rule(ratio=0.0).samples(wrong)


@settings(deadline=None)
@given(st.integers(1, 2**128 - 1), st.floats(0, 1), st.floats(0, 1))
def test_by_the_trace_alone_all_services_decide_alike(trace: int, low: float, high: float) -> None:
    low, high = sorted((low, high))
    parent = f"00-{trace:032x}-b7ad6b7169203331-00"
    if Rule(ratio=low, follow=False).samples(parent):
        assert Rule(ratio=high, follow=False).samples(parent)
    assert Rule(ratio=1.0, follow=False).samples(parent)
    assert not Rule(ratio=0.0, follow=False).samples(parent)


def test_models_may_have_rules_of_their_own() -> None:
    sampling = Sampling(Rule(ratio=0.0))
    sampling.set(Rule(ratio=1.0), 2, "m")
    assert not sampling.sample("", lambda: "other")
    assert [sampling.sample("", lambda: "m") for _ in range(3)] == [True, True, False]
    sampling.forget("m")
    assert not sampling.sample("", lambda: "m")
    sampling.set(Rule(), 1)
    assert [sampling.sample("") for _ in range(2)] == [True, False]


def test_the_callers_trace_is_found_in_the_metadata() -> None:
    assert traceparent_of([("a", "b"), ("traceparent", YES)]) == YES
    assert traceparent_of([("a", "b"), ("c-bin", b"d")]) == ""
    assert traceparent_of([("traceparent", b"x")]) == ""
