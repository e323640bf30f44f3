"""Values as people write them on a command line: 50ms, 1%, x:1,3,48,320."""

from __future__ import annotations

import argparse
import math
import re
import tomllib
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_UNITS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600}
_NUMBER = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?", re.ASCII)


def duration(text: str) -> float:
    """Seconds: "10", "10s", "50ms", "2m"."""
    number, unit = _split(text)
    if unit not in _UNITS:
        raise argparse.ArgumentTypeError(
            f"expected seconds, or a number with us, ms, s, m or h, got {text!r}"
        )
    return number * _UNITS[unit]


def share(text: str) -> float:
    """A share of the whole: "0.01" or "1%"."""
    number, unit = _split(text)
    if unit not in ("", "%"):
        raise argparse.ArgumentTypeError(f"expected a share as 0.01 or 1%, got {text!r}")
    return number / 100 if unit else number


def rate(text: str) -> float:
    """Requests per second: "500", "1.5k", "500/s"."""
    number, unit = _split(text.removesuffix("/s"))
    if unit not in ("", "k") or not number:
        raise argparse.ArgumentTypeError(f"expected requests per second above 0, got {text!r}")
    return number * (1000 if unit else 1)


def count(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def several(value: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Values with commas between them."""

    def parse(text: str) -> list[T]:
        return [value(part.strip()) for part in text.split(",")]

    return parse


def warm_up(text: str) -> float | str:
    """ "auto", or a duration."""
    return text if text == "auto" else duration(text)


def shape(text: str) -> tuple[str, tuple[int, ...]]:
    """An input's name and its shape: "x:1,3,48,320". The name may have colons in it."""
    name, colon, dims = text.rpartition(":")
    if not colon or not name:
        raise argparse.ArgumentTypeError(f"expected NAME:D0,D1,..., got {text!r}")
    return name, tuple(several(count)(dims))


def step(text: str) -> dict[str, float]:
    """A step of a load: "100x30s" is 100 requests per second for 30 seconds; 0 is a pause."""
    before, x, after = text.partition("x")
    if not x:
        raise argparse.ArgumentTypeError(f"expected RATExDURATION, as 100x30s, got {text!r}")
    number, unit = _split(before)
    if unit not in ("", "k"):
        raise argparse.ArgumentTypeError(f"expected a rate before the x, got {text!r}")
    return {"rate": number * (1000 if unit else 1), "seconds": duration(after)}


def parameter(text: str) -> tuple[str, Any]:
    """A request parameter: "priority=1", as TOML or, where it is none, as text."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value


def request(text: str) -> dict[str, Any]:
    """A kind of request: 'model = "a", weight = 2, shapes.x = [1, 320]', as an inline table of
    TOML."""
    try:
        found: dict[str, Any] = tomllib.loads(f"request = {{ {text} }}")["request"]
    except tomllib.TOMLDecodeError as error:
        raise argparse.ArgumentTypeError(
            f"""expected 'model = "NAME", weight = 2, ...' as TOML, got {text!r}: {error}"""
        ) from error
    return found


def _split(text: str) -> tuple[float, str]:
    """A number and the unit after it; NaN is none."""
    match = _NUMBER.match(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}")
    number = float(match[0])
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {text!r}")
    return number, text.strip()[match.end() :].strip()
