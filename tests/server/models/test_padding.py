"""Unequal lengths are padded only where the model itself shows that it makes no difference."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper

from headrace.server.executors.padding import LengthRule, Mode
from headrace.server.executors.running import Session
from headrace.server.models.options import ModelOptions, TensorDeclaration
from headrace.server.models.padding import PaddingVerdict, probe_padding
from headrace.server.models.probe import TOLERANCE
from headrace.server.models.spec import ModelSpec, read_spec
from server import graphs
from support import lengths, models


def open_model(model: Any, **options: Any) -> tuple[ModelSpec, Session]:
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    session = ort.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    return read_spec("m", "1", session, ModelOptions(**options), 8), session


def judge(model: Any, **options: Any) -> PaddingVerdict:
    spec, session = open_model(model, **options)
    # A clock that stands still: what is found must not depend on how fast the tests run.
    return probe_padding(spec, session, clock=lambda: 0.0)


EQUAL = [LengthRule(1, 1, 0)]


@pytest.mark.parametrize(
    ("model", "mode", "axes", "outputs"),
    [
        (graphs.identity(("batch", "n")), Mode.ZEROS, {"x": 1}, {"y": EQUAL}),
        (graphs.identity(("batch", "n"), "BYTES"), Mode.ZEROS, {"x": 1}, {"y": EQUAL}),
        (graphs.identity(("batch", "n"), "BF16"), Mode.ZEROS, {"x": 1}, {"y": EQUAL}),
        (graphs.identity(("batch", "n"), "BOOL"), Mode.ZEROS, {"x": 1}, {"y": EQUAL}),
        (lengths.recurrent(), Mode.ZEROS, {"x": 1}, {"y": EQUAL}),
        (
            lengths.text(),
            Mode.MASK,
            {"input_ids": 1, "attention_mask": 1},
            {"pooled": [], "tokens": EQUAL},
        ),
        (lengths.convolutions(1), Mode.ZEROS, {"x": 2}, {"y": [LengthRule(2, 1, 0)]}),
        (lengths.convolutions(1, stride=2), Mode.ZEROS, {"x": 2}, {"y": [LengthRule(2, 2, 1)]}),
        (lengths.convolutions(1, stride=5), Mode.ZEROS, {"x": 2}, {"y": [LengthRule(2, 5, 4)]}),
        (lengths.convolutions(1, "edge"), Mode.EDGE, {"x": 2}, {"y": [LengthRule(2, 1, 0)]}),
    ],
)
def test_models_that_may_be_padded(model: Any, mode: Mode, axes: Any, outputs: Any) -> None:
    verdict = judge(model)
    assert verdict.reason == ""
    assert verdict.padding is not None
    assert verdict.padding.mode is mode
    assert verdict.padding.inputs == axes
    assert verdict.padding.outputs == outputs
    assert verdict.deviation < 1e-5


@pytest.mark.parametrize(
    "model",
    [
        lengths.recurrent("reverse"),
        lengths.recurrent("bidirectional"),
        lengths.softmax_over_time(),
        lengths.convolutions(2),
        lengths.convolutions(2, stride=2),
        lengths.convolutions(2, "edge"),
    ],
)
def test_models_that_look_at_the_padding(model: Any) -> None:
    verdict = judge(model)
    assert verdict.padding is None
    assert "zeros at the end changes output 'y' by" in verdict.reason
    assert "repeating the last slice changes output 'y' by" in verdict.reason


def unmasked() -> Any:
    """A text model that is given a mask and pays no heed to it."""
    model = lengths.text()
    cast = next(node for node in model.graph.node if node.op_type == "Cast")
    cast.input[0] = "always"
    always = helper.make_node("Equal", ["attention_mask", "attention_mask"], ["always"])
    model.graph.node.insert(0, always)
    return model


def test_a_mask_that_is_not_heeded() -> None:
    assert "zeros at the end, masked out, changes output" in judge(unmasked()).reason


@pytest.mark.parametrize("model", [graphs.identity(("batch", 3)), graphs.scaled()])
def test_nothing_is_said_of_models_without_a_variable_length(model: Any) -> None:
    assert judge(model) == PaddingVerdict()


def test_nothing_is_said_of_an_unbatched_model() -> None:
    spec, session = open_model(lengths.text())
    assert probe_padding(spec.unbatched("why"), session) == PaddingVerdict()


def two(first: graphs.Dims, second: graphs.Dims) -> Any:
    nodes = [
        helper.make_node("Identity", ["a"], ["y"]),
        helper.make_node("Identity", ["b"], ["z"]),
    ]
    inputs = [graphs.tensor("a", first), graphs.tensor("b", second)]
    return graphs.build(nodes, inputs, [graphs.tensor("y", first), graphs.tensor("z", second)])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            graphs.identity(("batch", "height", "width")),
            "input 'x' has more than one variable dimension",
        ),
        (
            two(("batch", "n"), ("batch", "m")),
            "the inputs have more than one variable length: 'n' of 'a' and 'm' of 'b'",
        ),
    ],
)
def test_several_variable_lengths(model: Any, reason: str) -> None:
    assert judge(model) == PaddingVerdict(reason=reason)


def test_inputs_whose_only_open_dimensions_have_no_name_share_it() -> None:
    model = two(("batch", "n"), ("batch", 2, "n"))
    for place, dim in ((0, 1), (1, 2)):
        model.graph.input[place].type.tensor_type.shape.dim[dim].ClearField("dim_param")
    padding = judge(model).padding
    assert padding is not None
    assert padding.inputs == {"a": 1, "b": 2}


def test_an_input_without_the_length_is_left_alone() -> None:
    padding = judge(two(("batch", "n"), ("batch", 2))).padding
    assert padding is not None
    assert padding.inputs == {"a": 1}
    assert padding.outputs == {"y": EQUAL, "z": []}


def test_a_declared_height_leaves_one_variable_length() -> None:
    verdict = judge(
        graphs.identity(("batch", "height", "width")),
        max_batch_size=4,
        inputs=(TensorDeclaration("x", "FP32", (6, -1)),),
    )
    assert verdict.padding is not None
    assert verdict.padding.inputs == {"x": 2}


def test_a_reshape_in_the_configuration() -> None:
    verdict = judge(
        graphs.identity(("batch", 2, "n")),
        max_batch_size=4,
        inputs=(TensorDeclaration("x", "FP32", (-1,), (2, -1)),),
    )
    assert verdict.reason == "the configuration reshapes input 'x'"


def test_an_output_whose_length_follows_no_rule() -> None:
    node = helper.make_node("Concat", ["x", "x", "x"], ["y"], axis=1)
    inputs, outputs = [graphs.tensor("x", ("b", "n"))], [graphs.tensor("y", ("b", "m"))]
    reason = judge(graphs.build([node], inputs, outputs)).reason
    assert reason.startswith("dimension 1 of output 'y' follows the length by no known rule")
    assert "8: 24" in reason


def test_both_dimensions_of_an_output_may_follow_the_length() -> None:
    """y = the products of all pairs of elements."""
    nodes = [
        helper.make_node("Unsqueeze", ["x", "one"], ["row"]),
        helper.make_node("Unsqueeze", ["x", "two"], ["column"]),
        helper.make_node("Mul", ["column", "row"], ["y"]),
    ]
    constants = {"one": np.array([1], np.int64), "two": np.array([2], np.int64)}
    inputs, outputs = [graphs.tensor("x", ("b", "n"))], [graphs.tensor("y", ("b", "n", "n"))]
    padding = judge(graphs.build(nodes, inputs, outputs, constants)).padding
    assert padding is not None
    assert padding.outputs == {"y": [LengthRule(1, 1, 0), LengthRule(2, 1, 0)]}


def test_a_model_that_takes_one_length_alone() -> None:
    node = helper.make_node("Add", ["x", "c"], ["y"])
    dims = ("b", "n")
    constants = {"c": np.ones(32, np.float32)}
    model = graphs.build([node], [graphs.tensor("x", dims)], [graphs.tensor("y", dims)], constants)
    assert judge(model).reason == "the model does not take synthetic inputs of several lengths"


def test_a_model_of_a_longest_length() -> None:
    """y = x + the first of 50 positions: lengths beyond are refused, and need not be tried."""
    nodes = [
        helper.make_node("Shape", ["x"], ["length"], start=1, end=2),
        helper.make_node("Range", ["zero", "end", "step"], ["places"]),
        helper.make_node("Gather", ["table", "places"], ["positions"]),
        helper.make_node("Add", ["x", "positions"], ["y"]),
    ]
    nodes.insert(1, helper.make_node("Squeeze", ["length"], ["end"]))
    constants = {
        "zero": np.array(0, np.int64),
        "step": np.array(1, np.int64),
        "table": np.linspace(0, 1, 50, dtype=np.float32),
    }
    dims = ("b", "n")
    model = graphs.build(nodes, [graphs.tensor("x", dims)], [graphs.tensor("y", dims)], constants)
    padding = judge(model).padding
    assert padding is not None
    assert padding.outputs == {"y": EQUAL}


def test_what_takes_too_long_is_not_padded() -> None:
    spec, session = open_model(lengths.text())
    ticks = itertools.count()
    verdict = probe_padding(spec, session, budget=5.0, clock=lambda: float(next(ticks)))
    assert verdict == PaddingVerdict(reason="padding could not be checked in the time allowed")


def test_a_slow_model_is_tried_on_shorter_lengths() -> None:
    """A run seems to take a hundredth of the budget: the longest rows would be too much."""
    spec, session = open_model(models.sequence_model())
    seen: list[int] = []

    class Watched:
        def run(self, outputs: Any, feeds: Any, options: Any = None) -> Any:
            seen.append(feeds["x"].shape[1])
            return session.run(outputs, feeds, options)

        def run_with_ort_values(self, outputs: Any, feeds: Any, options: Any = None) -> Any:
            raise NotImplementedError

    ticks = itertools.count()
    verdict = probe_padding(spec, Watched(), clock=lambda: 0.005 * next(ticks))
    assert verdict.padding is not None
    assert max(seen) == 8 + 64


@pytest.mark.parametrize("operator", ["Sub", "Div"])
def test_a_model_that_says_the_same_of_everything_cannot_be_judged(operator: str) -> None:
    """y is zero everywhere, or is no number anywhere: 0 / 0."""
    nodes = [
        helper.make_node("Sub", ["x", "x"], ["zero"]),
        helper.make_node(operator, ["zero", "zero"], ["y"]),
    ]
    dims = ("b", "n")
    model = graphs.build(nodes, [graphs.tensor("x", dims)], [graphs.tensor("y", dims)])
    assert "say the same of all synthetic inputs" in judge(model).reason


def test_a_small_change_is_a_change() -> None:
    """y = x + a little of the row's mean: batches may differ by as much, padding must not."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1]),
        helper.make_node("Mul", ["mean", "little"], ["trace"]),
        helper.make_node("Add", ["x", "trace"], ["y"]),
    ]
    dims, constants = ("b", "n"), {"little": np.array(2e-3, np.float32)}
    model = graphs.build(nodes, [graphs.tensor("x", dims)], [graphs.tensor("y", dims)], constants)
    reason = judge(model).reason
    changes = [float(found) for found in re.findall(r"changes output 'y' by (\S+)", reason)]
    assert len(changes) == 2
    assert max(changes) < TOLERANCE["FP32"]
