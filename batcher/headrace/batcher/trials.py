"""Whether lone requests go to another team, and when the one that is thought worse runs after all.

Costs waver, and whoever is not asked cannot say that he has become faster. So a change of mind
needs some decisions in a row that agree, and the team that was left runs now and then, a few times
in a row, ever more rarely the longer the verdict stands.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Trials(NamedTuple):
    """When a team that is thought worse runs all the same: `runs` in a row, `first` runs after it
    was thought so, after twice as many, and so on up to every `most`.

    What was learned in a bad moment is soon unlearned so, and what has stood for long is hardly
    ever put to the test.
    """

    first: int
    most: int
    runs: int

    def due(self, since: int) -> bool:
        """Whether one is to run, `since` runs later."""
        if since < self.first:
            return False
        return since % min(self.most, 1 << since.bit_length() - 1) < self.runs


# The many threads of another team fall asleep, and so many runs wake them. The main one is told by
# few, but those put the other to sleep: they must be a small part of all.
_OTHER: Final = Trials(64, 2048, 16)
_MAIN: Final = Trials(256, 2048, 5)
# What was measured at load is put to the test so many runs later. But a bad moment may have changed
# the mind, so that the main team is asked again so many runs sooner.
_MEASURED: Final = 192
_CHANGED: Final = 192
# A mind is changed by so many decisions in a row. Five slow runs are enough for a table to rise by
# a third; it falls again as soon, while its own team goes on.
_DOUBTS: Final = 16


class Verdict:
    """Which of two teams has the lone requests of one key."""

    __slots__ = ("_doubts", "_elsewhere", "_since", "_tried")

    def __init__(self) -> None:
        self._elsewhere: bool | None = None
        self._since = self._doubts = 0
        self._tried = False

    def begin(self, elsewhere: bool, runs: int) -> None:
        """`elsewhere` was measured at load, after which there were `runs` of both."""
        self._elsewhere, self._since = elsewhere, runs + _MEASURED

    def elsewhere(self, better: bool, runs: int) -> tuple[bool, bool]:
        """Whether the next goes to the other team, which promises `better` or not, after `runs` of
        both; and whether a trial of the one that was thought worse has just ended."""
        self._doubts = 0 if better is self._elsewhere else self._doubts + 1
        if self._elsewhere is None:
            self.begin(better, runs)
        elif self._doubts >= _DOUBTS:
            self._elsewhere, self._doubts = better, 0
            self._since = runs - (_CHANGED if better else 0)
        trial = (_MAIN if self._elsewhere else _OTHER).due(runs - self._since)
        ended, self._tried = self._tried and not trial, trial
        return self._elsewhere is not trial, ended
