"""A model is batched only when its rows do not know of each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper

from headrace.server.models.options import ModelOptions
from headrace.server.models.probe import Recipe, Verdict, probe, probe_fixed, synthetic
from headrace.server.models.spec import ModelSpec, TensorSpec, read_spec
from server import graphs


def open_model(model: Any) -> tuple[ModelSpec, ort.InferenceSession]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return read_spec("m", "1", session, ModelOptions(), 8), session


def judge(model: Any) -> Verdict:
    spec, session = open_model(model)
    assert spec.batched, spec.unbatched_because
    return probe(spec, session)


@pytest.mark.parametrize("datatype", graphs.ELEMENT)
def test_rows_that_agree_bit_for_bit(datatype: str) -> None:
    assert judge(graphs.identity(("batch", "n"), datatype)) == Verdict("", 0.0)


@pytest.mark.parametrize("model", [graphs.two_by_two(), graphs.scaled(), graphs.plus(1.0)])
def test_models_that_may_be_batched(model: Any) -> None:
    assert judge(model).reason == ""


def test_a_matrix_product_may_differ_in_its_last_bits() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    weights = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)
    inputs, outputs = [graphs.tensor("x", ("b", 64))], [graphs.tensor("y", ("b", 64))]
    verdict = judge(graphs.build([node], inputs, outputs, {"w": weights}))
    assert verdict.reason == ""
    assert verdict.deviation < 1e-5


@pytest.mark.parametrize("model", [graphs.centred(), graphs.quantized()])
def test_a_model_that_mixes_rows_is_refused_and_says_by_how_much(model: Any) -> None:
    verdict = judge(model)
    assert verdict.reason.startswith("output 'y' of a row depends on the rows beside it")
    assert verdict.deviation > 1e-3
    assert f"{verdict.deviation:.2g}" in verdict.reason


def test_an_output_that_sums_over_the_rows_does_not_follow_the_batch() -> None:
    assert judge(graphs.totals()).reason == "output 'y' does not follow the batch"


def test_integers_must_agree_exactly() -> None:
    node = helper.make_node("CumSum", ["x", "axis"], ["y"])
    inputs = [graphs.tensor("x", ("b", 2), "INT64")]
    outputs = [graphs.tensor("y", ("b", 2), "INT64")]
    model = graphs.build([node], inputs, outputs, {"axis": np.array(0, np.int64)})
    assert "depends on the rows beside it" in judge(model).reason


def test_rows_whose_number_of_nans_depends_on_neighbours_do_not_agree() -> None:
    """0 / 0 in a row when another row is zero: finite in one run, not in the other."""
    nodes = [
        helper.make_node("Sub", ["x", "x"], ["zero"]),
        helper.make_node("ReduceMax", ["x"], ["largest"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "largest"], ["below"]),
        helper.make_node("Div", ["zero", "below"], ["y"]),
    ]
    dims = ("b", 1)
    verdict = judge(graphs.build(nodes, [graphs.tensor("x", dims)], [graphs.tensor("y", dims)]))
    assert "depends on the rows beside it" in verdict.reason


def test_a_model_that_refuses_all_synthetic_inputs_is_not_batched() -> None:
    verdict = judge(graphs.reshaping([-1, 7, 11]))
    assert verdict.reason.startswith("synthetic inputs were refused, so batching could not be")
    assert "Reshape" in verdict.reason


def test_sizes_are_tried_until_one_is_accepted() -> None:
    """Only rows of 256 fit: the last size that is tried."""
    node = helper.make_node("Add", ["x", "c"], ["y"])
    constants = {"c": np.ones(256, np.float32)}
    model = graphs.build(
        [node], [graphs.tensor("x", ("b", "n"))], [graphs.tensor("y", ("b", "m"))], constants
    )
    assert judge(model).reason == ""


@pytest.mark.parametrize("datatype", graphs.ELEMENT)
def test_synthetic_inputs_fit_their_tensor(datatype: str) -> None:
    spec = TensorSpec("x", datatype, (-1, -1, 5), ("b", "n", ""))
    array = synthetic(spec, 3, Recipe(4), np.random.default_rng(0))
    assert array.shape == (3, 4, 5)
    if datatype == "BYTES":
        assert all(isinstance(element, str) for element in array.ravel())
    elif datatype.startswith(("INT", "UINT")):
        assert (array.min() >= 0, array.max() <= 9) == (True, True)


def test_synthetic_inputs_have_the_shape_inside_a_reshape() -> None:
    spec = TensorSpec("x", "FP32", (-1, 6), ("", ""), model_shape=(2, 3), rows_lead=True)
    assert synthetic(spec, 3, Recipe(4), np.random.default_rng(0)).shape == (3, 2, 3)


def judge_fixed(model: Any) -> Verdict:
    spec, session = open_model(model)
    assert spec.fixed_rows
    return probe_fixed(spec, session)


@pytest.mark.parametrize("dims", [(2, 3), (4, 3), (64, 1)])
def test_rows_of_a_fixed_batch_that_are_independent(dims: tuple[int, int]) -> None:
    assert judge_fixed(graphs.plus(1.0, dims)) == Verdict("", 0.0)


def weighted(weights: Any) -> Any:
    """y = weights @ x: what of which rows a row's answer is made of."""
    node = helper.make_node("MatMul", ["w", "x"], ["y"])
    dims = (len(weights), 3)
    constants = {"w": np.asarray(weights, np.float32)}
    return graphs.build([node], [graphs.tensor("x", dims)], [graphs.tensor("y", dims)], constants)


@pytest.mark.parametrize(
    "weights",
    [
        np.ones((3, 3)),  # every row knows all
        np.eye(3)[::-1],  # rows in another order
        np.diag([1, 1, 2]),  # a place that is unlike the others
        np.tri(3),  # rows know those before them
        np.eye(5) + np.eye(5, k=1) * (np.arange(5) == 1),  # a row knows its neighbour
    ],
)
def test_rows_of_a_fixed_batch_that_are_not(weights: Any) -> None:
    verdict = judge_fixed(weighted(weights))
    assert verdict.reason.startswith("output 'y' of a row depends on the rows beside it")


def test_a_fixed_batch_that_refuses_synthetic_inputs() -> None:
    node = helper.make_node("Gather", ["table", "x"], ["y"])
    inputs, outputs = [graphs.tensor("x", (2, 3), "INT64")], [graphs.tensor("y", (2, 3))]
    model = graphs.build([node], inputs, outputs, {"table": np.zeros(1, np.float32)})
    assert "synthetic inputs were refused" in judge_fixed(model).reason


def test_indices_of_two_things_are_tried_too() -> None:
    node = helper.make_node("Gather", ["table", "x"], ["y"])
    inputs, outputs = [graphs.tensor("x", ("b", 3), "INT64")], [graphs.tensor("y", ("b", 3))]
    model = graphs.build([node], inputs, outputs, {"table": np.arange(2, dtype=np.float32)})
    assert judge(model) == Verdict("", 0.0)


@pytest.mark.parametrize("datatype", ["INT64", "FP32", "BOOL"])
def test_a_mask_hides_nothing(datatype: str) -> None:
    spec = TensorSpec("attention_mask", datatype, (-1, -1), ("b", "n"))
    assert synthetic(spec, 2, Recipe(3), np.random.default_rng(0)).tolist() == [[1] * 3] * 2
