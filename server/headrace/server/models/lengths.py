"""The lengths that one model's requests are padded to: learned from its answers."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

from headrace.batcher.buckets import Buckets
from headrace.batcher.cost import CostTable
from headrace.batcher.request import Batch, Request
from headrace.batcher.state import State
from headrace.inference.tensors import DATATYPES
from headrace.server.executors.padding import Padding
from headrace.server.executors.payload import Key
from headrace.server.telemetry.statistics import ModelStatistics

_TEXT_BYTES = 16  # about what a string holds, where sizes are only compared


class Lengths:
    """The buckets of a model that may be padded, by the costs of `executor`, which is one of all.

    What padding wastes goes to `statistics`.
    """

    def __init__(
        self, padding: Padding, state: State, executor: str, statistics: ModelStatistics
    ) -> None:
        self.buckets = Buckets(state.limits.max_batch_rows)
        self._statistics = statistics
        self._padding = padding
        self._state = state
        self._executor = executor

    def bucketed(self, key: Key) -> tuple[Key, int]:
        """The key to queue under, and the request's own length; 0 when it is not to be padded."""
        if not self.buckets.boundaries:
            return key, 0
        length = self._padding.length(key.inputs)
        padded = self.buckets.of(length) if length else 0
        if padded == length:
            return key, 0
        return replace(key, inputs=self._padding.stretched(key.inputs, padded)), length

    def answered(self, request: Request, batch: Batch) -> int:
        """Learns from an answer. Returns the length it was padded to, 0 when it was not.

        Only lengths that the model has answered are ever padded to.
        """
        key = request.key
        assert isinstance(key, Key)
        padded = self._padding.length(key.inputs)
        length = request.payload.length or padded
        if request.solo or not length:
            return 0
        elements = sum(
            array.size
            for array, (name, _, _) in zip(request.payload.inputs, key.inputs, strict=True)
            if name in self._padding.inputs
        )
        self._statistics.padded(elements, elements // length * (padded - length))
        together = batch.rows * (1 + batch.waiting / len(batch.requests))
        others = together - request.rows
        self.buckets.seen(length, request.rows, others, partial(self._seconds, key, {}))
        return padded if padded > length else 0

    def _seconds(self, key: Key, found: dict[int, CostTable], length: int, rows: int) -> float:
        """What a batch of `rows` rows of `length` is expected to take; nan where nobody knows.

        `found` holds the tables that were looked up before.
        """
        table = found.get(length)
        if table is None:
            with self._state.device.lock:
                table = found[length] = self._table(key, length)
        return table.seconds(rows) if table.known else math.nan

    def _table(self, key: Key, length: int) -> CostTable:
        inputs = self._padding.stretched(key.inputs, length)
        row_bytes = sum(
            math.prod(dims) * (DATATYPES[datatype].itemsize or _TEXT_BYTES)
            for _, datatype, dims in inputs
        )
        return self._state.table(self._executor, replace(key, inputs=inputs), row_bytes)
