"""What is known of a model's answers: scores, drift, and the answers that wait for their truths.

It is slow, and knows nothing of threads: one thread at a time may use it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from headrace.inference.tensors import Array
from headrace.server.quality.answers import Answers, Name
from headrace.server.quality.drift import Drift, Feature
from headrace.server.quality.options import QualityOptions
from headrace.server.quality.predictions import predicted
from headrace.server.quality.scores import Scores, Truth, matching
from headrace.server.quality.summaries import features, thinned


class Seen(NamedTuple):
    """Some rows of a tensor, [rows, elements]."""

    side: str
    tensor: str
    datatype: str
    rows: Array


class Taken(NamedTuple):
    """What is looked at of one request. output: the one that is scored, rows first; None where none
    is, or where it is too large."""

    name: Name
    seen: Sequence[Seen]
    output: Array | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Figures at one moment.

    truths: how many were compared. accuracy and the errors are None where there are none; right,
    wrong and off (predictions that are not finite) are counted for good. scored: how many elements
    the figures are over. drift: by feature; and how many rows both of its windows have.
    """

    truths: int = 0
    accuracy: float | None = None
    mean_absolute_error: float | None = None
    root_mean_square_error: float | None = None
    right: int = 0
    wrong: int = 0
    off: int = 0
    scored: int = 0
    answers: int = 0
    answers_bytes: int = 0
    drift: Mapping[Feature, float] = field(default_factory=dict)
    reference_rows: int = 0
    recent_rows: int = 0


class Figures:
    """Of one version of a model. `output` and `datatype`: of the output that is scored; `names` of
    its classes, by index."""

    def __init__(
        self, options: QualityOptions, output: str, datatype: str, names: Sequence[str]
    ) -> None:
        self._options = options
        self._output = output
        self._datatype = datatype
        self._names = options.classes or names
        self._answers = Answers(options.answers, options.answers_bytes)
        self._scores = Scores(options)
        self._drift = Drift(options.reference, options.window) if options.drift else None
        self._truths = 0

    def take(self, many: Sequence[Taken]) -> None:
        """Looks at answers, in the order in which they were given."""
        for taken in many:
            if taken.output is not None:
                self._keep(taken.name, predicted(taken.output, self._datatype, self._options))
        if self._drift is None:
            return
        alike: dict[tuple[str, str, str, int], list[Array]] = {}
        for taken in many:
            for side, tensor, datatype, rows in taken.seen:
                alike.setdefault((side, tensor, datatype, rows.shape[1]), []).append(rows)
        for (side, tensor, datatype, _), rows_ in alike.items():
            for name, numbers in features(np.concatenate(rows_), datatype).items():
                self._drift.add(Feature(side, tensor, name), numbers)

    def _keep(self, name: Name, classes: Array) -> None:
        if name.request_id:
            self._answers.put(name, classes)
        if self._drift is not None and self._options.task == "classification":
            self._drift.add_classes(self._output, thinned(classes[None])[0])

    def report(self, identity: str, truths: Sequence[Truth]) -> list[Truth]:
        """Scores the answers that `truths` are about; returns those whose answers are not here.

        Raises InvalidInput for a truth that does not fit its answer, before any of them counts.
        """
        found = []
        for truth in truths:
            answer = self._answers.get(Name(identity, truth.request_id))
            if answer is not None:
                right = matching(truth, answer, self._options, self._names)
                found.append((truth, right))
        left = {id(truth): truth for truth in truths}
        for truth, right in found:
            answer = self._answers.take(Name(identity, truth.request_id))
            if answer is not None:  # else two truths were about one request
                self._scores.add(answer, right)
                self._truths += 1
                del left[id(truth)]
        return list(left.values())

    def reset_reference(self) -> None:
        """The rows that come next are what later ones are compared with."""
        if self._drift is not None:
            self._drift.reset()

    def snapshot(self) -> Snapshot:
        """The figures now. Takes milliseconds where there is drift to be found."""
        scores, drift = self._scores, self._drift
        reference, recent = (0, 0) if drift is None else drift.rows()
        return Snapshot(
            truths=self._truths,
            accuracy=scores.accuracy,
            mean_absolute_error=scores.mean_absolute_error,
            root_mean_square_error=scores.root_mean_square_error,
            right=scores.right,
            wrong=scores.wrong,
            off=scores.off,
            scored=len(scores),
            answers=len(self._answers),
            answers_bytes=self._answers.nbytes,
            drift={} if drift is None else drift.scores(),
            reference_rows=reference,
            recent_rows=recent,
        )
