"""What batches cost on this machine: a short measurement at load, so that the first decisions are
informed. Every later run adds to it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import onnxruntime as ort

from headrace.inference.tensors import Array
from headrace.server.executors.onnx import Key, run_session
from headrace.server.models.probe import VARIABLE, synthetic
from headrace.server.models.spec import ModelSpec

# Seconds that may be spent on one model; a run that has begun is finished.
BUDGET = 0.5
_RUNS_OF_EACH = 3
# Larger batches are not tried once two in a row cost so much more for a row than the best did.
_NO_LONGER_PAYS = 1.15


@dataclass(frozen=True, slots=True)
class Profile:
    """Measured runs: pairs of rows and seconds, for one key. Empty where nothing could be run.

    variable: the size that open dimensions other than the batch's had.
    """

    key: Key | None = None
    row_bytes: float = 0.0
    variable: int = 1
    runs: tuple[tuple[int, float], ...] = ()


def profile(spec: ModelSpec, session: ort.InferenceSession, budget: float = BUDGET) -> Profile:
    """Runs synthetic batches of 1, 2, 4, ... rows within `budget` seconds."""
    for variable in VARIABLE:
        arrays = synthetic_rows(spec, 1, variable)
        found = profile_key(spec, variable)
        assert found.key is not None
        try:
            run_session(session, found.key, arrays)
        except Exception:  # noqa: BLE001 (ONNX Runtime's exceptions share no base class)
            continue  # the model does not take this size of its open dimensions
        runs = _measure(spec, session, found.key, variable, budget)
        return replace(found, runs=tuple(runs))
    return Profile()


def profile_key(spec: ModelSpec, variable: int) -> Profile:
    """The profile, without any runs yet, of rows whose open dimensions have this size."""
    arrays = synthetic_rows(spec, 1, variable)
    inputs = [tensor for tensor in spec.inputs if not tensor.optional]
    key = spec.key(inputs, arrays, tuple(tensor.name for tensor in spec.outputs))
    return Profile(key, sum(array.nbytes for array in arrays), variable)


def synthetic_rows(spec: ModelSpec, rows: int, variable: int) -> list[Array]:
    """An array of so many rows for each required input of `spec`."""
    rng = np.random.default_rng(0)
    return [synthetic(tensor, rows, variable, rng) for tensor in spec.inputs if not tensor.optional]


def _measure(
    spec: ModelSpec, session: ort.InferenceSession, key: Key, variable: int, budget: float
) -> list[tuple[int, float]]:
    stop = time.perf_counter() + budget
    runs: list[tuple[int, float]] = []
    best, misses, rows = float("inf"), 0, 1
    while rows <= spec.max_batch_size and misses < 2:
        arrays = synthetic_rows(spec, rows, variable)
        taken = []
        for _ in range(_RUNS_OF_EACH):
            began = time.perf_counter()
            run_session(session, key, arrays)
            taken.append(time.perf_counter() - began)
            if time.perf_counter() > stop:
                break
        # The first run of a size also makes room for it.
        runs += [(rows, seconds) for seconds in taken[1:] or taken]
        misses = misses + 1 if min(taken) / rows > best * _NO_LONGER_PAYS else 0
        best = min(best, min(taken) / rows)
        if time.perf_counter() > stop:
            break
        rows *= 2
    return runs
