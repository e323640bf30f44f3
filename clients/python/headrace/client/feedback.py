"""What the right answers were, as messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from headrace.client.messages import Call
from headrace.feedback.v1 import feedback_pb2 as pb

Truth = int | float | str | Iterable[int] | Iterable[float] | Iterable[str] | np.ndarray[Any, Any]
"""What was right for one request: one entry for each class or value that the model predicted, or a
lone one. Whole numbers (and truth values) are classes by their indexes, text is classes by their
names, and other numbers are values of regression."""


def report(model: str, version: str, truths: Mapping[str, Truth]) -> Call[tuple[str, ...]]:
    """Raises TypeError, naming the request, for what is no truth."""
    request = pb.ReportRequest(model=model, version=version)
    for request_id, truth in truths.items():
        _fill(request.truths.add(request_id=request_id), request_id, truth)
    # A second arrival finds the answers scored already, and calls them unknown.
    return Call("Report", request, _unknown, repeatable=False, of_feedback=True)


def _fill(message: pb.Truth, request_id: str, truth: Truth) -> None:
    array = np.ravel(
        np.asarray(truth if isinstance(truth, (str, bytes, np.ndarray)) else _listed(truth))
    )
    if array.dtype.kind in "biu":
        message.classes.indexes.extend(array.astype(np.int64).tolist())
    elif array.dtype.kind == "f":
        message.values.values.extend(array.astype(np.float64).tolist())
    elif array.dtype.kind in "UO" and all(isinstance(name, str) for name in array.tolist()):
        message.names.names.extend(array.tolist())
    else:
        raise TypeError(
            f"truth of request {request_id!r}: expected numbers or text, got {array.dtype}"
        )


def _listed(truth: Any) -> Any:
    return list(truth) if isinstance(truth, Iterable) else truth


def _unknown(response: pb.ReportResponse) -> tuple[str, ...]:
    return tuple(response.unknown_request_ids)


def reset_reference(model: str, version: str) -> Call[None]:
    request = pb.ResetReferenceRequest(model=model, version=version)
    return Call("ResetReference", request, lambda _: None, of_feedback=True)
