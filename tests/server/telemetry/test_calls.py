"""Calls are told apart by what the server knows, never by what callers say."""

from __future__ import annotations

from headrace.server import errors
from headrace.server.telemetry.calls import MOST_SERIES, Calls
from headrace.server.telemetry.families import Families
from headrace.server.telemetry.histogram import Histogram
from headrace.server.telemetry.watch import Watch


def counts(calls: Calls) -> dict[tuple[str, ...], int]:
    families = Families()
    calls.collect(families)
    return {
        (
            labels["rpc.method"],
            labels["model"],
            labels["version"],
            labels["rpc.response.status_code"],
        ): value.count
        for family in families
        for labels, value in family.points
        if isinstance(value, Histogram)
    }


def test_each_series_counts_its_own() -> None:
    calls = Calls()
    for status in ("OK", "OK", "INTERNAL"):
        calls.ended(("Infer", "m", "1", status), 0.01)
    assert counts(calls) == {("Infer", "m", "1", "OK"): 2, ("Infer", "m", "1", "INTERNAL"): 1}


def test_there_are_only_so_many() -> None:
    calls = Calls()
    for number in range(MOST_SERIES + 50):
        calls.ended(("Infer", f"m{number}", "1", "OK"), 0.01)
    found = counts(calls)
    assert len(found) == MOST_SERIES + 1
    assert found["Infer", "_other", "", "OK"] == 50


def test_versions_that_are_gone_are_dropped() -> None:
    calls = Calls()
    for version in ("1", "2", ""):
        calls.ended(("Infer", "m", version, "OK"), 0.01)
    calls.forget({("m", "2")})
    assert set(counts(calls)) == {("Infer", "m", "2", "OK"), ("Infer", "m", "", "OK")}


def test_names_that_nobody_knows_are_not_repeated() -> None:
    watch = Watch()
    watch.resolve = lambda model, version: ("m", "7") if model == "m" else ("", "")
    for name in ("m", *(f"guess{n}" for n in range(100))):
        watch.failed(watch.begin("Infer", tuple), errors.ModelNotFound(name), name, "")
    watch.cancelled(watch.begin("Infer", tuple), "m", "")
    assert counts(watch.calls) == {
        ("Infer", "m", "7", "NOT_FOUND"): 1,
        ("Infer", "", "", "NOT_FOUND"): 100,
        ("Infer", "m", "7", "CANCELLED"): 1,
    }


def test_off_counts_nothing() -> None:
    watch = Watch(on=False)
    watch.answered(watch.begin("Infer", tuple), "m", "1")
    assert len(watch.calls) == 0
