"""Predictions against truths: how many were right, or how far off they were."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from headrace.inference.tensors import Array
from headrace.server.errors import InvalidInput
from headrace.server.quality.options import QualityOptions
from headrace.server.quality.predictions import as_bytes
from headrace.server.quality.rolling import Rolling


@dataclass(frozen=True, slots=True)
class Truth:
    """The right answer to a request: `values` of one kind, one for each element predicted. `where`
    names it in the caller's words."""

    where: str
    request_id: str
    kind: Literal["classes", "names", "values"]
    values: Sequence[Any]


def matching(
    truth: Truth, predicted: Array, options: QualityOptions, names: Sequence[str]
) -> Array:
    """`truth` as `predicted` would be if it were right. `names`: of the classes, by index.

    Raises InvalidInput for one that cannot be compared.
    """
    if len(truth.values) != len(predicted):
        raise InvalidInput(
            f"{truth.where}.{truth.kind}: expected {len(predicted)}, as many as the answer to "
            f"request '{truth.request_id}' predicts, got {len(truth.values)}"
        )
    if options.task == "regression":
        return _values(truth)
    if truth.kind == "values":
        raise InvalidInput(f"{truth.where}: expected classes or names, got values")
    return _as_text(truth, names) if predicted.dtype == object else _as_indexes(truth, names)


def _values(truth: Truth) -> Array:
    if truth.kind != "values":
        raise InvalidInput(f"{truth.where}: expected values, got {truth.kind}")
    values = np.array(truth.values, np.float64)
    if not np.isfinite(values).all():
        raise InvalidInput(f"{truth.where}.values: expected finite numbers")
    return values


def _as_indexes(truth: Truth, names: Sequence[str]) -> Array:
    if truth.kind == "classes":
        return np.array(truth.values, np.int64)
    if not names:
        raise InvalidInput(f"{truth.where}: expected classes, since they have no names, got names")
    indexes = {name: index for index, name in enumerate(names)}
    for place, name in enumerate(truth.values):
        if name not in indexes:
            raise InvalidInput(
                f"{truth.where}.names[{place}]: expected one of {len(names)} classes, got '{name}'"
            )
    return np.array([indexes[str(name)] for name in truth.values], np.int64)


def _as_text(truth: Truth, names: Sequence[str]) -> Array:
    if truth.kind == "names":
        return as_bytes([str(name) for name in truth.values])
    for place, index in enumerate(truth.values):
        if not 0 <= int(index) < len(names):
            raise InvalidInput(
                f"{truth.where}.classes[{place}]: expected the index of one of {len(names)} named "
                f"classes, got {index}"
            )
    return as_bytes([names[int(index)] for index in truth.values])


class Scores:
    """Predictions against truths, over the last `window` elements, and counted for good.

    right, wrong: elements of classification. off: elements of regression whose predictions were not
    finite; they are in no mean.
    """

    def __init__(self, options: QualityOptions) -> None:
        self.right = self.wrong = self.off = 0
        self._options = options
        self._right = Rolling(options.window)
        self._errors = Rolling(options.window)

    def __len__(self) -> int:
        """Elements that the figures are over."""
        return len(self._errors if self._options.task == "regression" else self._right)

    def add(self, predicted: Array, truth: Array) -> None:
        """Both flat, of one length; `truth` as `matching` gives it."""
        if self._options.task == "regression":
            errors = predicted - truth
            finite = np.isfinite(errors)
            self.off += int(len(errors) - finite.sum())
            self._errors.add(errors[finite])
            return
        right = np.asarray(predicted == truth, np.float64)
        self.right += int(right.sum())
        self.wrong += int(len(right) - right.sum())
        self._right.add(right)

    @property
    def accuracy(self) -> float | None:
        """Share of right classes; None where there are none yet."""
        return self._right.mean()

    @property
    def mean_absolute_error(self) -> float | None:
        errors = np.abs(self._errors.numbers())
        return float(errors.mean()) if len(errors) else None

    @property
    def root_mean_square_error(self) -> float | None:
        errors = self._errors.numbers()
        return math.sqrt(float(np.square(errors).mean())) if len(errors) else None
