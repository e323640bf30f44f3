"""A model's quality as metrics."""

from __future__ import annotations

from typing import Protocol

from headrace.server.quality.figures import Snapshot
from headrace.server.telemetry.families import Families, Labels


class Watched(Protocol):
    """What is counted beside the snapshot: requests that were looked at, and that were not because
    too many came; truths whose answers were not there."""

    snapshot: Snapshot
    sampled: int
    skipped: int
    unknown: int


def collect(families: Families, labels: Labels, quality: Watched) -> None:
    figures = quality.snapshot
    counter, gauge = families.counter, families.gauge
    requests = counter(
        "headrace.quality.requests", "{request}", "Requests whose answers are watched"
    )
    requests.add({**labels, "outcome": "looked at"}, quality.sampled)
    requests.add({**labels, "outcome": "too many"}, quality.skipped)
    truths = counter("headrace.quality.truths", "{request}", "Truths by what became of them")
    truths.add({**labels, "outcome": "scored"}, figures.truths)
    truths.add({**labels, "outcome": "unknown request"}, quality.unknown)
    answers = gauge("headrace.quality.answers", "{request}", "Answers that wait for their truths")
    answers.add(labels, figures.answers)
    held = gauge("headrace.quality.answers.size", "By", "Memory of answers that wait")
    held.add(labels, figures.answers_bytes)
    _add_scores(families, labels, figures)
    _add_drift(families, labels, figures)


def _add_scores(families: Families, labels: Labels, figures: Snapshot) -> None:
    counter, gauge = families.counter, families.gauge
    over = gauge("headrace.quality.window", "{element}", "Predictions that the figures are over")
    over.add(labels, figures.scored)
    if figures.accuracy is not None:
        classes = counter("headrace.quality.classes", "{element}", "Classes predicted and told")
        classes.add({**labels, "outcome": "right"}, figures.right)
        classes.add({**labels, "outcome": "wrong"}, figures.wrong)
        accuracy = gauge("headrace.quality.accuracy", "1", "Share of right classes")
        accuracy.add(labels, figures.accuracy)
    if figures.off:
        off = counter(
            "headrace.quality.not_finite", "{element}", "Predictions not finite, unscored"
        )
        off.add(labels, figures.off)
    errors = gauge("headrace.quality.error", "", "Error of regression, in the output's own unit")
    for kind, value in (
        ("mae", figures.mean_absolute_error),
        ("rmse", figures.root_mean_square_error),
    ):
        if value is not None:
            errors.add({**labels, "kind": kind}, value)


def _add_drift(families: Families, labels: Labels, figures: Snapshot) -> None:
    gauge = families.gauge
    rows = gauge("headrace.drift.rows", "{row}", "Rows in the windows that are compared")
    rows.add({**labels, "window": "reference"}, figures.reference_rows)
    rows.add({**labels, "window": "recent"}, figures.recent_rows)
    help_ = "Distance of the latest rows from the reference: 0 alike, 1 nothing in common"
    score = gauge("headrace.drift.score", "1", help_)
    for feature, distance in figures.drift.items():
        where = {"side": feature.side, "tensor": feature.tensor, "feature": feature.name}
        score.add({**labels, **where}, distance)
