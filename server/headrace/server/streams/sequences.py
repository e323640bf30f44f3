"""Sequences of the Open Inference Protocol: state that belongs to an id, over calls of any kind.

Theory of operation. A request of a sequence waits its turn behind those of the same id that came
before, runs with the state that they left, and leaves its own. One that fails leaves the state as
it was, and the sequence goes on. A sequence ends with the request that says so, or once nobody has
continued it for as long as its model allows; the next one of its id must start it anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from headrace.inference.tensors import Array
from headrace.server.errors import InvalidInput
from headrace.server.exchange import InferenceRequest, InferenceResult, Pending, SequencePlace
from headrace.server.inference import infer, submit
from headrace.server.models.registry import Registry
from headrace.server.models.served import ServedModel
from headrace.server.models.states import StateSpec
from headrace.server.streams.budget import StateBudget

# Identity, model, id: an id is unique only among those of one identity.
Name = tuple[str, str, int | str]


@dataclass(eq=False, slots=True)
class _Held:
    """One sequence. states: empty as long as it has not begun. users: requests that run or wait."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    states: Sequence[Array] = ()
    specs: Sequence[StateSpec] = ()
    users: int = 0
    expiry: asyncio.TimerHandle | None = None

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.states)


@dataclass(slots=True)
class _InTurn:
    """A request that is answered by a task: it may wait for others of its sequence."""

    future: asyncio.Task[InferenceResult]

    def outcome(self) -> InferenceResult:
        return self.future.result()


class Sequences:
    """The sequences of all models. `idle`: seconds that one is kept, unless its model says."""

    def __init__(self, registry: Registry, budget: StateBudget, idle: float) -> None:
        self._registry = registry
        self._budget = budget
        self._idle = idle
        self._held: dict[Name, _Held] = {}

    def __len__(self) -> int:
        return len(self._held)

    def submit(self, request: InferenceRequest) -> Pending:
        """`infer` without the wait: the same errors, some raised here, some by the outcome."""
        if request.sequence is None:
            return submit(self._registry, request)
        return _InTurn(asyncio.get_running_loop().create_task(self.infer(request)))

    async def infer(self, request: InferenceRequest) -> InferenceResult:
        """`inference.infer`, with the state of the request's sequence if it names one.

        The parameters are without effect on a model that keeps no state. Raises also InvalidInput
        for a sequence that was not started, StreamRefused when there is no memory for its state.
        """
        place = request.sequence
        if place is None:
            return await infer(self._registry, request)
        model = self._registry.get(request.model, request.version)
        if not model.spec.states:
            return await infer(self._registry, request)
        name = (request.identity, request.model, place.id)
        held = self._held.setdefault(name, _Held())
        if held.expiry is not None:
            held.expiry.cancel()
            held.expiry = None
        held.users += 1
        try:
            async with held.turn:
                return await self._run(request, place, held)
        finally:
            held.users -= 1
            self._leave(name, held, model)

    async def _run(
        self, request: InferenceRequest, place: SequencePlace, held: _Held
    ) -> InferenceResult:
        if not place.start:
            model = self._registry.get(request.model, request.version)
            _check_begun(model, request, place, held)
            request = replace(request, states=held.states)
        result = await infer(self._registry, request)
        if place.end:
            self._forget(held)
        else:
            self._keep(held, result)
        return result

    def _keep(self, held: _Held, result: InferenceResult) -> None:
        self._budget.reserve(sum(array.nbytes for array in result.states) - held.nbytes)
        held.states, held.specs = result.states, result.model.spec.states

    def _forget(self, held: _Held) -> None:
        self._budget.release(held.nbytes)
        held.states = ()

    def _leave(self, name: Name, held: _Held, model: ServedModel) -> None:
        if held.users:
            return
        if not held.states:
            del self._held[name]
            return
        idle = model.options.max_sequence_idle or self._idle
        held.expiry = asyncio.get_running_loop().call_later(idle, self._expire, name, held)

    def _expire(self, name: Name, held: _Held) -> None:
        self._forget(held)
        del self._held[name]

    def close(self) -> None:
        """Forgets all."""
        for held in self._held.values():
            if held.expiry is not None:
                held.expiry.cancel()
            self._forget(held)
        self._held.clear()


def _check_begun(
    model: ServedModel, request: InferenceRequest, place: SequencePlace, held: _Held
) -> None:
    if not held.states:
        raise InvalidInput(
            f"sequence {place.id!r} of model '{request.model}': expected sequence_start on its "
            "first request; it was not started, has ended, or was idle for too long"
        )
    if tuple(held.specs) != model.spec.states:
        raise InvalidInput(
            f"sequence {place.id!r} of model '{request.model}': the model was reloaded and keeps "
            "another state; start the sequence again"
        )
    given = {tensor.name for tensor in request.inputs}
    for state in model.spec.states:
        if state.input in given:
            raise InvalidInput(
                f"input '{state.input}' of model '{request.model}': expected only with "
                "sequence_start, the server keeps the state of a sequence"
            )
