"""What the terminal shows follows from two readings of the metrics."""

from __future__ import annotations

import http.client
import io
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from headrace.server.top import Reading, main, model_rows, parse, quantile, show

_WHICH = 'model="m",version="2"'
_CALL = (
    f'{_WHICH},rpc_method="inference.GRPCInferenceService/ModelInfer",rpc_response_status_code="OK"'
)


def reading(at: float, scale: int) -> Reading:
    """A server's metrics after `scale` seconds of the same work."""
    return parse(
        f"""
headrace_queue_requests{{{_WHICH}}} 3
headrace_queue_age_seconds{{{_WHICH}}} 0.25
headrace_executors{{{_WHICH}}} 2
headrace_requests_total{{{_WHICH},outcome="answered"}} {40 * scale}
headrace_requests_total{{{_WHICH},outcome="queue full"}} {10 * scale}
headrace_batch_rows_count{{{_WHICH}}} {5 * scale}
headrace_batch_rows_sum{{{_WHICH}}} {60 * scale}
headrace_executor_time_seconds_total{{{_WHICH},executor="a"}} {0.5 * scale}
headrace_executor_time_seconds_total{{{_WHICH},executor="b"}} {1.0 * scale}
headrace_cost_time_seconds_total{{{_WHICH},kind="predicted"}} {1.0 * scale}
headrace_cost_time_seconds_total{{{_WHICH},kind="actual"}} {1.5 * scale}
headrace_wasted_time_seconds_total{{{_WHICH}}} {0.3 * scale}
rpc_server_call_duration_seconds_bucket{{{_CALL},le="0.01"}} {20 * scale}
rpc_server_call_duration_seconds_bucket{{{_CALL},le="0.02"}} {40 * scale}
rpc_server_call_duration_seconds_bucket{{{_CALL},le="+Inf"}} {40 * scale}
""",
        at,
    )


def test_rates_are_of_the_time_between() -> None:
    (row,) = model_rows(reading(100.0, 3), reading(102.0, 5))
    assert (row.model, row.version) == ("m", "2")
    assert (row.answered, row.failed, row.batches, row.rows) == (40.0, 10.0, 5.0, 12.0)
    assert row.busy == pytest.approx(0.75)
    assert row.cost == pytest.approx(1.5)
    assert row.wasted == pytest.approx(0.2)
    assert (row.queued, row.oldest) == (3, 0.25)
    assert row.median == pytest.approx(0.01)
    assert row.slowest == pytest.approx(0.0198)


def test_a_counter_that_began_anew_counts_from_nothing() -> None:
    (row,) = model_rows(reading(100.0, 5), reading(102.0, 2))
    assert row.answered == 40.0


def test_nothing_happened() -> None:
    same = reading(100.0, 3)
    (row,) = model_rows(same, Reading(101.0, same.samples))
    assert row.answered == 0
    assert math.isnan(row.median)
    assert math.isnan(row.rows)


def test_the_screen_has_it_all() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(show("there:8002", reading(100.0, 3), reading(102.0, 5)))
    text = console.export_text()
    for word in ("there:8002", "m 2", "40.0", "19.8", "250", "75%", "20%", "stream sessions"):
        assert word in text, text
    assert "not OK" not in text


def test_the_screen_says_why_requests_were_not_answered() -> None:
    def ends(full: int, gone: int, late: int) -> str:
        return "\n".join(
            (
                f"headrace_queue_requests{{{_WHICH}}} 3",
                f'headrace_requests_total{{{_WHICH},outcome="answered"}} {gone}',
                f'headrace_requests_total{{{_WHICH},outcome="queue full"}} {full}',
                f'headrace_requests_total{{{_WHICH},outcome="cancelled"}} {gone}',
                f'headrace_requests_total{{{_WHICH},outcome="draining"}} 7',
                f'headrace_calls_total{{reason="OK"}} {gone}',
                f'headrace_calls_total{{reason="EXPIRED_ON_ARRIVAL"}} {late}',
                "",
            )
        )

    console = Console(width=80, record=True, file=io.StringIO())
    before, after = parse(ends(5, 1, 0), 100.0), parse(ends(9, 21, 3), 102.0)
    console.print(show("there:8002", before, after))
    text = console.export_text()
    assert "\nm 2, not answered: 10.0/s cancelled, 2.0/s queue full\n" in text
    assert "\ncalls, not OK: 1.5/s EXPIRED_ON_ARRIVAL\n" in text


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), min_size=2, max_size=6), st.floats(0.01, 0.99))
def test_a_quantile_lies_in_the_bucket_that_has_it(counts: list[int], share: float) -> None:
    ends = [*(float(n) for n in range(1, len(counts))), math.inf]
    totals = [float(sum(counts[: n + 1])) for n in range(len(counts))]
    found = quantile(share, ends, totals)
    if totals[-1] == 0:
        assert math.isnan(found)
        return
    place = next(n for n, total in enumerate(totals) if total >= share * totals[-1] and total)
    low, high = (0.0 if place == 0 else ends[place - 1]), ends[place]
    assert low <= found <= high


def test_a_server_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("127.0.0.1:1", 0.05, once=True) == 1
    assert "127.0.0.1:1" in capsys.readouterr().err


def test_a_port_that_speaks_something_else(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(*_: object, **__: object) -> None:
        raise http.client.BadStatusLine("\x00\x00")

    monkeypatch.setattr("urllib.request.urlopen", answer)
    assert main("127.0.0.1:8001", 0.05, once=True) == 1
    said = capsys.readouterr().err
    assert "does not speak HTTP/1.1" in said
    assert "HTTP port" in said


def test_into_a_file_each_view_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = iter([reading(0, 1), reading(1, 2), reading(2, 3)])

    def read(_: str) -> Reading:
        found = next(readings, None)
        if found is None:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr("headrace.server.top.read", read)
    assert main("127.0.0.1:8002", 0.001, once=False) == 0
    assert capsys.readouterr().out.count("127.0.0.1:8002") == 2
