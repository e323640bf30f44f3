"""What sessions must do, said again in the plainest way: a loop over the whole signal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace.server.streams.window import Framing, Span, Tail


@dataclass(frozen=True)
class Expected:
    """A window: what it spans, and its samples with context and padding."""

    span: Span
    array: Any


def offline(framing: Framing, signal: Any, flushes: Sequence[int] = ()) -> list[Expected]:
    """All windows of `signal` [samples, channels], flushed at `flushes` and not at its end."""
    found: list[Expected] = []
    begin = 0
    for end in [*flushes, None]:
        found += _segment(framing, signal, begin, end, len(found))
        begin = end or 0
    return found


def _segment(
    framing: Framing, signal: Any, begin: int, flush: int | None, index: int
) -> list[Expected]:
    padded = np.concatenate([np.zeros((framing.context, signal.shape[1]), signal.dtype), signal])
    end = len(signal) if flush is None else flush
    found = []
    start, covered = begin, begin
    while start + framing.window <= end:
        stop = start + framing.window
        found.append(Expected(_span(index, start, stop), padded[start : stop + framing.context]))
        covered, start, index = stop, start + framing.hop, index + 1
    if flush is not None and framing.tail is not Tail.DROP and max(start, covered) < end:
        array = padded[start : end + framing.context]
        if framing.tail is Tail.PAD:
            missing = np.zeros((framing.window - (end - start), signal.shape[1]), signal.dtype)
            array = np.concatenate([array, missing])
        found.append(Expected(_span(index, start, end), array))
    return found


def _span(index: int, start: int, stop: int) -> Span:
    return Span(index, index + 1, start, stop)
