"""Outputs that are views of ONNX Runtime's memory: right, alive, and nobody else's."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper

from headrace.inference.tensors import DATATYPES, Array, decode_raw
from headrace.server.executors.in_place import run_in_place
from server import graphs


def session_of(model: Any) -> ort.InferenceSession:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def doubled(dims: graphs.Dims = ("batch", "n")) -> Any:
    """y = x + x."""
    node = helper.make_node("Add", ["x", "x"], ["y"])
    return graphs.build([node], [graphs.tensor("x", dims)], [graphs.tensor("y", dims)])


@pytest.mark.parametrize("datatype", [name for name in graphs.ELEMENT if name != "BF16"])
def test_every_datatype(datatype: str) -> None:
    dtype = DATATYPES[datatype].numpy
    x = np.array(["ß", ""], object) if datatype == "BYTES" else np.array([1, 0], dtype)
    if datatype == "BYTES":  # inputs are numbers; outputs need not be
        number = helper.make_node("Cast", ["x"], ["y"], to=graphs.ELEMENT["BYTES"])
        tensors = graphs.tensor("x", ("n",), "INT64"), graphs.tensor("y", ("n",), "BYTES")
        session = session_of(graphs.build([number], [tensors[0]], [tensors[1]]))
        (y,) = run_in_place(session, ["y"], {"x": np.array([7, 8])})
        assert y.tolist() == ["7", "8"]
        return
    (y,) = run_in_place(session_of(graphs.identity(("n",), datatype)), ["y"], {"x": x})
    assert y.dtype == dtype
    assert y.tolist() == x.tolist()


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1, 1), (3, 4)])
def test_every_shape(shape: tuple[int, ...]) -> None:
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    dims = [f"d{axis}" for axis in range(len(shape))]
    (y,) = run_in_place(session_of(doubled(dims)), ["y"], {"x": x})
    assert y.shape == shape
    assert y.tolist() == (x + x).tolist()


def test_it_is_a_view_that_nobody_can_write_to() -> None:
    (y,) = run_in_place(session_of(doubled()), ["y"], {"x": np.ones((2, 3), np.float32)})
    assert not y.flags.owndata
    assert not y.flags.writeable


def test_a_view_outlives_later_runs_and_the_session() -> None:
    session = session_of(doubled())
    views = [
        run_in_place(session, ["y"], {"x": np.full((64, 1024), value, np.float32)})[0]
        for value in range(20)
    ]
    del session
    gc.collect()
    assert [(view == 2 * value).all() for value, view in enumerate(views)] == [True] * 20


def test_a_constant_of_the_graph_outlives_the_session() -> None:
    constant = np.arange(50_000, dtype=np.float32)
    node = helper.make_node("Identity", ["c"], ["y"])
    x, y = graphs.tensor("x", ("n",)), graphs.tensor("y", (50_000,))
    session = session_of(graphs.build([node], [x], [y], {"c": constant}))
    (view,) = run_in_place(session, ["y"], {"x": np.ones(1, np.float32)})
    del session
    gc.collect()
    assert (view == constant).all()


def test_an_output_that_is_the_input_is_copied() -> None:
    """However ONNX Runtime goes about it, the answer must not change with the gather buffer."""
    x = np.ones((64, 1024), np.float32)
    (y,) = run_in_place(session_of(graphs.identity(("batch", "n"))), ["y"], {"x": x})
    x[:] = 7
    assert (y == 1).all()


def test_inputs_may_lie_anywhere() -> None:
    """Of a message: not aligned, not writeable. Of another array: not contiguous."""
    session = session_of(doubled())
    message = b"\7" + np.arange(6, dtype=np.float32).tobytes()
    inside: Array = decode_raw(memoryview(message)[1:], DATATYPES["FP32"], (2, 3))
    for x in (inside, inside.T, inside[:, ::2]):
        (y,) = run_in_place(session, ["y"], {"x": x})
        assert y.tolist() == (x + x).tolist()


def test_the_models_error_is_raised() -> None:
    with pytest.raises(Exception, match="Reshape"):
        run_in_place(
            session_of(graphs.reshaping([-1, 7])), ["y"], {"x": np.ones((1, 3), np.float32)}
        )
