"""Limits of one request, of one caller, and of all together."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.batcher.errors import Overloaded
from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.server.errors import InvalidInput
from headrace.server.rpc.limits import Charge, InFlight, Limits, check_head, check_shape

LIMITS = Limits(
    elements=100,
    dimensions=3,
    parameters=2,
    tensors=2,
    bytes_in_flight=10,
    caller_calls=2,
    caller_streams=1,
)


def with_parameters(message: Any, count: int) -> Any:
    for number in range(count):
        message.parameters[f"{number}"].bool_param = True
    return message


def refused(message: pb.ModelInferRequest) -> str:
    with pytest.raises(InvalidInput) as caught:
        check_head(message, LIMITS)
    return str(caught.value)


def test_a_head_within_the_limits() -> None:
    message = with_parameters(pb.ModelInferRequest(), 2)
    for name in "ab":
        with_parameters(message.inputs.add(name=name, shape=[1, 2, 3]), 2)
        with_parameters(message.outputs.add(name=name), 2)
    check_head(message, LIMITS)


def test_what_is_too_many_is_named_with_its_limit() -> None:
    message = with_parameters(pb.ModelInferRequest(), 3)
    assert refused(message) == "parameters: expected at most 2 parameters, got 3"
    message = pb.ModelInferRequest()
    with_parameters(message.inputs.add(name="x"), 3)
    assert refused(message) == "input 'x': expected at most 2 parameters, got 3"
    message = pb.ModelInferRequest()
    with_parameters(message.outputs.add(name="y"), 3)
    assert refused(message) == "output 'y': expected at most 2 parameters, got 3"
    message = pb.ModelInferRequest()
    message.inputs.add(name="x", shape=[1] * 4)
    assert refused(message) == "input 'x': expected at most 3 dimensions, got 4"
    message = pb.ModelInferRequest(inputs=[pb.ModelInferRequest.InferInputTensor()] * 3)
    assert refused(message) == "inputs: expected at most 2 tensors, got 3"
    output = pb.ModelInferRequest.InferRequestedOutputTensor()
    message = pb.ModelInferRequest(outputs=[output] * 3)
    assert refused(message) == "outputs: expected at most 2 tensors, got 3"


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 12), max_size=5))
def test_shapes_within_the_limits_are_those_that_fit(shape: list[int]) -> None:
    fits = all(dim >= 0 for dim in shape) and math.prod(dim or 1 for dim in shape) <= 100
    if fits:
        check_shape("input 'x'", shape, LIMITS)
    else:
        with pytest.raises(InvalidInput, match=r"^input 'x': "):
            check_shape("input 'x'", shape, LIMITS)


def test_calls_of_one_caller() -> None:
    in_flight = InFlight(LIMITS)
    in_flight.take("a", 1)
    one = in_flight.take("a", 1)
    with pytest.raises(Overloaded, match="too many calls: 'a' has 2 in flight"):
        in_flight.take("a", 1)
    in_flight.take("b", 1)
    one.release()
    in_flight.take("a", 1)


def test_bytes_of_all() -> None:
    in_flight = InFlight(LIMITS)
    first = in_flight.take("a", 6)
    with pytest.raises(Overloaded, match="6 bytes are in flight and this request takes 5"):
        in_flight.take("b", 5)
    second = in_flight.take("b", 4)
    first.release()
    second.release()
    in_flight.take("c", 1000)  # alone, whatever it takes: messages have a limit of their own
    with pytest.raises(Overloaded):
        in_flight.take("a", 1)


def test_answers_may_take_as_much_again() -> None:
    in_flight = InFlight(LIMITS)
    first, second = in_flight.take("a", 5), in_flight.take("b", 5)
    first.answer(10)
    with pytest.raises(MemoryError, match=r"20 bytes are in flight.* this one takes 1, "):
        second.answer(1)
    with pytest.raises(Overloaded):  # as long as nobody reads it, nothing new is taken on
        in_flight.take("c", 1)
    first.release()
    first.release()
    assert in_flight.nbytes == 5
    second.answer(1000)  # alone, whatever it takes
    second.release()
    second.answer(1)  # let go already: nobody is waiting for it
    assert in_flight.nbytes == 0


def test_streams_of_one_caller() -> None:
    in_flight = InFlight(LIMITS)
    with (
        in_flight.stream("a"),
        in_flight.stream("b"),
        pytest.raises(Overloaded, match="'a' has 1 open"),
        in_flight.stream("a"),
    ):
        pass
    with in_flight.stream("a"):
        pass


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 12), st.integers(0, 30)), max_size=30
    ),
    st.data(),
)
def test_what_is_held_is_what_was_taken_and_not_released(
    wanted: list[tuple[str, int, int]], data: Any
) -> None:
    """And never more than twice the limit, but for a request or an answer that is alone."""
    in_flight, held = InFlight(LIMITS), list[tuple[str, Charge]]()
    alone = 0
    for caller, nbytes, answer in wanted:
        before = in_flight.nbytes
        with contextlib.suppress(Overloaded):
            held.append((caller, in_flight.take(caller, nbytes)))
            alone = max(alone, 0 if before else nbytes)
        if held and data.draw(st.booleans()):
            one = data.draw(st.sampled_from(held))[1]
            others = in_flight.nbytes - one.nbytes
            with contextlib.suppress(MemoryError):
                one.answer(answer)
                alone = max(alone, 0 if others else one.nbytes)
        if held and data.draw(st.booleans()):
            held.pop()[1].release()
        assert in_flight.nbytes == sum(one.nbytes for _, one in held)
        assert in_flight.nbytes <= max(2 * LIMITS.bytes_in_flight, alone)
        assert all(sum(c == who for c, _ in held) <= 2 for who in "abc")
    for _, one in held:
        one.release()
    assert in_flight.nbytes == 0
    assert not in_flight._calls
