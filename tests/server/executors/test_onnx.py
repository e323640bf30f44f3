"""Batches on a real session: gathered, run, handed out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from headrace.inference.tensors import DATATYPES, Array, decode_raw
from headrace.server.executors.onnx import OnnxExecutor
from headrace.server.executors.payload import Key
from headrace.server.executors.running import run_session
from server import graphs
from server.executors.runs import Start, batch_of, key_of, rows, run, session_of, values


async def test_each_member_is_given_its_rows(start: Start) -> None:
    members = [rows(2, 1.0), rows(1, 5.0), rows(3, 7.0)]
    batch = batch_of(key_of(members[0][0]), *members)
    completion = await run(start(graphs.plus(1.0)), batch)
    assert values(completion) == [[[[2.0] * 3] * 2], [[[6.0] * 3]], [[[8.0] * 3] * 3]]
    assert min(completion.input_seconds, completion.infer_seconds, completion.output_seconds) >= 0


async def test_several_inputs_and_the_outputs_in_the_order_of_the_key(start: Start) -> None:
    key = Key((("a", "FP32", (2,)), ("b", "FP32", (2,))), ("difference", "total"))
    batch = batch_of(key, [*rows(1, 5, 2), *rows(1, 3, 2)], [*rows(1, 50, 2), *rows(1, 30, 2)])
    assert values(await run(start(graphs.two_by_two()), batch)) == [
        [[[2, 2]], [[8, 8]]],
        [[[20, 20]], [[80, 80]]],
    ]


async def test_members_share_the_memory_of_one_output(start: Start) -> None:
    batch = batch_of(key_of(rows(1, 0)[0]), rows(1, 1), rows(1, 2))
    completion = await run(start(graphs.plus(1.0)), batch)
    first, second = (result[0] for result in completion.results)
    assert first.base is not None
    assert first.base is second.base


@pytest.mark.parametrize("datatype", graphs.ELEMENT)
async def test_every_datatype_alone_and_together(start: Start, datatype: str) -> None:
    if datatype == "BYTES":
        members = [[np.array(["ß", ""], object)], [np.array(["a\0"], object)]]
    else:
        dtype = DATATYPES[datatype].numpy
        members = [[np.array([1, 0], dtype)], [np.array([1], dtype)]]
    executor = start(graphs.identity(("batch",), datatype))
    key = key_of(members[0][0], datatype)
    both = await run(executor, batch_of(key, *members))
    assert values(both) == [[array.tolist() for array in member] for member in members]
    alone = await run(executor, batch_of(key, members[0]))
    assert values(alone) == [[members[0][0].tolist()]]
    assert alone.results[0][0].dtype == members[0][0].dtype


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "INT64", "BF16", "BOOL"])
async def test_a_tensor_may_lie_anywhere_in_a_message(start: Start, datatype: str) -> None:
    """Views into a message are seldom aligned, and never writeable."""
    kind = DATATYPES[datatype]
    message = b"\7" + bytes([1, 0] * (4 * kind.itemsize))
    array = decode_raw(memoryview(message)[1:], kind, (8,))
    assert array.flags.aligned == (kind.itemsize == 1)
    completion = await run(
        start(graphs.identity(("batch",), datatype)), batch_of(key_of(array, datatype), [array])
    )
    assert values(completion) == [[array.tolist()]]


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "BF16", "BOOL", "UINT64"])
@pytest.mark.parametrize("width", [500, 501, 1 << 21])
@pytest.mark.parametrize("apart", [False, True])
async def test_members_of_any_size_share_a_batch(
    start: Start, datatype: str, width: int, apart: bool
) -> None:
    """Small ones, those for which the lock is held, and large ones are gathered differently."""
    dtype = DATATYPES[datatype].numpy
    members = [(np.arange(n * width).reshape(n, width) % 7 > n).astype(dtype) for n in (1, 2, 3)]
    if apart:  # not one after another in memory
        members = [np.asfortranarray(member) for member in members]
    batch = batch_of(key_of(members[0], datatype), *([member] for member in members))
    completion = await run(start(graphs.identity(("batch", width), datatype)), batch)
    assert completion.error is None
    for member, (answer,) in zip(members, completion.results, strict=True):
        assert answer.dtype == dtype
        np.testing.assert_array_equal(answer, member)


@pytest.mark.parametrize("model", [graphs.identity(), graphs.plus(1.0)], ids=["identity", "plus"])
@pytest.mark.parametrize("members", [1, 2])
async def test_a_later_batch_leaves_an_earlier_answer_alone(
    start: Start, model: Any, members: int
) -> None:
    """Inputs are gathered into one buffer again and again; no output may lie in it."""
    executor = start(model)
    key = key_of(rows(1, 0)[0])
    first = await run(executor, batch_of(key, *[rows(2, 1.0)] * members))
    before = values(first)
    second = await run(executor, batch_of(key, *[rows(2, 9.0)] * members))
    assert values(first) == before
    assert values(second) != before


async def test_an_answer_is_not_a_view_of_the_callers_input(start: Start) -> None:
    x = rows(2, 1.0)
    completion = await run(start(graphs.identity()), batch_of(key_of(x[0]), x))
    assert not np.shares_memory(completion.results[0][0], x[0])


async def gathered(executor: OnnxExecutor, monkeypatch: pytest.MonkeyPatch, *sizes: int) -> Any:
    """The arrays that reach the session for batches of two members, `size` rows each."""
    seen: list[Array] = []

    def spy(session: Any, key: Key, feeds: list[Array], options: Any = None) -> list[Array]:
        seen.append(feeds[0])
        return run_session(session, key, feeds, options)

    monkeypatch.setattr("headrace.server.executors.onnx.run_session", spy)
    for size in sizes:
        completion = await run(
            executor, batch_of(key_of(rows(1, 0)[0]), rows(size, size), rows(size, -size))
        )
        assert [result[0][0, 0] for result in completion.results] == [size, -size]
    return seen


async def test_the_buffer_is_kept_until_it_is_too_small(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, small, again, larger, last = await gathered(
        start(graphs.identity()), monkeypatch, 4, 1, 4, 5, 5
    )
    assert [len(array) for array in (large, small, again, larger, last)] == [8, 2, 8, 10, 10]
    assert np.shares_memory(large, small)
    assert np.shares_memory(large, again)
    assert not np.shares_memory(large, larger)
    assert np.shares_memory(larger, last)


async def test_buffers_of_keys_not_seen_for_long_are_let_go(start: Start) -> None:
    executor = start(graphs.identity(("batch", "n")))
    for width in range(1, 100):
        completion = await run(
            executor, batch_of(key_of(rows(1, 0, width)[0]), rows(1, 1, width), rows(1, 2, width))
        )
        assert completion.results[1][0].tolist() == [[2.0] * width]
    assert len(executor._buffers._kept) < 50


async def test_the_models_error_is_the_batchs(start: Start) -> None:
    executor = start(graphs.reshaping([-1, 7]))
    bad = await run(executor, batch_of(key_of(rows(1, 0)[0]), rows(1, 1)))
    assert "Reshape" in str(bad.error)
    assert bad.results == ()
    good = await run(executor, batch_of(key_of(rows(1, 0, 7)[0]), rows(1, 1, 7)))
    assert good.error is None


async def test_an_output_that_does_not_follow_the_batch_cannot_be_shared(start: Start) -> None:
    executor = start(graphs.totals())
    key = key_of(rows(1, 0, 5)[0])
    shared = await run(executor, batch_of(key, rows(1, 1, 5), rows(2, 2, 5)))
    assert isinstance(shared.error, ValueError)
    assert str(shared.error) == "output 'y' has shape [5] for a batch of 3 rows"
    alone = await run(executor, batch_of(key, rows(2, 2, 5)))
    assert values(alone) == [[[4.0] * 5]]


async def test_a_scalar_output_cannot_be_shared(start: Start) -> None:
    node = helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)
    model = graphs.build([node], [graphs.tensor("x", ("b", 3))], [graphs.tensor("y", ())])
    completion = await run(start(model), batch_of(key_of(rows(1, 0)[0]), rows(1, 1), rows(1, 2)))
    assert "shape []" in str(completion.error)


def test_a_key_reads_as_signature() -> None:
    key = Key((("ids", "INT64", (128,)), ("scale", "FP32", ())), ("logits", "pooled"))
    assert str(key) == "ids INT64[128], scale FP32[] -> logits, pooled"


@pytest.mark.parametrize("shape", [(0,), (2, 0), (3, 2)])
def test_bfloat16_travels_as_bits(shape: tuple[int, ...]) -> None:
    bits = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape) + 0x3F80
    dims = ("batch", "n")[: len(shape)]
    (back,) = run_session(session_of(graphs.identity(dims, "BF16")), key_of(bits, "BF16"), [bits])
    assert back.dtype == np.uint16
    assert (back.shape, back.tolist()) == (shape, bits.tolist())


def test_a_model_may_mix_bfloat16_with_other_types() -> None:
    cast = helper.make_node("Cast", ["x"], ["y"], to=graphs.ELEMENT["FP32"])
    inputs = [graphs.tensor("x", ("b",), "BF16")]
    session = session_of(graphs.build([cast], inputs, [graphs.tensor("y", ("b",))]))
    (back,) = run_session(
        session, key_of(np.zeros(2, np.uint16), "BF16"), [np.array([0x3F80, 0x4000], np.uint16)]
    )
    assert back.tolist() == [1.0, 2.0]
