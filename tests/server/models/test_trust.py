"""Models that point out of their repository are refused, wherever in them they do."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from headrace.server.errors import LoadFailed
from headrace.server.executors.session import Provider
from headrace.server.models.registry import Registry
from headrace.server.models.repository import Catalogue
from headrace.server.models.served import Host
from headrace.server.models.trust import check_external_data, check_links, external_data
from server import graphs


def external(location: str) -> Any:
    """A tensor that lies in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def graph(nodes: Any = (), initializer: Any = ()) -> Any:
    return helper.make_graph(list(nodes), "g", [], [], list(initializer))


def constant(name: str, value: Any) -> Any:
    node = onnx.NodeProto(op_type="Constant")
    node.attribute.add(name=name).CopyFrom(value)
    return node


def in_an_initializer() -> Any:
    return helper.make_model(graph(initializer=[external("there")]))


def in_a_subgraph() -> Any:
    inner = onnx.AttributeProto(name="body", type=onnx.AttributeProto.GRAPH)
    inner.g.CopyFrom(graph(initializer=[external("there")]))
    return helper.make_model(graph([constant("body", inner)]))


def in_an_attribute() -> Any:
    value = onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR)
    value.t.CopyFrom(external("there"))
    return helper.make_model(graph([constant("value", value)]))


def in_attributes_lists() -> Any:
    value = onnx.AttributeProto(name="value", type=onnx.AttributeProto.GRAPHS)
    value.graphs.add().CopyFrom(graph(initializer=[external("there")]))
    value.tensors.add().CopyFrom(external("there"))
    return helper.make_model(graph([constant("value", value)]))


def in_a_sparse_tensor() -> Any:
    model = helper.make_model(graph())
    model.graph.sparse_initializer.add().values.CopyFrom(external("there"))
    return model


def in_a_function() -> Any:
    value = onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR)
    value.t.CopyFrom(external("there"))
    model = helper.make_model(graph())
    model.functions.add(name="f").node.add().CopyFrom(constant("value", value))
    return model


def in_training() -> Any:
    model = helper.make_model(graph())
    model.training_info.add().algorithm.CopyFrom(graph(initializer=[external("there")]))
    return model


@pytest.mark.parametrize(
    "model",
    [
        in_an_initializer,
        in_a_subgraph,
        in_an_attribute,
        in_attributes_lists,
        in_a_sparse_tensor,
        in_a_function,
        in_training,
    ],
)
def test_tensors_are_found_wherever_they_are(tmp_path: pathlib.Path, model: Any) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(model().SerializeToString())
    assert set(external_data(file)) == {"there"}
    check_external_data(file, tmp_path)


@pytest.mark.parametrize(
    "location",
    ["/etc/passwd", "../secret", "a/../../secret", "..\\secret", "out/secret", "a\0b"],
)
def test_a_tensor_outside_is_refused(tmp_path: pathlib.Path, location: str) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "out").symlink_to(tmp_path)
    file = folder / "model.onnx"
    file.write_bytes(helper.make_model(graph(initializer=[external(location)])).SerializeToString())
    with pytest.raises(LoadFailed, match="external_data: expected a file in the model's folder"):
        check_external_data(file, folder)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cut=st.integers(0, 300), wrong=st.binary(max_size=3))
def test_what_is_damaged_is_refused_or_read(tmp_path: pathlib.Path, cut: int, wrong: bytes) -> None:
    whole = helper.make_model(graph(initializer=[external("../x")])).SerializeToString()
    file = tmp_path / "model.onnx"
    file.write_bytes(whole[:cut] + wrong + whole[cut + len(wrong) :])
    try:
        check_external_data(file, tmp_path)
    except LoadFailed:
        return
    # Read without an error: then by protobuf's account too there is nothing that leads out.
    try:
        model = onnx.ModelProto.FromString(file.read_bytes())
    except Exception:  # noqa: BLE001 (ONNX Runtime, which has it next, refuses it as well)
        return
    entries = [e for tensor in model.graph.initializer for e in tensor.external_data]
    assert "../x" not in [e.value for e in entries if e.key == "location"]


def test_a_tag_that_readers_would_cut_is_refused(tmp_path: pathlib.Path) -> None:
    """Of a tag of 33 bits some readers keep 32: to them it would be another field."""
    entry = onnx.StringStringEntryProto(key="location", value="../x").SerializeToString()
    external_data_tag = bytes([13 << 3 | 2 | 0x80, 0x80, 0x80, 0x80, 0x10])
    tensor = external_data_tag + bytes([len(entry)]) + entry
    initializer = bytes([5 << 3 | 2, len(tensor)]) + tensor
    whole = bytes([7 << 3 | 2, len(initializer)]) + initializer
    file = tmp_path / "model.onnx"
    file.write_bytes(whole)
    with pytest.raises(LoadFailed):
        check_external_data(file, tmp_path)


def test_links_within_the_repository(tmp_path: pathlib.Path) -> None:
    """As Kubernetes mounts a volume: each name is a link to a folder beside it."""
    (tmp_path / "..data" / "m" / "1").mkdir(parents=True)
    (tmp_path / "m").symlink_to(pathlib.Path("..data", "m"))
    (tmp_path / "m" / "2").symlink_to("1")
    (tmp_path / "m" / "round").symlink_to(tmp_path)
    check_links(tmp_path / "m", tmp_path)


@pytest.mark.parametrize("place", ["m", "m/1", "m/1/model.onnx", "m/config.pbtxt", "m/labels.txt"])
def test_a_link_out_of_the_repository(tmp_path: pathlib.Path, place: str) -> None:
    root, outside = tmp_path / "models", tmp_path / "outside"
    outside.mkdir()
    link = root / place
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    with pytest.raises(LoadFailed, match=f"^{place}: expected files within the repository"):
        check_links(root / "m", root)


def test_a_link_through_another_model(tmp_path: pathlib.Path) -> None:
    root = tmp_path / "models"
    (root / "a").mkdir(parents=True)
    (root / "b" / "1").mkdir(parents=True)
    (root / "b" / "1" / "labels.txt").symlink_to("/etc/passwd")
    (root / "a" / "1").symlink_to(root / "b" / "1")
    with pytest.raises(LoadFailed, match=r"a/1/labels\.txt"):
        check_links(root / "a", root)


@pytest.mark.parametrize("follow", [False, True])
async def test_a_linked_model_loads_where_that_is_allowed(
    tmp_path: pathlib.Path, follow: bool
) -> None:
    graphs.save(graphs.plus(1.0), tmp_path / "elsewhere" / "1" / "model.onnx")
    root = tmp_path / "models"
    (root / "beside").mkdir(parents=True)
    (root / "m").symlink_to(tmp_path / "elsewhere")
    registry = Registry(Catalogue([root], follow_links=follow), Host(Provider.CPU))
    try:
        if follow:
            await registry.load("m")
            assert registry.get("m")
        else:
            with pytest.raises(LoadFailed, match="m: expected files within the repository"):
                await registry.load("m")
    finally:
        await registry.drain()


async def test_a_model_with_tensors_beside_it_loads_and_one_with_others_does_not(
    tmp_path: pathlib.Path,
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(np.float32(3).tobytes())
    for name, location in (("good", "weights"), ("bad", str(secret))):
        folder = tmp_path / "models" / name / "1"
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(np.float32(2).tobytes())
        node = helper.make_node("Mul", ["x", "w"], ["y"])
        ends = [
            helper.make_tensor_value_info(end, TensorProto.FLOAT, ["n", 1]) for end in ("x", "y")
        ]
        made = helper.make_graph([node], "g", ends[:1], ends[1:], [external(location)])
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
    registry = Registry(Catalogue([tmp_path / "models"]), Host(Provider.CPU))
    try:
        await registry.load("good")
        with pytest.raises(LoadFailed, match="external_data: expected a file"):
            await registry.load("bad")
    finally:
        await registry.drain()


async def test_operators_that_nobody_knows_are_refused(tmp_path: pathlib.Path) -> None:
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, ["n"]) for end in ("x", "y")]
    node = helper.make_node("Evil", ["x"], ["y"], domain="custom")
    initial = [numpy_helper.from_array(np.zeros(1, np.float32), "unused")]
    made = helper.make_graph([node], "g", ends[:1], ends[1:], initial)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("custom", 1)]
    graphs.save(helper.make_model(made, opset_imports=opsets, ir_version=9), tmp_path / "m.onnx")
    registry = Registry(Catalogue([tmp_path / "m.onnx"]), Host(Provider.CPU))
    with pytest.raises(LoadFailed, match="Evil"):
        await registry.load("m")
    await registry.drain()
