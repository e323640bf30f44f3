"""Which models' runs may be made on the event loop's thread."""

from __future__ import annotations

import logging
import pathlib
from typing import Any

import numpy as np
import onnx.defs
import pytest
from onnx import helper

from headrace.server.executors.onnx import BRIEF
from headrace.server.executors.session import Provider, SessionOptions
from headrace.server.models import served, steady
from headrace.server.models.options import ModelOptions
from headrace.server.models.plan import Layout, Measured, Plan
from headrace.server.models.profile import Profile
from headrace.server.models.served import Host, Opened
from headrace.server.models.steady import STEADY, is_steady
from server import graphs

# Their outputs are as large as the values of an input say, whatever its shape.
SIZED_BY_VALUES = {
    *("BlackmanWindow", "CenterCropPad", "Col2Im", "ConstantOfShape", "Expand", "HammingWindow"),
    *("HannWindow", "ImageDecoder", "MelWeightMatrix", "OneHot", "Pad", "Range", "Resize", "Tile"),
    "Upsample",
}


def layers() -> Any:
    """y = relu(x w + b) over the usual size: of a batch of rows of three."""
    constants = {"w": np.eye(3, dtype=np.float32), "b": np.ones(3, np.float32)}
    product = helper.make_node("MatMul", ["x", "w"], ["p"])
    total = helper.make_node("Add", ["p", "b"], ["t"])
    relu = helper.make_node("Relu", ["t"], ["y"])
    x, y = (graphs.tensor(name, ("batch", 3)) for name in "xy")
    return graphs.build([product, total, relu], [x], [y], constants)


def counted() -> Any:
    """y = x, after as many turns as the caller's number says."""
    inside = [graphs.tensor("turn", (), "INT64"), graphs.tensor("on", (), "BOOL")]
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["again"]), helper.make_node("Neg", ["v"], ["w"])],
        "body",
        [*inside, graphs.tensor("v", ("batch", 3))],
        [graphs.tensor("again", (), "BOOL"), graphs.tensor("w", ("batch", 3))],
    )
    nodes = [
        helper.make_node("ReduceMax", ["n"], ["most"], keepdims=0),
        helper.make_node("Loop", ["most", "", "x"], ["y"], body=body),
    ]
    inputs = [graphs.tensor("x", ("batch", 3)), graphs.tensor("n", ("batch", 1), "INT64")]
    return graphs.build(nodes, inputs, [graphs.tensor("y", ("batch", 3))])


def copied() -> Any:
    """As many copies of x as the caller's number says."""
    nodes = [
        helper.make_node("Cast", ["n"], ["whole"], to=onnx.TensorProto.INT64),
        helper.make_node("Tile", ["x", "whole"], ["y"]),
    ]
    inputs = [graphs.tensor("x", ("batch",)), graphs.tensor("n", (1,))]
    return graphs.build(nodes, inputs, [graphs.tensor("y", ("many",))])


def opened(model: Any, folder: pathlib.Path, **options: Any) -> Opened:
    path = graphs.save(model, folder / "m" / "1" / "model.onnx")
    return served.examine("m", "1", path, ModelOptions(**options), Host(Provider.CPU))


def looked_at(made: Opened) -> set[str]:
    profile, options = made.plan.measured[0].profile, made.plan.main.session
    return steady.operators(made.path, made.spec, options, profile)


def planned(made: Opened, seconds: float, **session: Any) -> Plan:
    """A plan as that of `made`, had its runs taken so long."""
    found = made.plan.measured[0].profile
    profile = Profile(found.key, found.row_bytes, found.recipe, ((1, seconds), (2, 2 * seconds)))
    layout = Layout(SessionOptions(**session), 1)
    return Plan(layout, measured=(Measured(layout, seconds, 1 / seconds, profile),))


def test_the_operators_that_run_are_found(tmp_path: pathlib.Path) -> None:
    """Those that ONNX Runtime has put in the place of the model's own."""
    found = looked_at(opened(layers(), tmp_path))
    assert found & {"FusedGemm", "Gemm", "MatMul", "FusedMatMul"}
    assert found <= STEADY


@pytest.mark.parametrize("model", [graphs.identity(), graphs.plus(1.0), layers()])
def test_layers_are_steady(model: Any, tmp_path: pathlib.Path) -> None:
    made = opened(model, tmp_path)
    assert is_steady(made.path, made.spec, planned(made, BRIEF / 2))


def test_a_fixed_number_of_rows_is_no_hindrance(tmp_path: pathlib.Path) -> None:
    made = opened(graphs.plus(1.0, (4, 3)), tmp_path)
    assert is_steady(made.path, made.spec, planned(made, BRIEF / 2))


@pytest.mark.parametrize("model", [counted(), copied()], ids=["Loop", "Tile"])
def test_what_takes_as_long_as_a_caller_says_is_not(
    model: Any, tmp_path: pathlib.Path, request: pytest.FixtureRequest
) -> None:
    made = opened(model, tmp_path)
    assert request.node.callspec.id in looked_at(made)
    assert not is_steady(made.path, made.spec, planned(made, BRIEF / 2))


def test_only_brief_models_are_looked_at(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = opened(graphs.plus(1.0), tmp_path)
    monkeypatch.setattr(steady, "operators", lambda *_: pytest.fail("looked at"))
    library = (tmp_path / "custom.so",)
    for plan in (
        planned(made, 2 * BRIEF),
        planned(made, BRIEF / 2, intra_op_threads=2),
        planned(made, BRIEF / 2, provider=Provider.CUDA),
        planned(made, BRIEF / 2, operator_libraries=library),
    ):
        assert not is_steady(made.path, made.spec, plan)


def test_what_cannot_be_listed_is_not_steady_and_says_so(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    made = opened(graphs.plus(1.0), tmp_path)
    monkeypatch.setattr("headrace.server.models.steady.open_session", full)
    with caplog.at_level(logging.WARNING):
        assert not is_steady(made.path, made.spec, planned(made, BRIEF / 2))
    assert "operators could not be listed" in caplog.text


def test_no_operator_that_branches_or_is_sized_by_values_is_steady() -> None:
    for schema in onnx.defs.get_all_schemas_with_history():
        types: list[Any] = [attribute.type for attribute in schema.attributes.values()]
        kinds = {each.name for each in types}
        assert schema.name not in STEADY or not kinds & {"GRAPH", "GRAPHS"}, schema.name
    assert not STEADY & SIZED_BY_VALUES
