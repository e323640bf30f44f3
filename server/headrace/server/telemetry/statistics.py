"""Counts and durations of one model version: what ModelStatistics and the metrics report.

The hot path only adds to plain numbers. All durations are seconds.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from headrace.batcher.executor import Completion
from headrace.batcher.observer import Observer
from headrace.batcher.request import Batch, Reject, Request, Why
from headrace.server.telemetry.histogram import RATIO, ROWS, SECONDS, Histogram
from headrace.server.telemetry.refusals import Refusals

# Beside the values of Why: how a request ended that was run to its end.
MODEL_FAILED: Final = "model failed"


@dataclass(slots=True)
class Duration:
    """How often, and how long altogether."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds


@dataclass(slots=True)
class BatchSize:
    """What batches of one size took."""

    input: Duration = field(default_factory=Duration)
    infer: Duration = field(default_factory=Duration)
    output: Duration = field(default_factory=Duration)


class ModelStatistics(Observer):
    """Watches a runner.

    `success`, `queue`, `input`, `infer` and `output` count answered requests: each is given the
    whole duration of the batch it was in. `fail` counts every other end. `sizes` counts successful
    batches by rows, `reasons` all batches by why they closed, `ended` ends without an answer by
    why. `rows` are the rows answered, `executions` the successful batches. `wasted_requests` and
    `wasted_rows` were computed for nobody: their callers had left, or their deadlines had passed.
    `wasted_seconds` is their share of their batches' time, by rows. `true_elements` and
    `padding_elements` count those of the inputs that may be padded, over answered requests.

    Histograms: `queued`, seconds that answered requests waited; `computed` and `batch_rows`,
    seconds and rows of successful batches; `cost_ratio`, those seconds over what was predicted.
    `expected_seconds` and `actual_seconds` add up both, over batches with a prediction.
    `busy_seconds` is each executor's time with batches that have ended; `running` is since when
    those have run that have not, by executor. `hangs` counts runs that did not come back, and were
    given up with their executors. `refusals` tells the log, where it is set. `began`: when all was
    0, nanoseconds.
    """

    def __init__(self) -> None:
        self.began = time.time_ns()
        self.fail = Duration()
        self._seconds = self._input_seconds = self._infer_seconds = self._output_seconds = 0.0
        self.sizes: dict[int, BatchSize] = {}
        self.reasons: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.rows = 0
        self.executions = 0
        self.wasted_requests = 0
        self.wasted_rows = 0
        self.true_elements = 0
        self.padding_elements = 0
        self.last_inference_ms = 0
        self.wasted_seconds = 0.0
        self.queued = Histogram(SECONDS)
        self.computed = Histogram(SECONDS)
        self.batch_rows = Histogram(ROWS)
        self.cost_ratio = Histogram(RATIO)
        self.expected_seconds = 0.0
        self.actual_seconds = 0.0
        self.busy_seconds: dict[str, float] = {}
        self.running: dict[str, float] = {}
        self.hangs = 0
        self.refusals: Refusals | None = None

    def rejected(self, refusal: Reject) -> None:
        self.fail.add(0.0)
        self._refused(refusal.why)

    def dropped(self, request: Request, why: Why, now: float) -> None:
        self.fail.add(now - request.arrival)
        self._refused(why)

    def _refused(self, why: Why) -> None:
        self.ended[why.value] += 1
        if self.refusals is not None:
            self.refusals.count(why)

    def failed(self, request: Request, now: float) -> None:
        self.fail.add(now - request.arrival)
        self.ended[MODEL_FAILED] += 1

    def dispatched(self, batch: Batch) -> None:
        self.reasons[batch.reason.value] += 1
        self.running[batch.executor] = batch.started

    def hung(self, batch: Batch, now: float) -> None:
        self.hangs += 1

    def completed(self, batch: Batch, completion: Completion, now: float) -> None:
        self.running.pop(batch.executor, None)
        busy = self.busy_seconds
        busy[batch.executor] = busy.get(batch.executor, 0.0) + now - batch.started
        if completion.error is not None:
            return
        size = self.sizes.get(batch.rows)
        if size is None:
            size = self.sizes[batch.rows] = BatchSize()
        size.input.add(completion.input_seconds)
        size.infer.add(completion.infer_seconds)
        size.output.add(completion.output_seconds)
        self.executions += 1
        self.last_inference_ms = time.time_ns() // 1_000_000
        seconds, expected = completion.seconds, batch.expected
        self.computed.observe(seconds)
        self.batch_rows.observe(batch.rows)
        if expected > 0:  # false where nothing was predicted: nan
            self.cost_ratio.observe(seconds / expected)
            self.expected_seconds += expected
            self.actual_seconds += seconds

    def wasted(self, request: Request, batch: Batch, now: float) -> None:
        self.wasted_requests += 1
        self.wasted_rows += request.rows
        self.wasted_seconds += (now - batch.started) * request.rows / batch.rows

    def padded(self, true_elements: int, padding_elements: int) -> None:
        """Counts the elements of one answered request that might have been, or was, padded."""
        self.true_elements += true_elements
        self.padding_elements += padding_elements

    def answered(self, request: Request, batch: Batch, completion: Completion, now: float) -> None:
        # Once for each request: sums alone, the histogram has the count.
        arrival = request.arrival
        self.queued.observe(request.started - arrival)
        self._seconds += now - arrival
        self._input_seconds += completion.input_seconds
        self._infer_seconds += completion.infer_seconds
        self._output_seconds += completion.output_seconds
        self.rows += request.rows

    @property
    def success(self) -> Duration:
        return Duration(self.queued.count, self._seconds)

    @property
    def queue(self) -> Duration:
        return Duration(self.queued.count, self.queued.sum)

    @property
    def input(self) -> Duration:
        return Duration(self.queued.count, self._input_seconds)

    @property
    def infer(self) -> Duration:
        return Duration(self.queued.count, self._infer_seconds)

    @property
    def output(self) -> Duration:
        return Duration(self.queued.count, self._output_seconds)


@dataclass(slots=True)
class StreamStatistics:
    """Counts of the sensor streams: sessions that are open, attached or not; windows answered, and
    windows dropped by why; commands refused by why."""

    sessions: int = 0
    answered: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
