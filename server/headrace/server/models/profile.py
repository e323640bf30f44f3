"""What batches cost on this machine: a short measurement at load, so that the first decisions are
informed. Every later run adds to it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from headrace.batcher.cost import sizes_to_profile
from headrace.server.executors.onnx import Key, run_session
from headrace.server.models.probe import VARIABLE, synthetic
from headrace.server.models.spec import ModelSpec

# Seconds that may be spent on one model; a run that has begun is finished.
BUDGET = 0.5
_RUNS_OF_EACH = 3
# Larger batches are not tried once so many in a row cost so much more for a row than the best did.
_MISSES, _NO_LONGER_PAYS = 2, 1.15


@dataclass(frozen=True, slots=True)
class Profile:
    """Measured runs: pairs of rows and seconds, for one key. Empty where nothing could be run."""

    key: Key | None = None
    row_bytes: float = 0.0
    runs: tuple[tuple[int, float], ...] = ()


def profile(spec: ModelSpec, session: ort.InferenceSession, budget: float = BUDGET) -> Profile:
    """Runs synthetic batches of 1, 2, 4, ... and then 3, 5, 9, ... rows for `budget` seconds."""
    inputs = [tensor for tensor in spec.inputs if not tensor.optional]
    outputs = tuple(tensor.name for tensor in spec.outputs)
    rng = np.random.default_rng(0)
    for variable in VARIABLE:
        arrays = [synthetic(tensor, 1, variable, rng) for tensor in inputs]
        key = spec.key(inputs, arrays, outputs)
        try:
            run_session(session, key, arrays)
        except Exception:  # noqa: BLE001 (ONNX Runtime's exceptions share no base class)
            continue  # the model does not take this size of its open dimensions
        runs = _measure(spec, session, key, variable, budget)
        return Profile(key, sum(array.nbytes for array in arrays), tuple(runs))
    return Profile()


def _measure(
    spec: ModelSpec, session: ort.InferenceSession, key: Key, variable: int, budget: float
) -> list[tuple[int, float]]:
    rng = np.random.default_rng(0)
    inputs = [tensor for tensor in spec.inputs if not tensor.optional]
    stop = time.perf_counter() + budget
    runs: list[tuple[int, float]] = []
    best, misses, longest = float("inf"), 0, 0
    for rows in sizes_to_profile(spec.max_batch_size):
        if misses == _MISSES and rows > longest:
            continue
        arrays = [synthetic(tensor, rows, variable, rng) for tensor in inputs]
        taken = []
        for _ in range(_RUNS_OF_EACH):
            began = time.perf_counter()
            run_session(session, key, arrays)
            taken.append(time.perf_counter() - began)
            if time.perf_counter() > stop:
                break
        # The first run of a size also makes room for it.
        runs += [(rows, seconds) for seconds in taken[1:] or taken]
        if time.perf_counter() > stop:
            break
        if rows > longest:
            misses = misses + 1 if min(taken) / rows > best * _NO_LONGER_PAYS else 0
            longest = rows
        best = min(best, min(taken) / rows)
    return runs
