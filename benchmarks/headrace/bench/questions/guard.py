"""Whether what a request costs has grown: held against a bare server, measured in the same turns.

Processor times differ between machines, and between a machine's good and bad hours; their ratio to
what the transport alone takes differs far less. So a bound on the ratio can be committed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headrace.bench.questions import Measure
from headrace.bench.questions.ratios import ratio
from headrace.bench.questions.versus import value, versus
from headrace.bench.results import Measurement, Ratio, Section
from headrace.bench.spec import Job

FIGURE = "cpu_us_per_request"
VERDICT = "guard"
"""The fact that says "pass" or "fail"."""


def guard(
    sides: Sequence[Job],
    base: str,
    at_most: Mapping[str, float],
    turns: int,
    measure: Measure,
    *,
    title: str = "",
) -> Section:
    """Server CPU per request of each side that `at_most` names, as a multiple of `base`'s: the
    median over the turns passes where it is no more than the side's bound. What could not be
    measured fails, since nobody would notice otherwise."""
    names = {job.target.name for job in sides}
    if base not in names or len(names) < 2:
        note = f"FAIL: nothing to compare: {base} and {', '.join(at_most)} are not all there"
        return Section(
            title=title, kind="versus", measurements=(), facts={VERDICT: "fail"}, notes=(note,)
        )
    taken = versus(sides, turns, measure, title=title)
    found = [_ratio(taken.measurements, side, base) for side in at_most]
    notes, passed = [], True
    for (side, bound), each in zip(at_most.items(), found, strict=True):
        within = each is not None and each.median <= bound
        passed = passed and within
        said = "not measured" if each is None else f"{each.median:.2f} times that of {base}"
        verdict = "pass" if within else "FAIL"
        notes.append(f"{verdict}: server CPU per request of {side}: {said}, bound {bound:g}")
    return taken.model_copy(
        update={
            "ratios": tuple(each for each in found if each is not None),
            "facts": {VERDICT: "pass" if passed else "fail"},
            "notes": (*notes, *taken.notes),
        }
    )


def _ratio(measurements: Sequence[Measurement], side: str, base: str) -> Ratio | None:
    """None where a turn of either has no figure."""
    ours, theirs = (
        [value(m, FIGURE) for m in measurements if m.target == name] for name in (side, base)
    )
    # A turn in which nothing was answered says nothing of what an answer costs.
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=False) if a and b]
    if not pairs or len(pairs) < max(len(ours), len(theirs)):
        return None
    return ratio(FIGURE, (side, [a for a, _ in pairs]), (base, [b for _, b in pairs]))
