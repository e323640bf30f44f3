"""What was measured at load, of sizes that have not been run since.

A profile is made alone on the machine: later an executor shares it with others, with callers and
with the event loop, and everything takes longer. Sizes that are run show by how much. Were the
others left as they were measured they would look cheap beside them, and be taken for it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

# How far in log-size a size that is run speaks for one that is not.
_REACH = 1.5
# So many runs are worth as much as the profile's own level.
_PRIOR = 2.0
# A profile is not known better than this, as a logarithm.
_DOUBT = 0.1


class Profiled:
    """Seconds by size as measured at load. `untried`: sizes that were not run since."""

    def __init__(self, seconds: Mapping[int, float]) -> None:
        self.untried = set(seconds)
        self._seconds = np.array(sorted(seconds.items()), float).reshape(-1, 2)

    def level(self, sizes: Numbers, means: Numbers, weights: Numbers) -> Numbers:
        """`means` by `sizes` (ascending), where those of untried sizes are the profile's, as much
        slower or faster as what is run near them has turned out to be, by `weights`."""
        untried = np.array([size in self.untried for size in sizes.tolist()])
        if not untried.any():
            return means
        speaks = ~untried & (sizes <= self._seconds[-1, 0])
        if not speaks.any():
            return means
        expected = np.interp(sizes[speaks], self._seconds[:, 0], self._seconds[:, 1])
        ratios, logs = np.log(means[speaks] / expected), np.log(sizes)
        near = np.exp(-(((logs[speaks] - logs[untried, None]) / _REACH) ** 2) / 2)
        kernel = weights[speaks] * near
        level = kernel @ ratios / (kernel.sum(1) + _PRIOR)
        out = means.copy()
        out[untried] *= np.exp(level - np.clip(level, -_DOUBT, _DOUBT))
        return out
