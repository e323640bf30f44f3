"""What a batch of n rows takes: learned from every run, robust to outliers and drift.

Method, after the project's scheduling study: an exponential moving average for each size, with
outliers clipped; a smooth curve through them (`curve.py`); and one common factor, the pace, that
follows when everything becomes slower or faster. Where runs tell what processor time they took,
sizes are learned in that, and a factor of all sizes makes seconds of it (`stretch.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from headrace.batcher import curve
from headrace.batcher.drift import CLIP, Drift
from headrace.batcher.exploration import Exploration
from headrace.batcher.overhead import Overhead, moved
from headrace.batcher.profiled import Profiled
from headrace.batcher.sizing import SizePlan
from headrace.batcher.stretch import Stretch
from headrace.batcher.trials import Verdict
from headrace.batcher.undisturbed import Undisturbed

_FEW: Final = 8
_SEEN: Final = 3
# One of a size's first runs takes less than this share of those before it: they were cold.
_COLD: Final = 4
_THAWED: Final = 0.75
# What a run takes longer than is usual is laid to all sizes by the one share, to its own by the
# other or more, as few as its runs are: a moment in which everything is slower passes, and leaves
# the sizes that were run in it as they were beside those that were not.
_GAIN: Final = 0.04
_OWN_GAIN: Final = 0.004
# At most one run in so many is forgotten for being cold.
_FORGOTTEN: Final = 4
# What so many runs have told of a size is believed.
_TOLD: Final = 3
# A size that was not among so many runs, or more where tables are rarely rebuilt, is of another
# time. On a processor the first ones find caches cold: there they are few at first, and twice as
# many each time. One that was not run for so long, or not since the profile, says no more of others
# than so many runs.
_DATED_FIRST: Final = 64
_DATED: Final = 1024
_HEARSAY: Final = 0.25
# Batches of a key whose costs were borrowed have so many rows at first, and then so many times the
# largest that was run, until a second size takes no longer than so many times what was expected.
_AT_FIRST: Final = 8
_STRIDE: Final = 2
_MISLED: Final = 1.25
# By so much the level of a borrowed table must be off to be worth a new one at once; by so much the
# pace of all sizes must have changed.
_TELLING: Final = 0.02
_OTHER_PACE: Final = 0.1
# Tables are built anew after so many runs at the latest.
_AT_ONCE: Final = 2048


class CostTable:
    """The time of a batch of 1 to `largest` rows, for one key on one kind of executor.

    `overhead` counts where sizes are chosen. It is not part of `seconds`. Of the means, and of all
    that is compared with them, a second is one of `stretch` and of the pace.
    """

    def __init__(
        self, largest: int, overhead: Overhead | None = None, stretch: Stretch | None = None
    ) -> None:
        self.largest = largest
        self._overhead = overhead or Overhead()
        self._stretch = stretch or Stretch()
        self._pace = 1.0  # how much slower all sizes are together than their means
        self._unit = self._stretch.factor  # of the means in the table, seconds
        self.observations = 0
        self.spread = 0.03
        self._drift = Drift()  # of what is compared with the means
        self._mean: dict[int, float] = {}
        self._count: dict[int, float] = {}
        self._table: list[float] = []
        self._stale = 0
        self._forgotten = 0
        self._plan: SizePlan | None = None
        # Of a borrowed table: sizes that were not run yet, and the largest that one may expect a
        # gain of.
        self._borrowed: set[int] = set()
        self._trusted = 0
        self._profiled = Profiled({})
        # Sizes that were run since the number of runs was last looked at, and what it was then.
        self._lately: set[int] = set()
        self._looked = 0
        self._dated = _DATED_FIRST
        self.exploration = Exploration()
        self.lone = Verdict()
        self._undisturbed = Undisturbed()

    def __repr__(self) -> str:
        shown = ", ".join(f"{n}: {self.seconds(n) * 1e3:.3g} ms" for n in sorted(self._mean))
        return f"<CostTable: {shown or 'nothing seen'}>"

    @property
    def known(self) -> bool:
        return bool(self._table)

    @property
    def table(self) -> list[float]:
        """Seconds by size; entry 0 is 0. Empty before anything was seen."""
        return self._table

    @property
    def plan(self) -> SizePlan | None:
        """The sizes to want by these costs; None before anything was seen."""
        plan, overhead = self._plan, self._overhead.seconds
        if self._table and (plan is None or moved(plan.overhead, overhead)):
            plan = self._plan = SizePlan(self._table, overhead)
        return plan

    @property
    def guard(self) -> float:
        """The factor that a run stays within, of what is expected, nearly always."""
        return 1 + 2 * self.spread

    @property
    def sizes(self) -> list[int]:
        """The sizes that were run."""
        return sorted(self._mean)

    def seconds(self, rows: int) -> float:
        """The expected time of `rows` rows; beyond `largest`, along the last slope."""
        if rows <= self.largest:
            return self._table[rows]
        last, before = self._table[-1], self._table[max(0, self.largest // 2)]
        slope = (last - before) / (self.largest - self.largest // 2)
        return last + slope * (rows - self.largest)

    def seconds_undisturbed(self, rows: int) -> float:
        """The expected time where nothing else happens: what a lone request can hope for."""
        return min(self.seconds(rows), self._undisturbed.seconds(rows))

    def observe_undisturbed(self, rows: int, seconds: float) -> None:
        """Learns from a run beside which nothing happened, after `observe`."""
        if rows <= self.largest and seconds > 0:
            self._undisturbed.observe(rows, seconds)

    def observe(
        self,
        rows: int,
        seconds: float,
        cold: bool = False,
        work: float | None = None,
        settled: bool = True,
    ) -> bool:
        """Learns from one run. Returns whether the table was rebuilt.

        cold: it ran where others had run before. If it was slow this is forgotten, unless it is
        so too often not to count. work: seconds of processor time that it took; None where that is
        not known, or does not tell how long it takes. settled: if not, it is cold where `work` is
        known.
        """
        if rows > self.largest or seconds <= 0:
            return False
        expected = self._table[rows] if self._table else seconds
        self.observations += 1
        self.exploration.computes = work is not None
        cold = cold or (not settled and self.exploration.computes)
        if cold and seconds > expected and self._forgotten * _FORGOTTEN <= self.observations:
            self._forgotten += 1
            return False
        self.spread += 0.03 * (min(1.0, abs(seconds / max(expected, 1e-9) - 1)) - self.spread)
        if work:
            known = self.observations > _FEW
            self._stretch.observe(min(seconds, CLIP * expected) if known else seconds, work)
        taken = work or seconds / self._stretch.factor
        self._learn(rows, taken / self._pace, expected / self._unit)
        if not self._table or self._stale >= self._due(rows, expected / self._unit):
            self._build()
            return True
        return False

    def _learn(self, rows: int, taken: float, expected: float) -> None:
        """From a run that is not forgotten, both times in the means' unit."""
        ratio = taken / max(expected, 1e-9)
        clipped = min(taken, CLIP * expected) if self.observations > _FEW else taken
        if rows in self._borrowed or rows in self._profiled.untried:
            self._count[rows] = 0.0
            self._profiled.untried.discard(rows)
        self._lately.add(rows)
        count = self._count[rows] = self._count.get(rows, 0.0) + 1
        old = self._mean.get(rows, expected)
        if 1 < count <= _COLD and clipped < (old if count == 2 else _THAWED * old):
            # A size's first runs may find caches and memory cold, and say no more then.
            count = self._count[rows] = 1.0
        missed = clipped / max(old, 1e-9) - 1
        gain = max(_OWN_GAIN, 1 / count)
        self._mean[rows] = old * (1 + gain * missed)
        self._pace *= 1 + max(0.0, _GAIN - gain) * missed
        self._stale += 1
        self._drift.missed(ratio)
        if count > _SEEN:  # else what was expected was a guess, which says nothing of drift
            factor = self._drift.follow(ratio, self.observations)
            if factor is not None:
                self._pace *= factor
                self._stale = _AT_ONCE
        if self._trusted:
            self._make_own(rows, ratio)

    def _due(self, rows: int, expected: float) -> int:
        """After how many runs, the last one of `rows`, the table is to be built anew.

        That costs about a millisecond: ever more rarely, unless something has changed.
        """
        if abs(self._stretch.factor * self._pace / self._unit - 1) > _OTHER_PACE:
            return 0
        due = min(max(8, self.observations // 16), _AT_ONCE)
        surprised = abs(self._mean[rows] / max(expected, 1e-9) - 1) > 0.15
        return due // 8 if surprised else due

    def told(self, rows: int, reach: float) -> bool:
        """Whether enough runs have told what sizes near `rows` take, up to `reach` times as large.

        What is known of others may be of a bad moment: a profile that was made beside the load of
        the version before, or first runs that were cold. Never run, it would be believed for ever;
        and so would what was found out in another time.
        """
        near = (size for size in self._mean if 0.75 * rows <= size <= reach * rows)
        return any(self._count[n] >= _TOLD and n not in self._profiled.untried for n in near)

    def refresh(self) -> None:
        """Has the table tell of every run so far, which it else does ever more rarely."""
        if self._stale and self._table:
            self._build()

    def profile(self, runs: Iterable[tuple[int, float]]) -> None:
        """Learns from runs that were made to measure: rows and seconds of each."""
        for rows, seconds in runs:
            self.observe(rows, seconds)
            self.observe_undisturbed(rows, seconds)
        self.refresh()  # a few runs would not have it made anew by themselves
        self._profiled = Profiled(self._mean)
        self._lately.clear()
        self._looked = self.observations

    def outlasted(self, rows: int, seconds: float) -> None:
        """Learns from a run that was stopped after `seconds`: it takes at least as long.

        One of them may have been asked for what takes for ever; many are what a batch takes.
        """
        if self._table and rows <= self.largest and seconds > self._table[rows]:
            self.observe(rows, min(seconds, CLIP * self._table[rows]))

    def _make_own(self, rows: int, ratio: float) -> None:
        """The first size that is run says how far off the borrowed level was, the second whether
        the slope holds. If not, what was borrowed is forgotten, and sizes grow step by step."""
        self._borrowed.discard(rows)
        own = len(self._mean) - len(self._borrowed)
        if own > 1 and self._borrowed:
            if ratio < _MISLED:
                self._trusted = 0
                if not self._profiled.untried:
                    self._profiled = Profiled(self._mean, self._borrowed)
            else:
                for size in self._borrowed:
                    del self._mean[size], self._count[size]
                self._profiled = Profiled({})
            self._borrowed.clear()
            self._stale = _AT_ONCE
        elif self._borrowed and self.observations <= _FEW:
            level = ratio ** (1 / self.observations)
            for size in self._borrowed:
                self._mean[size] *= level
            if abs(level - 1) > _TELLING:
                self._stale = _AT_ONCE
        elif self._borrowed and not self._profiled.untried:
            self._profiled = Profiled(self._mean, self._borrowed)
        if 0 < self._trusted < _STRIDE * rows:
            self._trusted = _STRIDE * rows
            self._stale = _AT_ONCE

    def _build(self) -> None:
        self._stale = 0
        self._plan = None
        sizes = sorted(self._mean)
        weights = np.array([min(self._count[size], 60.0) for size in sizes])
        means = np.array([self._mean[size] for size in sizes])
        dated = self._dated if self.exploration.computes else _DATED
        if self.observations - self._looked > dated and not self._borrowed:
            self._dated = min(2 * self._dated, _DATED)
            self._profiled.date(np.array(sizes, float), means, weights, self._lately)
            self._lately.clear()
            self._looked = self.observations
        means = self._profiled.level(np.array(sizes, float), means, weights)
        hearsay = np.array([size in self._profiled.untried for size in sizes])
        vouching = np.where(hearsay, _HEARSAY, weights)
        seen = curve.Seen(np.array(sizes, float), means, weights, vouching, self._drift.noise)
        trusted = min(self._trusted or sizes[-1], self.largest)
        table = np.maximum(curve.through(seen, self.largest, trusted), 1e-9)
        table[0] = 0.0
        self._unit = self._stretch.factor * self._pace
        self._table = (self._unit * table).tolist()

    def scaled(self, factor: float) -> CostTable:
        """A table that starts from this one's shape, `factor` times as slow, and learns fast.

        Of larger rows fewer fill a device, so that large batches may not keep what they promise,
        and take long to be found out: sizes grow step by step (`_STRIDE`).
        """
        other = CostTable(self.largest, self._overhead, self._stretch)
        other._trusted = _AT_FIRST
        other._borrowed = set(self._mean)
        for size in self._mean:
            other._mean[size] = self._table[size] / self._unit * self._pace * factor
            other._count[size] = min(2.0, self._count[size])
        if other._mean:
            other._build()
        return other


def sizes_to_profile(largest: int) -> list[int]:
    """The sizes worth measuring before anything is asked for, the most telling ones first.

    Powers of two show the slope. A row more than each shows the steps of a device that works in
    tiles, where 9 rows cost what 16 do: between two powers alone they would look like a slope.
    """
    powers = [1 << k for k in range(largest.bit_length()) if 1 << k <= largest]
    return powers + [power + 1 for power in powers[1:] if power < largest]
