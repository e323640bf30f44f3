"""How a model is laid out, when nothing or something is said about it."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from onnx import helper

from headrace.batcher.fixed import Fixed
from headrace.batcher.learned import Learned
from headrace.server.errors import LoadFailed
from headrace.server.models.options import ModelOptions, TensorDeclaration
from headrace.server.models.served import make_policy
from server import graphs
from server.conftest import Load


def test_batches_are_learned_unless_the_configuration_insists() -> None:
    assert isinstance(make_policy(ModelOptions()), Learned)
    assert isinstance(make_policy(ModelOptions(preferred_batch_sizes=(4,))), Fixed)
    assert isinstance(make_policy(ModelOptions(max_delay=0.0)), Fixed)


async def test_a_model_that_mixes_rows_is_served_unbatched_and_says_why(load: Load) -> None:
    spec = (await load(graphs.centred())).spec
    assert (spec.batched, spec.max_batch_size) == (False, 1)
    assert spec.unbatched_because.startswith("output 'y' of a row depends on the rows beside it")


async def test_a_fixed_batch_of_independent_rows_is_served_batched(load: Load) -> None:
    model = await load(graphs.plus(1.0, (4, 3)))
    assert (model.spec.batched, model.spec.max_batch_size, model.spec.row_limit) == (True, 4, 4)
    assert model.spec.inputs[0].shape == (-1, 3)
    assert model.runner.state.limits.max_batch_rows == 4
    assert model.costs is not None
    assert model.costs.sizes == [1, 4]


async def test_a_fixed_batch_that_mixes_rows_is_served_as_it_is(load: Load) -> None:
    node = helper.make_node("CumSum", ["x", "axis"], ["y"])
    dims = (4, 3)
    inputs, outputs = [graphs.tensor("x", dims)], [graphs.tensor("y", dims)]
    model = graphs.build([node], inputs, outputs, {"axis": np.array(0, np.int64)})
    spec = (await load(model)).spec
    assert (spec.batched, spec.max_batch_size, spec.inputs[0].shape) == (False, 1, (4, 3))
    assert spec.unbatched_because.startswith(
        "the first dimension of input 'x' is always 4, and output 'y' of a row depends on"
    )


async def test_a_declared_fixed_batch_is_left_alone(load: Load) -> None:
    declared = TensorDeclaration("x", "FP32", (4, 3))
    spec = (await load(graphs.plus(1.0, (4, 3)), max_batch_size=0, inputs=(declared,))).spec
    assert (spec.batched, spec.inputs[0].shape) == (False, (4, 3))
    assert spec.unbatched_because == "the configuration says max_batch_size: 0"


async def test_padding_is_found_and_can_be_turned_off(load: Load) -> None:
    model = await load(graphs.identity(("batch", "n")))
    assert model.lengths is not None
    assert model.padding.padding is not None
    model = await load(graphs.identity(("batch", "n")), padding=False)
    assert model.lengths is None
    assert model.padding.reason == 'the configuration says padding = "off"'


async def test_a_model_of_one_length_keeps_none(load: Load) -> None:
    model = await load(graphs.identity(("batch", 3)))
    assert (model.lengths, model.padding.reason) == (None, "")


async def test_the_bounds_of_the_queue(load: Load) -> None:
    limits = (await load(graphs.plus(1.0), max_batch_size=3, max_queued_requests=5)).runner.state
    assert (limits.limits.max_batch_rows, limits.limits.max_queued_requests) == (3, 5)


@pytest.mark.parametrize(("threads", "shared"), [(1, True), (2, False)])
async def test_executors_share_a_session_that_has_no_threads_of_its_own(
    load: Load, threads: int, shared: bool
) -> None:
    model = await load(graphs.plus(1.0), instances=3, intra_op_threads=threads)
    sessions = [executor._session for executor in model._executors]
    assert (sessions[0] is sessions[1]) is shared
    kind = "cpu" if shared else "cpux2-"
    names = [executor.name for executor in model._executors]
    assert names == [f"m/1/{kind}{number}" for number in range(3)]


@pytest.mark.parametrize("place", [".", "1"])
async def test_labels_lie_beside_the_model_or_its_versions(
    load: Load, tmp_path: pathlib.Path, place: str
) -> None:
    folder = tmp_path / "loaded" / "m" / place
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labels.txt").write_text("cat\ndog\n")
    model = await load(graphs.plus(1.0), outputs=(TensorDeclaration("y", labels="labels.txt"),))
    assert model.labels == {"y": ["cat", "dog"]}


async def test_labels_that_are_not_there(load: Load) -> None:
    with pytest.raises(LoadFailed, match=r"output 'y': no label file labels\.txt"):
        await load(graphs.plus(1.0), outputs=(TensorDeclaration("y", labels="labels.txt"),))
