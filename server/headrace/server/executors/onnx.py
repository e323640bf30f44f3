"""Runs batches on an ONNX Runtime session, on a thread of its own.

Theory of operation. The event loop hands over a batch and goes on. The thread gathers the members'
inputs into a buffer that it keeps per key, runs the session, and hands out views of the outputs;
then it says so, and is told what to run next, if anything waits. Buffers are only touched by who
runs the batch, and live until the run has returned, also when the run is told to stop.

To wake a thread, and be woken by it, costs some 100 us. A batch that is expected to take less than
that, of a model that cannot take much longer (`models/steady.py`), runs on the event loop's thread,
once as large a batch of its kind has run here.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Final, NamedTuple

import numpy as np
import onnxruntime as ort

from headrace.batcher.executor import Completion, Done
from headrace.batcher.request import Batch
from headrace.inference.tensors import Array
from headrace.server.executors.failures import failure
from headrace.server.executors.layout import rows_of
from headrace.server.executors.padding import Padding
from headrace.server.executors.payload import Key, Payload
from headrace.server.executors.running import Session, run_session
from headrace.server.executors.session import Provider
from headrace.server.precedence import give_way

_KEPT_KEYS: Final = 16
# Seconds. Measured: docs/performance.md, "Runs on the event loop".
BRIEF: Final = 100e-6
# NumPy copies arrays of so many elements without letting go of the interpreter's lock.
_SMALL: Final = 500
# Up to so many bytes in all are gathered without letting go of it: some 0.2 ms. Measured:
# docs/performance.md, "Gathering without letting go".
_HELD: Final = 2 << 20


Job = tuple[Batch, Done]


class Seat(NamedTuple):
    """A place for an executor, whichever holds it. `kind` and `team` as the batcher has them; cpu:
    the number of the processor that its thread is bound to, None for any."""

    name: str
    kind: str
    team: int = 0
    cpu: int | None = None


class OnnxExecutor:
    """One instance of a model: a thread that runs one batch at a time.

    A session with one intra-op thread may be shared by several executors: ONNX Runtime runs it on
    the calling thread, and the weights are in memory once. `padding` is how payloads that are
    shorter than their key are padded. `steady`: how long a run takes follows from shapes alone.
    """

    def __init__(
        self,
        seat: Seat,
        session: Session,
        padding: Padding | None = None,
        *,
        steady: bool = False,
    ) -> None:
        self.name, self.kind, self.team, self._cpu = seat
        self._session = session
        self._by_itself = self.kind == Provider.CPU.value  # no other thread computes, nor a device
        self._padding = padding
        self._steady = steady
        # Of the kinds seen last, the largest batches that have run, in rows.
        self._largest: dict[Hashable, int] = {}
        self._buffers = _Buffers()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._current: tuple[Batch, ort.RunOptions] | None = None
        self._worker = threading.Thread(target=self._work, name=self.name, daemon=True)
        self._worker.start()

    def start(self, batch: Batch, done: Done) -> None:
        if self._is_brief(batch):
            done(batch, self._run(batch, None))
        else:
            self._jobs.put((batch, done))

    def _is_brief(self, batch: Batch) -> bool:
        if not self._steady:
            return False
        if batch.rows > self._largest.get(batch.key, 0):  # what is expected of it is a guess
            if len(self._largest) >= _KEPT_KEYS:
                self._largest.clear()
            self._largest[batch.key] = batch.rows
            return False
        return batch.expected < BRIEF

    def abandon(self, batch: Batch) -> None:
        batch.abandoned = True  # should it only begin now
        current = self._current
        if current is not None and current[0] is batch:
            current[1].terminate = True

    def desert(self, batch: Batch) -> None:
        self.abandon(batch)
        self._jobs.put(None)  # should the run end after all, the thread does too

    @property
    def alive(self) -> bool:
        """Whether the thread is there: that of a run which hangs cannot be ended."""
        return self._worker.is_alive()

    def close(self) -> None:
        """Ends the thread once it has run what it was given."""
        self._jobs.put(None)
        self._worker.join()

    def _work(self) -> None:
        if self.kind.startswith(Provider.CPU.value):
            give_way()
        if self._cpu is not None:
            with contextlib.suppress(OSError):  # that processor may have been taken away since
                os.sched_setaffinity(threading.get_native_id(), {self._cpu})
        while (job := self._jobs.get()) is not None:
            batch: Batch | None = job[0]
            done = job[1]
            del job  # or it would keep the batch in memory until there is another
            while batch is not None:
                # What is brief enough for the event loop's thread is left to it.
                brief = self._steady and batch.expected < BRIEF
                batch = done(batch, self._run_here(batch), goes_on=not brief)

    def _run_here(self, batch: Batch) -> Completion:
        options = ort.RunOptions()
        self._current = (batch, options)
        if batch.abandoned:
            options.terminate = True
        try:
            return self._run(batch, options)
        finally:
            self._current = None

    def _run(self, batch: Batch, options: ort.RunOptions | None) -> Completion:
        while True:
            try:
                return self._attempt(batch, options)
            except Exception as error:  # noqa: BLE001 (whatever the model raises is the answer)
                if len(batch.requests) > 1 or self._padding_of(batch) is None:
                    return Completion(error=failure(error))
                # The length it was padded to may be at fault. It runs as it came, as the scheduler
                # has the members of a failed batch run.
                batch.requests[0].solo = True

    def _attempt(self, batch: Batch, options: ort.RunOptions | None) -> Completion:
        key = batch.key
        assert isinstance(key, Key)
        began, worked = time.perf_counter(), time.thread_time()
        padding = self._padding_of(batch)
        feeds = self._gather(key, batch, padding)
        gathered = time.perf_counter()
        outputs = run_session(self._session, key, feeds, options)
        ran = time.perf_counter()
        results = _scatter(key, batch, outputs, padding)
        ended = time.perf_counter()
        work = time.thread_time() - worked if self._by_itself else None
        return Completion(results, None, gathered - began, ran - gathered, ended - ran, work)

    def _padding_of(self, batch: Batch) -> Padding | None:
        """How to pad `batch`; None when all members fit its key, or run alone by their own wish."""
        if self._padding is None or batch.requests[0].solo:
            return None
        return self._padding if any(r.payload.length for r in batch.requests) else None

    def _gather(self, key: Key, batch: Batch, padding: Padding | None) -> list[Array]:
        payloads: list[Payload] = [request.payload for request in batch.requests]
        if padding is not None:
            return self._gather_padded(key, batch, padding)
        if len(payloads) == 1:
            # ONNX Runtime reads the array where it lies.
            return list(payloads[0].inputs)
        feeds = []
        for index, (name, datatype, _) in enumerate(key.inputs):
            arrays = [payload.inputs[index] for payload in payloads]
            axis = key.layout.axis(name)
            if datatype == "BYTES" or axis:
                feeds.append(np.concatenate(arrays, axis))
                continue
            buffer = self._buffers.get((name, key.inputs), arrays[0], batch.rows)
            _copy(arrays, buffer)
            feeds.append(buffer)
        return feeds

    def _gather_padded(self, key: Key, batch: Batch, padding: Padding) -> list[Array]:
        feeds = []
        for index, (name, _, dims) in enumerate(key.inputs):
            arrays = [request.payload.inputs[index] for request in batch.requests]
            like = np.empty((0, *dims), arrays[0].dtype)
            buffer = self._buffers.get((name, key.inputs), like, batch.rows)
            at = 0
            for array in arrays:
                padding.fill(name, buffer[at : at + len(array)], array)
                at += len(array)
            feeds.append(buffer)
        return feeds


def _copy(arrays: Sequence[Array], to: Array) -> None:
    """Puts `arrays`, of its dtype, one after another into `to`.

    NumPy lets go of the interpreter's lock for each array that is not small, and each time waits
    for the event loop to have it back: ten arrays waited for a millisecond or more.
    """
    held = arrays[0].size > _SMALL and to.nbytes <= _HELD
    if not held or not all(array.flags.c_contiguous for array in arrays):
        np.concatenate(arrays, out=to)
        return
    target = to.data.cast("B")
    at = 0
    for array in arrays:
        end = at + array.nbytes
        target[at:end] = array.data.cast("B")
        at = end


class _Buffers:
    """Arrays to gather into, one for each input of the keys seen last, grown when too small."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, Array] = OrderedDict()

    def get(self, key: Hashable, like: Array, rows: int) -> Array:
        buffer = self._kept.get(key)
        if buffer is None or len(buffer) < rows:
            buffer = np.empty((rows, *like.shape[1:]), like.dtype)
            self._kept[key] = buffer
        self._kept.move_to_end(key)
        if len(self._kept) > _KEPT_KEYS:
            self._kept.popitem(last=False)
        return buffer[:rows]


def _scatter(
    key: Key, batch: Batch, outputs: list[Array], padding: Padding | None
) -> list[list[Array]]:
    """The members' shares of the outputs, as views; copies of those that outlive the batch; cut to
    their lengths where `padding` is given.

    Raises ValueError when an output does not follow the batch, or not the length: its rows cannot
    be told apart.
    """
    if len(batch.requests) == 1 and padding is None:
        return [outputs]
    axes = [key.layout.axis(name) for name in key.outputs]
    kept = [name in key.layout.kept for name in key.outputs]
    whole = list(zip(key.outputs, outputs, axes, kept, strict=True))
    for name, output, axis, _ in whole:
        if output.ndim <= axis or output.shape[axis] != batch.rows:
            raise ValueError(
                f"output '{name}' has shape {list(output.shape)} for a batch of {batch.rows} rows"
            )
    longest = padding.length(key.inputs) if padding is not None else 0
    shares = []
    at = 0
    for request in batch.requests:
        end, length = at + request.rows, request.payload.length
        share = []
        for name, output, axis, keep in whole:
            view = rows_of(output, axis, at, end)
            if padding is not None and length:
                view = padding.cut(name, view, length, longest)
            share.append(view.copy() if keep else view)
        shares.append(share)
        at = end
    return shares
