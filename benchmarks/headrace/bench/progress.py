"""What a running measurement tells whoever watches it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from headrace.bench.results import Interval

Phase = Literal["warm-up", "measure"]


@dataclass(frozen=True, slots=True)
class Progress:
    """One second of a measurement. `elapsed` seconds of `total` (None: not known beforehand) of
    this phase have passed; `interval` is the latest of them, which starts are counted from the
    phase's beginning."""

    phase: Phase
    elapsed: float
    total: float | None
    interval: Interval
