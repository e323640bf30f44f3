"""Values as people write them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import pytest

from headrace.bench.commands import values


@pytest.mark.parametrize(
    ("parse", "text", "expected"),
    [
        (values.duration, "10", 10.0),
        (values.duration, "50ms", 0.05),
        (values.duration, "1.5 s", 1.5),
        (values.duration, "2m", 120.0),
        (values.duration, "250us", 0.00025),
        (values.duration, "1e-3", 0.001),
        (values.share, "1%", 0.01),
        (values.share, "0.25", 0.25),
        (values.rate, "500/s", 500.0),
        (values.rate, "1.5k", 1500.0),
        (values.count, "12", 12),
        (values.several(values.count), "1, 8,32", [1, 8, 32]),
        (values.warm_up, "auto", "auto"),
        (values.warm_up, "0", 0.0),
        (values.shape, "x:1,3,48", ("x", (1, 3, 48))),
        (values.shape, "input:0:1", ("input:0", (1,))),
        (values.step, "100x30s", {"rate": 100.0, "seconds": 30.0}),
        (values.step, "0x500ms", {"rate": 0.0, "seconds": 0.5}),
        (values.parameter, "priority=2", ("priority", 2)),
        (values.parameter, "who=me", ("who", "me")),
        (
            values.request,
            'model = "a", weight = 2, shapes.x = [1, 3]',
            {"model": "a", "weight": 2, "shapes": {"x": [1, 3]}},
        ),
    ],
)
def test_what_is_understood(parse: Callable[[str], Any], text: str, expected: object) -> None:
    assert (
        parse(text) == pytest.approx(expected)
        if isinstance(expected, float)
        else (parse(text) == expected)
    )


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (values.duration, "soon"),
        (values.duration, "10 parsecs"),
        (values.duration, "1e999"),
        (values.duration, "-1"),
        (values.share, "1%%"),
        (values.rate, "0"),
        (values.rate, "5M"),
        (values.count, "0"),
        (values.count, "1.5"),
        (values.shape, "x"),
        (values.shape, "x:1,0"),
        (values.step, "100"),
        (values.step, "100%x3s"),
        (values.parameter, "priority"),
        (values.request, "model = a"),
    ],
)
def test_what_is_not_understood_is_quoted(parse: Callable[[str], Any], text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as raised:
        parse(text)
    assert "expected" in str(raised.value)
