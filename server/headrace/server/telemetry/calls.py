"""How long calls took, by method, model, version and status."""

from __future__ import annotations

import time
from collections.abc import Container
from typing import Final

from headrace.server.telemetry.families import Families
from headrace.server.telemetry.histogram import SECONDS, Histogram

# (method, model, version, status)
Series = tuple[str, str, str, str]

# Series beyond these share those of `_OTHER`: as many as methods times statuses.
MOST_SERIES: Final = 1000
_OTHER: Final = "_other"


class Calls:
    """A histogram of seconds for each series.

    Models and versions must be ones that the server knows, or empty: callers' words would let
    anybody make as many series as they like.
    """

    def __init__(self) -> None:
        self._series: dict[Series, Histogram] = {}
        # When those of a version were dropped last: if it comes back, they count from 0.
        self._dropped: dict[tuple[str, str], int] = {}

    def __len__(self) -> int:
        return len(self._series)

    def ended(self, series: Series, seconds: float) -> None:
        histogram = self._series.get(series)
        if histogram is None:
            histogram = self._new(series)
        histogram.observe(seconds)

    def _new(self, series: Series) -> Histogram:
        method, model, _, status = series
        if len(self._series) >= MOST_SERIES and model:
            series = (method, _OTHER, "", status)
        return self._series.setdefault(series, Histogram(SECONDS))

    def forget(self, served: Container[tuple[str, str]]) -> None:
        """Drops the series of versions that are not `served` any more."""
        for series in list(self._series):
            if series[2] and series[1:3] not in served:
                del self._series[series]
                self._dropped[series[1:3]] = time.time_ns()

    def collect(self, families: Families) -> None:
        """`rpc.server.call.duration`, of OpenTelemetry's semantic conventions for RPC."""
        family = families.histogram(
            "rpc.server.call.duration", "s", "Calls by method, model, version and status"
        )
        for (method, model, version, status), histogram in self._series.items():
            labels = {
                "rpc.system.name": "grpc",
                "rpc.method": method,
                "rpc.response.status_code": status,
                "model": model,
                "version": version,
            }
            family.era = self._dropped.get((model, version), 0)
            family.add(labels, histogram)
