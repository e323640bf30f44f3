"""How far the latest rows are from those of a reference window, by statistics of SciPy's.

Numbers are compared by the two-sample Kolmogorov-Smirnov statistic: the largest distance between
the two empirical distributions. Classes are compared by the Jensen-Shannon distance of their
shares, to base 2. Both are 0 for windows that are alike and 1 for such as have nothing in common,
whatever the unit. SciPy is an extra.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from headrace.inference.tensors import Array
from headrace.server.errors import LoadFailed
from headrace.server.quality.rolling import Rolling

CLASS = "class"
# Features of one model that are watched; those beyond are not.
_MOST_FEATURES = 32


def require_scipy() -> None:
    """Raises LoadFailed where SciPy is not installed; else imports it, which takes a second."""
    try:
        import scipy.spatial.distance
        import scipy.stats  # noqa: F401
    except ModuleNotFoundError as error:
        raise LoadFailed(
            f"quality.drift: needs SciPy, and {error.name} is missing; pip install "
            "'headrace[drift]', or say drift = false"
        ) from error


class Feature(NamedTuple):
    """side: "input" or "output". name: "mean", "std" or "length" of a row, or CLASS."""

    side: str
    tensor: str
    name: str


class _Windows:
    """The reference, filled first; and the latest rows since it was full."""

    def __init__(self, reference: int, recent: int) -> None:
        self.reference = Rolling(reference)
        self.recent = Rolling(recent)
        self._room = reference

    def add(self, numbers: Array) -> None:
        first = numbers[: self._room]
        self._room -= len(first)
        self.reference.add(first)
        self.recent.add(numbers[len(first) :])


class Drift:
    """Features of a model's rows, each with its two windows."""

    def __init__(self, reference: int, recent: int) -> None:
        """How many rows the windows have."""
        self._sizes = reference, recent
        self._windows: dict[Feature, _Windows] = {}

    def add(self, feature: Feature, numbers: Array) -> None:
        """One number for each row, flat. Those of a feature too many are not kept."""
        windows = self._windows.get(feature)
        if windows is None:
            if len(self._windows) >= _MOST_FEATURES:
                return
            windows = self._windows[feature] = _Windows(*self._sizes)
        windows.add(numbers)

    def add_classes(self, tensor: str, classes: Array) -> None:
        """Predicted classes, flat: indexes, or names as bytes."""
        if classes.dtype == object:
            classes = np.array([zlib.crc32(name) for name in classes], np.int64)
        self.add(Feature("output", tensor, CLASS), classes)

    def scores(self) -> Mapping[Feature, float]:
        """From 0 to 1, of the features whose windows are both full."""
        return {
            feature: _distance(feature, windows)
            for feature, windows in self._windows.items()
            if windows.reference.full and windows.recent.full
        }

    def rows(self) -> tuple[int, int]:
        """Rows in the reference and in the recent window, of the feature that has fewest."""
        found = [(len(each.reference), len(each.recent)) for each in self._windows.values()]
        return min(found, default=(0, 0))

    def reset(self) -> None:
        """What comes next is the reference."""
        self._windows.clear()


def _distance(feature: Feature, windows: _Windows) -> float:
    from scipy.spatial.distance import jensenshannon  # an extra
    from scipy.stats import ks_2samp

    before, now = windows.reference.numbers(), windows.recent.numbers()
    if feature.name != CLASS:
        return float(ks_2samp(before, now, method="asymp").statistic)
    _, places = np.unique(np.concatenate((before, now)), return_inverse=True)
    shares = [
        np.bincount(part, minlength=places.max() + 1) / len(part)
        for part in np.split(places, [len(before)])
    ]
    return float(np.nan_to_num(jensenshannon(*shares, base=2)))
