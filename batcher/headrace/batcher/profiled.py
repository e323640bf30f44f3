"""What was measured at load or in another time, of sizes that have not been run since.

A profile is made alone on the machine: later an executor shares it with others, with callers and
with the event loop, and everything takes longer. Sizes that are run show by how much. Were the
others left as they were measured they would look cheap beside them, and be taken for it.

The same holds of sizes that were run long ago. They do not follow each change of the others either:
loads waver, what is run corrects itself with every run, and what is not would be carried off.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

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
    """Seconds by size, all of one time. `untried`: sizes that were not run since, by default all
    of them."""

    def __init__(
        self, seconds: Mapping[int, float], untried: Collection[int] | None = None
    ) -> None:
        self.untried = set(seconds if untried is None else untried)
        self._seconds = dict(seconds)

    def level(
        self, sizes: Numbers, means: Numbers, weights: Numbers, doubt: float = _DOUBT
    ) -> Numbers:
        """`means` by `sizes` (ascending), where those of untried sizes are the profile's, as much
        slower or faster as what is run near them has turned out to be, by `weights`."""
        untried = np.array([size in self.untried for size in sizes.tolist()])
        if not untried.any():
            return means
        then = np.array([self._seconds[int(size)] for size in sizes[untried].tolist()])
        out = means.copy()
        level = self._level(sizes, means, weights, untried)
        out[untried] = then * np.exp(level - np.clip(level, -doubt, doubt))
        return out

    def date(
        self, sizes: Numbers, means: Numbers, weights: Numbers, lately: Collection[int]
    ) -> None:
        """Counts the sizes that were not run `lately` among the untried ones.

        What is known of all is then of this time: in terms of a profile whose costs fall otherwise
        with the size, it would change as soon as other sizes are run. Whatever became slower until
        now is in it, however little: nobody will know of it later.
        """
        known = sizes.astype(int).tolist()
        dated = {size for size in known if size not in self.untried and size not in lately}
        if dated:
            level = self.level(sizes, means, weights, doubt=0.0).tolist()
            self._seconds = dict(zip(known, level, strict=True))
            self.untried |= dated

    def _level(
        self, sizes: Numbers, means: Numbers, weights: Numbers, wanted: npt.NDArray[np.bool_]
    ) -> Numbers:
        """How much slower the `wanted` sizes are than they were by what is run, as a logarithm."""
        known = np.array(sorted(self._seconds.items()), float)
        untried = np.array([size in self.untried for size in sizes.tolist()])
        speaks = ~untried & ~wanted & (sizes >= known[0, 0]) & (sizes <= known[-1, 0])
        if not speaks.any():
            return np.zeros(int(wanted.sum()))
        expected = np.interp(sizes[speaks], known[:, 0], known[:, 1])
        ratios, logs = np.log(means[speaks] / expected), np.log(sizes)
        near = np.exp(-(((logs[speaks] - logs[wanted, None]) / _REACH) ** 2) / 2)
        kernel = weights[speaks] * near
        level: Numbers = kernel @ ratios / (kernel.sum(1) + _PRIOR)
        return level
