"""The use case: find the model, check the request against its contract, submit it, wait.

Unary calls, streams and HTTP all come through `submit`; `infer` is that and the wait.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from headrace.batcher.callers import Answer
from headrace.batcher.errors import ExecutionFailed
from headrace.batcher.promise import Promise
from headrace.batcher.request import Request
from headrace.server.contract import (
    InputTensor,
    blame_dimensions,
    by_name,
    check_tensor,
    for_session,
    outputs_of,
    rows_of,
    shape_output,
    size_of,
)
from headrace.server.errors import DeadlineExceeded, InvalidInput
from headrace.server.exchange import InferenceRequest, InferenceResult, Prepared, SequencePlace
from headrace.server.executors.payload import Key, Payload
from headrace.server.models.registry import Registry
from headrace.server.models.served import ServedModel
from headrace.server.models.spec import TensorSpec
from headrace.server.quality.answers import Name

_LOWEST_PRIORITY: Final = 100


@dataclass(slots=True, init=False)
class Submitted:
    """A request that waits for its answer. Cancelling the future withdraws it."""

    model: ServedModel
    request: InferenceRequest
    work: Request
    future: Promise[Answer]
    known: Prepared | None

    def __init__(
        self,
        model: ServedModel,
        request: InferenceRequest,
        work: Request,
        future: Promise[Answer],
        known: Prepared | None = None,
    ) -> None:
        self.model = model
        self.request = request
        self.work = work
        self.future = future
        self.known = known

    def outcome(self) -> InferenceResult:
        """What the future, which has ended, says to the caller. Raises the errors of `infer`."""
        try:
            answer = self.future.result()
        except ExecutionFailed as error:
            blame_dimensions(self.model, self.request.inputs, error)
            raise
        return self.result(answer)

    def result(self, answer: Answer) -> InferenceResult:
        """What `answer`, which the future ended with, says to the caller."""
        result = self._result(answer)
        quality = self.model.quality
        if quality is not None:
            request = self.request
            name = Name(request.identity, request.id)
            quality.answered(name, request.inputs, result.outputs)
        return result

    def _result(self, answer: Answer) -> InferenceResult:
        model, key, known = self.model, self.work.key, self.known
        padded_to = 0 if model.lengths is None else model.lengths.answered(self.work, answer.batch)
        if known is not None:
            outputs = [(spec, answer.result[place]) for place, spec in enumerate(known.outputs)]
            return InferenceResult(model, outputs, answer, (), padded_to, known.notes)
        assert isinstance(key, Key)
        specs = [model.outputs[name] for name in self.request.outputs or model.default_outputs]
        arrays = dict(zip(key.outputs, answer.result, strict=True))
        outputs = [(spec, shape_output(spec, arrays[spec.name])) for spec in specs]
        states = [arrays[state.output] for state in model.spec.states]
        return InferenceResult(model, outputs, answer, states, padded_to)


async def infer(registry: Registry, request: InferenceRequest) -> InferenceResult:
    """Answers `request`. Cancelling this withdraws it from its queue.

    Raises InvalidInput, ModelNotFound, ModelUnavailable, DeadlineExceeded, and the batcher's
    Overloaded, Expired, Draining and ExecutionFailed.
    """
    submitted = submit(registry, request)
    with suppress(ExecutionFailed):  # told by the outcome
        await submitted.future
    return submitted.outcome()


def submit(registry: Registry, request: InferenceRequest) -> Submitted:
    """`infer` without the wait: the same errors, some raised here, some by the future."""
    model = registry.get(request.model, request.version)
    # Nothing awaits between finding the model and submitting to it: a reload cannot come between.
    known = _known(model, request)
    if known is None:
        work = _prepare(model, request)
        return Submitted(model, request, work, model.runner.submit(work))
    work = _prepare_known(model, request, known)
    return Submitted(model, request, work, model.runner.submit(work), known)


def check(model: ServedModel, request: InferenceRequest) -> None:
    """Raises InvalidInput where `submit` would."""
    _prepare(model, request)


def _known(model: ServedModel, request: InferenceRequest) -> Prepared | None:
    """What was found of the requests of this kind; None where this may be the first."""
    known = request.kind.prepared if request.kind is not None else None
    return known if known is not None and known.spec is model.spec else None


def _prepare_known(model: ServedModel, request: InferenceRequest, known: Prepared) -> Request:
    """`_prepare` for a request whose like has been here."""
    deadline = _deadline(model, request)
    key, length = known.key, 0
    if model.lengths is not None and not known.solo:
        key, length = model.lengths.bucketed(key)
    return Request(
        key=key,
        payload=Payload([tensor.array for tensor in request.inputs], length),
        arrival=request.arrival,
        rows=known.rows,
        nbytes=known.nbytes,
        deadline=deadline,
        priority=known.priority,
        solo=known.solo,
        caller=request.caller,
    )


def _remember(model: ServedModel, request: InferenceRequest, work: Request, key: Key) -> None:
    """Notes what `_prepare` found, where it depends on nothing but the request's kind.

    What the server adds itself does not, nor do the size of text, a reshape, or another order of
    the inputs than the model's.
    """
    spec, kind = model.spec, request.kind
    if kind is None or spec.states or spec.controls:
        return
    order = [name for name, _, _ in key.inputs]
    outputs = [model.outputs[name] for name in key.outputs]
    tensors = [*(model.inputs[name] for name in order), *outputs]
    plain = all(tensor.datatype != "BYTES" and tensor.model_shape is None for tensor in tensors)
    if plain and order == [tensor.name for tensor in request.inputs]:
        rows, nbytes, priority = work.rows, work.nbytes, work.priority
        kind.prepared = Prepared(spec, key, outputs, rows, nbytes, priority, work.solo)


def _prepare(model: ServedModel, request: InferenceRequest) -> Request:
    deadline = _deadline(model, request)
    given = by_name(model, request.inputs)
    outputs = outputs_of(model, request.outputs)
    inputs = [(spec, given[spec.name]) for spec in model.spec.inputs if spec.name in given]
    for spec, tensor in inputs:
        check_tensor(model, spec, tensor)
    rows = rows_of(model, inputs)
    inputs += _states(model, request, given, rows)
    inputs += _controls(model, request, given, rows)
    arrays = [for_session(model, spec, tensor) for spec, tensor in inputs]
    # A tensor that replaces a constant of the graph has no rows to be told apart by, and a request
    # of no rows none to be found again.
    solo = request.solo or not model.spec.batched or rows == 0
    solo = solo or any(spec.optional for spec, _ in inputs)
    own = model.spec.key([spec for spec, _ in inputs], arrays, outputs)
    own = replace(own, empty=True) if rows == 0 else model.same(own)
    key, length = own, 0
    if model.lengths is not None and not solo:
        key, length = model.lengths.bucketed(own)
    work = Request(
        key=key,
        payload=Payload(arrays, length),
        arrival=request.arrival,
        rows=max(1, rows),
        nbytes=sum(size_of(tensor.array) for _, tensor in inputs),
        deadline=deadline,
        priority=_priority(model, request.priority),
        solo=solo,
        caller=request.caller,
    )
    _remember(model, request, work, own)
    return work


def _states(
    model: ServedModel, request: InferenceRequest, given: Mapping[str, InputTensor], rows: int
) -> list[tuple[TensorSpec, InputTensor]]:
    """The state inputs that the caller has not given."""
    found = []
    for number, state in enumerate(model.spec.states):
        if state.input in given:
            continue
        array = request.states[number] if request.states else state.zeros(rows)
        if model.spec.batched and array.shape[state.axis] != rows:
            raise InvalidInput(
                f"model '{model.spec.name}': the sequence has {array.shape[state.axis]} rows, "
                f"got {rows}"
            )
        found.append((model.inputs[state.input], InputTensor(state.input, state.datatype, array)))
    return found


def _controls(
    model: ServedModel, request: InferenceRequest, given: Mapping[str, InputTensor], rows: int
) -> list[tuple[TensorSpec, InputTensor]]:
    """The control inputs. A request without a sequence is one of its own."""
    place = request.sequence or SequencePlace(0, start=True, end=True)
    found = []
    for control in model.spec.controls:
        name = control.declared.input
        if name not in given:
            array = control.array(rows, place.id, start=place.start, end=place.end)
            found.append((model.inputs[name], InputTensor(name, control.datatype, array)))
    return found


def _priority(model: ServedModel, asked: int) -> int:
    """The level asked for, or the model's default; below the lowest level is the lowest."""
    options = model.options
    return min(asked or options.default_priority or 1, options.priority_levels or _LOWEST_PRIORITY)


def _deadline(model: ServedModel, request: InferenceRequest) -> float:
    """The transport's deadline, or the queue's timeout if that is sooner.

    A model's own timeout holds unless it lets callers bring a shorter one; its latency objective
    stands in where there is neither. Raises DeadlineExceeded when it has passed already.
    """
    if request.remaining <= 0:
        wait = model.runner.come_again(request.caller)
        raise DeadlineExceeded("the deadline had passed when the request arrived", wait)
    options, timeout = model.options, request.timeout
    if options.timeout is not None:
        shorter = timeout is not None and options.override_timeout
        timeout = min(timeout or math.inf, options.timeout) if shorter else options.timeout
    span = min(request.remaining, math.inf if timeout is None else timeout)
    if span == math.inf and options.latency_objective is not None:
        span = options.latency_objective
    return request.arrival + span
