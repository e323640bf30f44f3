"""What a running load test tells whoever watches it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from headrace.bench.results import Interval


@dataclass(frozen=True)
class Progress:
    """One more stretch of a phase is over. `elapsed` and `total` are seconds of the phase; `total`
    is None where the phase ends when it is found to, as an automatic warm-up does."""

    phase: Literal["warm-up", "measure"]
    elapsed: float
    total: float | None
    interval: Interval
