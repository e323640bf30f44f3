"""The contract of a model: its batch axis, its tensors, what a configuration may say of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from headrace.server.errors import LoadFailed
from headrace.server.models.options import ModelOptions, TensorDeclaration
from headrace.server.models.spec import ModelSpec, read_spec
from server import graphs


def read(model: Any, **options: Any) -> ModelSpec:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return read_spec("m", "1", session, ModelOptions(**options), 8)


def test_a_shared_open_first_dimension_is_the_batch_axis() -> None:
    spec = read(graphs.identity(("batch", 3, "n")))
    assert (spec.batched, spec.unbatched_because) == (True, "")
    assert (spec.max_batch_size, spec.row_limit) == (8, None)
    (x,) = spec.inputs
    assert (x.name, x.datatype, x.shape, x.symbols) == (
        "x",
        "FP32",
        (-1, 3, -1),
        ("batch", "", "n"),
    )


def test_a_configured_batch_size_also_limits_single_requests() -> None:
    spec = read(graphs.identity(), max_batch_size=3)
    assert (spec.max_batch_size, spec.row_limit) == (3, 3)


def mixed(first: graphs.Dims, second: graphs.Dims, out: graphs.Dims) -> Any:
    nodes = [
        helper.make_node("Identity", ["a"], ["y"]),
        helper.make_node("Identity", ["b"], ["z"]),
    ]
    inputs = [graphs.tensor("a", first), graphs.tensor("b", second)]
    return graphs.build(nodes, inputs, [graphs.tensor("y", out), graphs.tensor("z", second)])


def nothing_in() -> Any:
    node = helper.make_node("Identity", ["c"], ["y"])
    constants = {"c": np.zeros((2, 2), np.float32)}
    return graphs.build([node], [], [graphs.tensor("y", ("batch", 2))], constants)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (graphs.identity((1, 3)), "the first dimension of input 'x' is always 1"),
        (graphs.identity(()), "input 'x' is a scalar"),
        (mixed(("n",), ("n",), (2,)), "the first dimension of output 'y' is always 2"),
        (mixed(("n",), (4,), ("n",)), "the first dimension of input 'b' is always 4"),
        (
            mixed(("rows",), ("columns",), ("rows",)),
            "the inputs' first dimensions have different names: columns, rows",
        ),
        (nothing_in(), "the model has no required input"),
    ],
)
def test_why_there_is_no_batch_axis(model: Any, reason: str) -> None:
    spec = read(model)
    assert (spec.batched, spec.unbatched_because) == (False, reason)
    assert (spec.max_batch_size, spec.row_limit) == (1, None)


def test_a_fixed_first_dimension_may_turn_out_to_be_the_batch() -> None:
    spec = read(graphs.identity((4, 3)))
    assert (spec.batched, spec.fixed_rows) == (False, 4)
    assert spec.inputs[0].shape == (4, 3)
    opened = spec.with_open_rows()
    assert (opened.batched, opened.unbatched_because) == (True, "")
    assert (opened.max_batch_size, opened.row_limit, opened.fixed_rows) == (4, 4, 4)
    assert opened.inputs[0].shape == opened.outputs[0].shape == (-1, 3)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (graphs.identity((1, 3)), {}),
        (graphs.identity((65, 3)), {}),
        (graphs.identity((4,)), {}),
        (graphs.identity(("batch", 3)), {}),
        (graphs.identity((4, 3), "BF16"), {}),
        (mixed((4, 3), (5, 3), (4, 3)), {}),
        (graphs.identity((4, 3)), {"max_batch_size": 0}),
    ],
)
def test_a_first_dimension_that_is_no_fixed_batch(model: Any, options: dict[str, Any]) -> None:
    assert read(model, **options).fixed_rows == 0


def test_batching_can_be_turned_off() -> None:
    spec = read(graphs.identity(), max_batch_size=0)
    assert (spec.batched, spec.max_batch_size) == (False, 1)
    assert spec.unbatched_because == "the configuration says max_batch_size: 0"


def test_a_batch_size_for_a_model_without_a_batch_axis_does_not_load() -> None:
    with pytest.raises(LoadFailed, match=r"max_batch_size is 4, but the first dimension of input"):
        read(graphs.identity((1, 3)), max_batch_size=4)


def test_a_constant_that_may_be_replaced_is_an_optional_input() -> None:
    spec = read(graphs.scaled())
    assert [(t.name, t.optional, t.shape) for t in spec.inputs] == [
        ("x", False, (-1, 2)),
        ("scale", True, (1,)),
    ]
    assert spec.batched


def test_unbatched_keeps_the_contract() -> None:
    spec = read(graphs.identity(), max_batch_size=4)
    alone = spec.unbatched("it mixes rows")
    assert (alone.batched, alone.unbatched_because, alone.max_batch_size) == (
        False,
        "it mixes rows",
        1,
    )
    assert alone.inputs == spec.inputs


def test_the_key_leaves_out_rows_only_where_they_are_batched() -> None:
    spec = read(graphs.identity(("batch", "n")))
    arrays = [np.zeros((2, 5), np.float32)]
    key = spec.key(spec.inputs, arrays, ("y",))
    assert key.inputs == (("x", "FP32", (5,)),)
    assert not key.bfloat16
    alone = spec.unbatched("why").key(spec.inputs, arrays, ("y",))
    assert alone.inputs == (("x", "FP32", (2, 5)),)


def test_bfloat16_is_seen_in_inputs_and_outputs() -> None:
    cast = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.BFLOAT16)
    dims = ("batch",)
    out = graphs.build([cast], [graphs.tensor("x", dims)], [graphs.tensor("y", dims, "BF16")])
    assert read(out).has_bfloat16
    assert read(graphs.identity(dims, "BF16")).has_bfloat16
    assert not read(graphs.identity(dims)).has_bfloat16


@pytest.mark.parametrize("datatype", graphs.ELEMENT)
def test_every_datatype_is_read(datatype: str) -> None:
    assert read(graphs.identity(("batch",), datatype)).outputs[0].datatype == datatype


def test_a_sequence_cannot_be_carried() -> None:
    node = helper.make_node("SequenceConstruct", ["x"], ["y"])
    sequence = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    model = graphs.build([node], [graphs.tensor("x", ("batch",))], [sequence])
    with pytest.raises(LoadFailed, match=r"'y' is of type seq\(tensor\(float\)\), .* tensors only"):
        read(model)


def declare(
    dims: tuple[int, ...] | None,
    reshape: tuple[int, ...] | None = None,
    name: str = "x",
    datatype: str = "FP32",
) -> dict[str, Any]:
    return {"inputs": (TensorDeclaration(name, datatype, dims, reshape),)}


def test_declared_dimensions_narrow_the_graphs() -> None:
    spec = read(graphs.identity(("batch", "n", 3)), **declare((5, 3)))
    assert spec.inputs[0].shape == (-1, 5, 3)
    assert spec.outputs[0].shape == (-1, -1, 3)


def test_declared_dimensions_cannot_open_what_the_graph_closes() -> None:
    spec = read(graphs.identity(("batch", "n", 3)), **declare((-1, -1)))
    assert spec.inputs[0].shape == (-1, -1, 3)


def test_declared_dimensions_of_an_unbatched_model_are_all_of_them() -> None:
    spec = read(graphs.identity(("batch", 3)), max_batch_size=0, **declare((2, 3)))
    assert spec.inputs[0].shape == (2, 3)


def test_declared_dimensions_of_an_optional_input_have_no_batch() -> None:
    spec = read(graphs.scaled(), **declare((1,), name="scale"))
    assert spec.inputs[1].shape == (1,)


def test_a_declaration_may_leave_out_dimensions() -> None:
    assert read(graphs.identity(), **declare(None)).inputs[0].shape == (-1, 3)


def test_a_reshape() -> None:
    x = read(graphs.identity(("batch", 2, "n")), **declare((-1,), (-1, -1))).inputs[0]
    assert (x.shape, x.symbols) == ((-1, -1), ("", ""))
    assert (x.model_shape, x.rows_lead) == ((2, -1), True)


def test_a_reshape_of_an_optional_input_has_no_rows() -> None:
    scale = read(graphs.scaled(), **declare((1, 1), (1,), name="scale")).inputs[1]
    assert (scale.shape, scale.model_shape, scale.rows_lead) == ((1, 1), (1,), False)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (declare((4,)), "dims of 'x' are [-1, 4], the model's are [-1, 3]"),
        (declare((3, 1)), "dims of 'x' are [-1, 3, 1], the model's are [-1, 3]"),
        (declare((6,), (3, 2)), "reshape of 'x' are [3, 2], the model's are [3]"),
        (
            declare((4,), (3,)),
            "dims [4] of 'x' hold 4 elements, their reshape [3] holds 3",
        ),
        (declare((3,), name="z"), "input 'z' is not in the model, which has x"),
        (
            declare((3,), datatype="INT8"),
            "input 'x' is declared INT8, the model's is FP32",
        ),
    ],
)
def test_a_declaration_that_does_not_fit_does_not_load(options: dict[str, Any], said: str) -> None:
    with pytest.raises(LoadFailed) as caught:
        read(graphs.identity(("batch", 3)), **options)
    assert str(caught.value) == f"the configuration does not fit the model: {said}"


def test_all_wrong_declarations_are_told_at_once() -> None:
    wrong = TensorDeclaration("a"), TensorDeclaration("x", "INT8")
    with pytest.raises(LoadFailed) as caught:
        read(graphs.identity(), inputs=wrong, outputs=(TensorDeclaration("b"),))
    said = str(caught.value)
    assert all(part in said for part in ("input 'a'", "input 'x'", "output 'b'"))
