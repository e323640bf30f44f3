"""When samples were taken."""

from __future__ import annotations

from headrace.server.streams.timeline import Timeline


def test_a_clock_at_its_end_stays_there() -> None:
    """Times are told as signed 64-bit numbers: nothing after the last of them can be."""
    last = 2**63 - 1
    timeline = Timeline(rate=1e9)
    timeline.anchor(0, last - 1, needed=0)
    assert [timeline.taken(position) for position in (0, 1, 2, 5)] == [last - 1, last, last, last]
