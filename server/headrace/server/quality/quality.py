"""The event loop's side of a model's quality: what it looks at, and hands to a thread.

Theory of operation. Of a request that is answered a bounded part is copied, there and then, into a
list. A thread of the model's own takes the list some times a second and works the figures out; at
the end of each turn it leaves a snapshot, which is all that a collection of metrics reads. What
comes in a turn beyond the list's bounds is not looked at, and counted. A report of truths is worked
off by the same thread, after the answers that came before it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from headrace.inference.tensors import Array
from headrace.server.errors import ModelUnavailable, Unsupported
from headrace.server.quality.answers import Name
from headrace.server.quality.figures import Figures, Seen, Snapshot, Taken
from headrace.server.quality.metrics import collect
from headrace.server.quality.options import QualityOptions
from headrace.server.quality.scores import Truth
from headrace.server.quality.summaries import thinned
from headrace.server.telemetry.families import Families, Labels

T = TypeVar("T")

# Seconds between two turns of the thread, and what it may find at the beginning of one.
_TURN_SECONDS = 0.25
_MOST_TAKEN, _MOST_BYTES = 1024, 16 << 20
# Of one request: the output that is scored, its name, and its tensors that are looked at.
_LARGEST_OUTPUT, _LONGEST_ID = 256 << 10, 256
_MOST_TENSORS = 8
_POINTER = 8


class Input(Protocol):
    """A tensor as it came."""

    @property
    def name(self) -> str: ...
    @property
    def datatype(self) -> str: ...
    @property
    def array(self) -> Array: ...


class Output(Protocol):
    """What an output is called, and of which datatype it is."""

    @property
    def name(self) -> str: ...
    @property
    def datatype(self) -> str: ...


class Quality:
    """Of one version of a model. To be used on the event loop alone."""

    def __init__(
        self,
        model: str,
        options: QualityOptions,
        output: Output,
        names: Sequence[str],
        batched: bool,
    ) -> None:
        """`output` is scored; `names` are its classes by index, from a file beside the model.
        `batched`: whether the first dimension of tensors counts rows."""
        self._model = model
        self._options = options
        self._output = output.name
        self._batched = batched
        self._figures = Figures(options, output.name, output.datatype, names)
        self._taken: list[Taken] = []
        self._nbytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._thread = ThreadPoolExecutor(1, "quality")
        self._closed = False
        self._busy = False
        self.snapshot = Snapshot()
        self.sampled = self.skipped = self.unknown = 0

    def answered(
        self,
        name: Name,
        inputs: Sequence[Input],
        outputs: Sequence[tuple[Output, Array]],
    ) -> None:
        """A request was answered with `outputs`. Looks at it, or not."""
        if self._options.sample < 1 and random.random() >= self._options.sample:
            return
        if len(self._taken) >= _MOST_TAKEN or self._nbytes >= _MOST_BYTES:
            self.skipped += 1
            return
        taken = self._take(name, inputs, outputs)
        self._taken.append(taken)
        self._nbytes += sum(map(_nbytes, (seen.rows for seen in taken.seen)))
        self._nbytes += 0 if taken.output is None else _nbytes(taken.output)
        self.sampled += 1
        if self._timer is None and not self._closed:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_TURN_SECONDS, self._turn)

    def _take(
        self, name: Name, inputs: Sequence[Input], outputs: Sequence[tuple[Output, Array]]
    ) -> Taken:
        """Copies: what arrays are in is nobody's promise once the request is answered."""
        seen: list[Seen] = []
        if self._options.drift:
            for tensor in inputs[:_MOST_TENSORS]:
                rows = thinned(self._rows(tensor.array))
                seen.append(Seen("input", tensor.name, tensor.datatype, rows))
            for spec, array in outputs[:_MOST_TENSORS]:
                rows = thinned(self._rows(array))
                seen.append(Seen("output", spec.name, spec.datatype, rows))
        scored = None
        if self._options.task is not None:
            arrays = (array for spec, array in outputs if spec.name == self._output)
            scored = next(arrays, None)
        if scored is None or _nbytes(scored) > _LARGEST_OUTPUT:
            return Taken(name, seen, None)
        if len(name.request_id) > _LONGEST_ID:
            name = Name(name.identity, "")
        return Taken(name, seen, self._rows(scored).copy())

    def _rows(self, array: Array) -> Array:
        return array if self._batched and array.ndim else array[None]

    def _turn(self) -> None:
        self._timer = None
        if not self._closed:
            loop = asyncio.get_running_loop()
            if self._busy:  # the thread is behind: what comes meanwhile is bounded
                self._timer = loop.call_later(_TURN_SECONDS, self._turn)
            else:
                self._busy = True
                loop.run_in_executor(self._thread, self._look()).add_done_callback(self._looked)

    def _look(self) -> Callable[[], Snapshot]:
        """What the thread has to do with all that was taken."""
        taken, self._taken, self._nbytes = self._taken, [], 0
        figures = self._figures

        def look() -> Snapshot:
            figures.take(taken)
            return figures.snapshot()

        return look

    def _looked(self, work: asyncio.Future[Snapshot]) -> None:
        self._busy = False
        if not work.cancelled():
            self.snapshot = work.result()

    async def report(self, identity: str, truths: Sequence[Truth]) -> list[Truth]:
        """Scores answers that `identity` was given; returns the truths whose answers are not here.

        Raises InvalidInput for a truth that does not fit its answer, before any of them counts;
        Unsupported where nothing is to be scored, ModelUnavailable where the model is let go.
        """
        if self._options.task is None:
            raise Unsupported(
                f"model '{self._model}' takes no truths: its configuration has no quality.task"
            )
        await self._then(self._look())
        left = await self._then(lambda: self._figures.report(identity, truths))
        self.snapshot = await self._then(self._figures.snapshot)
        return left

    async def reset_reference(self) -> None:
        """The rows that come next are what later ones are compared with."""
        await self._then(self._look())
        await self._then(self._figures.reset_reference)
        self.snapshot = await self._then(self._figures.snapshot)

    def _then(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """`work`, by the thread, after all that it was given before. Raises ModelUnavailable."""
        if self._closed:
            raise ModelUnavailable(f"model '{self._model}' is being unloaded")
        return asyncio.get_running_loop().run_in_executor(self._thread, work)

    def collect(self, families: Families, labels: Labels) -> None:
        """The figures as metrics, as they were at the end of the last turn."""
        collect(families, labels, self)

    def close(self) -> None:
        """Looks at nothing any more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._thread.shutdown(wait=False)


def _nbytes(array: Array) -> int:
    """What `array` holds in memory. NumPy counts only the pointers to strings."""
    if array.dtype != object:
        return array.nbytes
    elements: Any = array.ravel()
    return array.nbytes + sum(len(element) + _POINTER for element in elements)
