"""Batches on a real session: gathered, run, handed out, and told to stop."""

from __future__ import annotations

import asyncio
import math
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper

from headrace.batcher.executor import Completion
from headrace.batcher.request import Batch, Reason, Request
from headrace.inference.tensors import DATATYPES, Array, decode_raw
from headrace.server.executors.onnx import BRIEF, OnnxExecutor, Seat
from headrace.server.executors.padding import LengthRule, Mode, Padding
from headrace.server.executors.payload import Key, Payload
from headrace.server.executors.running import run_session
from server import graphs
from support import lengths

Start = Callable[..., OnnxExecutor]


def session_of(model: Any) -> ort.InferenceSession:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 4
    return ort.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts an executor on a model."""
    started = []

    def start(model: Any, padding: Padding | None = None, *, steady: bool = False) -> OnnxExecutor:
        session = session_of(model)
        started.append(OnnxExecutor(Seat("e", "cpu"), session, padding, steady=steady))
        return started[-1]

    yield start
    for executor in started:
        await asyncio.to_thread(executor.close)


def key_of(array: Array, datatype: str = "FP32", outputs: tuple[str, ...] = ("y",)) -> Key:
    return Key((("x", datatype, array.shape[1:]),), outputs, datatype == "BF16")


def batch_of(key: Key, *members: list[Array]) -> Batch:
    requests = [Request(key, Payload(arrays), 0.0, len(arrays[0])) for arrays in members]
    return Batch(key, requests, "e", Reason.FULL, 0.0)


async def run(executor: OnnxExecutor, batch: Batch) -> Completion:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Completion] = loop.create_future()

    def done(batch: Batch, completion: Completion, /, *, goes_on: bool = False) -> None:
        loop.call_soon_threadsafe(ended.set_result, completion)

    executor.start(batch, done)
    return await ended


def rows(count: int, value: float, width: int = 3) -> list[Array]:
    return [np.full((count, width), value, np.float32)]


def values(completion: Completion) -> list[Any]:
    assert completion.error is None, completion.error
    return [[array.tolist() for array in result] for result in completion.results]


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


async def places(
    executor: OnnxExecutor, monkeypatch: pytest.MonkeyPatch, *sizes: tuple[int, float]
) -> list[bool]:
    """Whether batches of so many rows, expected to take so many seconds, ran on this thread."""
    seen: list[bool] = []

    def spy(*arguments: Any) -> list[Array]:
        seen.append(threading.current_thread() is threading.main_thread())
        return run_session(*arguments)

    monkeypatch.setattr("headrace.server.executors.onnx.run_session", spy)
    for size, expected in sizes:
        batch = batch_of(key_of(rows(1, 0)[0]), rows(size, size))
        batch.expected = expected
        assert values(await run(executor, batch)) == [[[[size + 1.0] * 3] * size]]
    return seen


async def test_brief_batches_of_steady_models_run_on_the_event_loop(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once as large a batch has run on the executor's own thread."""
    executor = start(graphs.plus(1.0), steady=True)
    sizes = ((2, BRIEF / 2), (2, BRIEF / 2), (1, BRIEF / 2), (3, BRIEF / 2), (3, BRIEF / 2))
    assert await places(executor, monkeypatch, *sizes) == [False, True, True, False, True]


@pytest.mark.parametrize(("steady", "expected"), [(False, 0.0), (True, BRIEF), (True, math.nan)])
async def test_others_run_on_a_thread(
    start: Start, monkeypatch: pytest.MonkeyPatch, steady: bool, expected: float
) -> None:
    executor = start(graphs.plus(1.0), steady=steady)
    sizes = ((2, expected), (2, expected), (1, expected))
    assert await places(executor, monkeypatch, *sizes) == [False] * 3


async def test_kinds_that_ran_long_ago_run_on_a_thread_again(start: Start) -> None:
    """What is remembered of kinds is bounded."""
    executor = start(graphs.identity(("batch", "n")), steady=True)
    for width in (*range(1, 60), 1):
        batch = batch_of(key_of(rows(1, 0, width)[0]), rows(1, 1, width))
        batch.expected = BRIEF / 2
        assert not executor._is_brief(batch)
    assert executor._is_brief(batch)


async def test_a_brief_batch_is_told_of_at_once(start: Start) -> None:
    executor = start(graphs.plus(1.0), steady=True)
    batch = batch_of(key_of(rows(1, 0)[0]), rows(1, 1))
    await run(executor, batch)
    batch.expected = BRIEF / 2
    told: list[Completion] = []
    executor.start(batch, lambda batch, completion, /, **_: told.append(completion))
    assert values(told[0]) == [[[[2.0] * 3]]]


async def test_a_brief_batch_that_fails_says_so(start: Start) -> None:
    executor = start(graphs.plus(1.0), steady=True)
    batch = batch_of(key_of(rows(1, 0)[0]), rows(1, 1))
    await run(executor, batch)
    batch.expected = BRIEF / 2
    batch.requests[0].payload = Payload([np.zeros((1, 7), np.float32)])
    failed = await run(executor, batch)
    assert "invalid dimensions" in str(failed.error)


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


async def test_an_abandoned_batch_ends_and_the_next_one_runs(start: Start) -> None:
    executor = start(graphs.slow())
    key = key_of(rows(1, 0)[0])
    batch = batch_of(key, rows(1, 1))
    for _ in range(2):
        running = asyncio.ensure_future(run(executor, batch))
        await asyncio.sleep(0)
        executor.abandon(batch)
        completion = await running
        assert "terminate" in str(completion.error)


async def test_abandoning_another_batch_does_not_stop_the_one_that_runs(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()

    def held(*arguments: Any) -> list[Array]:
        go.wait()
        return run_session(*arguments)

    monkeypatch.setattr("headrace.server.executors.onnx.run_session", held)
    executor = start(graphs.plus(1.0))
    key = key_of(rows(1, 0)[0])
    running = asyncio.ensure_future(run(executor, batch_of(key, rows(1, 1))))
    await asyncio.sleep(0)
    executor.abandon(batch_of(key, rows(1, 1)))
    go.set()
    assert (await running).error is None


async def test_what_is_abandoned_too_late_does_not_stop_the_next(start: Start) -> None:
    executor = start(graphs.plus(1.0))
    key = key_of(rows(1, 0)[0])
    batch = batch_of(key, rows(1, 1))
    executor.abandon(batch)
    await run(executor, batch)
    executor.abandon(batch)
    assert (await run(executor, batch_of(key, rows(1, 1)))).error is None


def test_a_key_reads_as_signature() -> None:
    key = Key((("ids", "INT64", (128,)), ("scale", "FP32", ())), ("logits", "pooled"))
    assert str(key) == "ids INT64[128], scale FP32[] -> logits, pooled"


async def test_what_it_is_told_to_go_on_with_runs_on_the_same_thread(start: Start) -> None:
    executor, key = start(graphs.plus(1.0)), key_of(rows(1, 0)[0])
    batches = [batch_of(key, rows(1, value)) for value in (1.0, 2.0, 3.0)]
    told: list[tuple[int, list[Any]]] = []
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def done(batch: Batch, completion: Completion, /, *, goes_on: bool = False) -> Batch | None:
        assert goes_on
        assert batch is batches[len(told)]
        told.append((threading.get_ident(), values(completion)))
        if len(told) < len(batches):
            return batches[len(told)]
        loop.call_soon_threadsafe(ended.set)
        return None

    executor.start(batches[0], done)
    await ended.wait()
    assert len({thread for thread, _ in told}) == 1
    assert [found for _, found in told] == [[[[[value] * 3]]] for value in (2.0, 3.0, 4.0)]
    assert values(await run(executor, batch_of(key, rows(1, 9.0)))) == [[[[10.0] * 3]]]


async def test_what_has_run_is_let_go_of(start: Start) -> None:
    executor, key = start(graphs.plus(1.0)), key_of(rows(1, 0)[0])
    loop = asyncio.get_running_loop()
    ended, gone = asyncio.Event(), list[weakref.ref[Array]]()
    left = 4
    alive: list[int] = []

    def batch() -> Batch:
        arrays = rows(1, 1)
        gone.append(weakref.ref(arrays[0]))
        return batch_of(key, arrays)

    def done(given: Batch, completion: Completion, /, *, goes_on: bool = False) -> Batch | None:
        nonlocal left
        alive.append(sum(ref() is not None for ref in gone))
        left -= 1
        if left:
            return batch()
        loop.call_soon_threadsafe(ended.set)
        return None

    executor.start(batch(), done)
    await ended.wait()
    await asyncio.to_thread(executor.close)
    assert alive == [1, 1, 1, 1]
    assert [ref() for ref in gone] == [None] * 4


async def test_a_batch_that_is_abandoned_before_its_thread_begins_it_ends(start: Start) -> None:
    executor, key = start(graphs.plus(1.0)), key_of(rows(1, 0)[0])
    first, second = batch_of(key, rows(1, 1)), batch_of(key, rows(1, 1))
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Completion] = loop.create_future()

    def done(batch: Batch, completion: Completion, /, *, goes_on: bool = False) -> Batch | None:
        if batch is first:
            executor.abandon(second)
            return second
        loop.call_soon_threadsafe(ended.set_result, completion)
        return None

    executor.start(first, done)
    assert "terminate" in str((await ended).error)


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


HALVED = Padding(Mode.ZEROS, {"x": 2}, {"y": [LengthRule(2, 2, 1)]})


def signal(length: int, count: int = 1) -> Array:
    rng = np.random.default_rng(length)
    return rng.standard_normal((count, 2, length)).astype(np.float32)


def unequal(padded: int, *signals: Array) -> Batch:
    """Signals in one batch, those that are shorter than `padded` to be padded to it."""
    key = Key((("x", "FP32", (2, padded)),), ("y",))
    requests = [
        Request(key, Payload([x], x.shape[2] if x.shape[2] < padded else 0), 0.0, len(x))
        for x in signals
    ]
    return Batch(key, requests, "e", Reason.FULL, 0.0)


@pytest.mark.parametrize("sizes", [(3,), (9,), (3, 9), (9, 3, 4), (1, 2, 8)])
async def test_unequal_rows_are_answered_as_if_alone(start: Start, sizes: tuple[int, ...]) -> None:
    model = lengths.convolutions(1, stride=2)
    executor, session = start(model, HALVED), session_of(model)
    for count in (2, 1):  # the buffer is used again, with what was left in it
        signals = [signal(size, count) for size in sizes]
        completion = await run(executor, unequal(9, *signals))
        assert completion.error is None
        for x, (y,) in zip(signals, completion.results, strict=True):
            (expected,) = session.run(None, {"x": x})
            assert y.shape == expected.shape
            np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


async def lengths_run(
    executor: OnnxExecutor, monkeypatch: pytest.MonkeyPatch, batch: Batch
) -> tuple[Completion, list[int]]:
    """The completion, and the lengths with which the session was run for it."""
    seen: list[int] = []

    def spy(session: Any, key: Key, feeds: list[Array], options: Any = None) -> list[Array]:
        seen.append(feeds[0].shape[2])
        return run_session(session, key, feeds, options)

    monkeypatch.setattr("headrace.server.executors.onnx.run_session", spy)
    return await run(executor, batch), seen


async def test_a_solo_request_is_never_padded(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = unequal(9, signal(4))
    batch.requests[0].solo = True
    executor = start(lengths.convolutions(1, stride=2), HALVED)
    completion, seen = await lengths_run(executor, monkeypatch, batch)
    assert (completion.error, seen) == (None, [4])
    assert completion.results[0][0].shape == (1, 2, 2)


async def test_a_lone_request_that_fails_with_padding_runs_without(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule that is wrong stands for whatever may go wrong at a length that nobody asked for."""
    wrong = Padding(Mode.ZEROS, {"x": 2}, {"y": [LengthRule(2, 3, 0)]})
    batch = unequal(9, signal(4))
    executor = start(lengths.convolutions(1, stride=2), wrong)
    completion, seen = await lengths_run(executor, monkeypatch, batch)
    assert (completion.error, seen) == (None, [9, 4])
    assert completion.results[0][0].shape == (1, 2, 2)
    assert batch.requests[0].solo


async def test_several_that_fail_with_padding_are_for_the_scheduler_to_part(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Padding(Mode.ZEROS, {"x": 2}, {"y": [LengthRule(2, 3, 0)]})
    executor = start(lengths.convolutions(1, stride=2), wrong)
    completion, seen = await lengths_run(executor, monkeypatch, unequal(9, signal(4), signal(9)))
    assert seen == [9]
    assert "expected 3 along dimension 2" in str(completion.error)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux alone binds threads")
async def test_its_thread_is_bound_where_its_seat_says() -> None:
    class Session:
        """Tells where it ran."""

        def run(self, outputs: list[str], feeds: Any, options: Any = None) -> list[Array]:
            where = os.sched_getaffinity(threading.get_native_id())
            return [np.array([sorted(where)], np.float32)]

    cpu = max(os.sched_getaffinity(0))
    executor = OnnxExecutor(Seat("e", "cpux2", 1, cpu), cast("Any", Session()))
    given = rows(1, 1.0)
    assert values(await run(executor, batch_of(key_of(given[0]), given))) == [[[[float(cpu)]]]]
    await asyncio.to_thread(executor.close)
