"""A graph that takes four rows is run with any number up to that."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper

from headrace.server.executors.fixed_rows import FixedRows
from server import graphs


class Spy:
    """A session, and the rows that it was given."""

    def __init__(self, model: Any) -> None:
        self.seen: list[list[Any]] = []
        self._session = ort.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )

    def get_overridable_initializers(self) -> Any:
        return self._session.get_overridable_initializers()

    def run(self, outputs: Any, feeds: dict[str, Any], options: Any) -> Any:
        self.seen.append(feeds["x"].tolist())
        return self._session.run(outputs, feeds, options)


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_rows_are_added_and_their_answers_cut_off(rows: int) -> None:
    spy = Spy(graphs.plus(1.0, (4, 2)))
    x = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
    (y,) = FixedRows(spy, 4).run(["y"], {"x": x})
    assert y.tolist() == (x + 1).tolist()
    assert spy.seen == [x.tolist() + [x[-1].tolist()] * (4 - rows)]


@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_no_rows_at_all(datatype: str) -> None:
    spy = Spy(graphs.identity((4, 2), datatype))
    x = np.empty((0, 2), object if datatype == "BYTES" else np.float32)
    (y,) = FixedRows(spy, 4).run(["y"], {"x": x})
    assert y.shape == (0, 2)


def test_a_constant_that_is_replaced_has_no_rows() -> None:
    node = helper.make_node("Mul", ["x", "scale"], ["y"])
    inputs = [graphs.tensor("x", (4, 2)), graphs.tensor("scale", (1,))]
    constants = {"scale": np.array([2.0], np.float32)}
    model = graphs.build([node], inputs, [graphs.tensor("y", (4, 2))], constants)
    feeds = {"x": np.ones((3, 2), np.float32), "scale": np.array([5.0], np.float32)}
    (y,) = FixedRows(Spy(model), 4).run(["y"], feeds)
    assert y.tolist() == [[5.0, 5.0]] * 3


def test_bfloat16_is_refused() -> None:
    with pytest.raises(TypeError, match="BF16"):
        FixedRows(Spy(graphs.identity((4, 2))), 4).run_with_ort_values(["y"], {})
