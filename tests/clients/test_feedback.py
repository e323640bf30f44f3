"""What may be told as the truth, and as what it is sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headrace.client.feedback import report


@pytest.mark.parametrize(
    ("truth", "kind", "sent"),
    [
        (3, "classes", [3]),
        (True, "classes", [1]),
        ([2, 0], "classes", [2, 0]),
        (np.array([[1], [2]], np.uint8), "classes", [1, 2]),
        ("cat", "names", ["cat"]),
        (("cat", ""), "names", ["cat", ""]),
        (np.array(["cat", "dog"], dtype=object), "names", ["cat", "dog"]),
        (0.5, "values", [0.5]),
        ([1, 2.5], "values", [1, 2.5]),
        (np.array([[1, 2], [3, 4]], np.float32), "values", [1, 2, 3, 4]),
        ((n for n in (1, 2)), "classes", [1, 2]),
    ],
)
def test_a_truth_is_sent_as_what_it_is(truth: Any, kind: str, sent: list[Any]) -> None:
    call = report("m", "2", {"r": truth})
    request: Any = call.request
    (message,) = request.truths
    assert (request.model, request.version, message.request_id) == ("m", "2", "r")
    assert message.WhichOneof("truth") == kind
    ((_, values),) = getattr(message, kind).ListFields()
    assert list(values) == sent
    assert not call.repeatable


@pytest.mark.parametrize("truth", [b"cat", [b"cat"], None, [None], 1j])
def test_what_is_no_truth_is_refused_and_named(truth: Any) -> None:
    with pytest.raises(TypeError, match="truth of request 'r': expected numbers or text"):
        report("m", "", {"r": truth})
