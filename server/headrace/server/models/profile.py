"""What batches cost on this machine: a short measurement at load, so that the first decisions are
informed. Every later run adds to it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from headrace.batcher.cost import sizes_to_profile
from headrace.inference.tensors import Array
from headrace.server.executors.payload import Key
from headrace.server.executors.running import Session, run_session
from headrace.server.models.probe import Recipe, recipes, synthetic
from headrace.server.models.spec import ModelSpec

# Seconds that may be spent on one model; a run that has begun is finished.
BUDGET = 0.5
_RUNS_OF_EACH = 3
# Brief runs are repeated for so many seconds, so many times at most: the first of them are cold.
_LONG_ENOUGH, _MOST_RUNS = 0.001, 50
# Larger batches are not tried once so many in a row cost so much more for a row than the best did.
_MISSES, _NO_LONGER_PAYS = 2, 1.15
_USUAL = Recipe()


@dataclass(frozen=True, slots=True)
class Profile:
    """Measured runs: pairs of rows and seconds, for one key. Empty where nothing could be run.

    recipe: how the inputs were made.
    """

    key: Key | None = None
    row_bytes: float = 0.0
    recipe: Recipe = _USUAL
    runs: tuple[tuple[int, float], ...] = ()


def profile(spec: ModelSpec, session: Session, budget: float = BUDGET) -> Profile:
    """Runs synthetic batches of 1, 2, 4, ... and then 3, 5, 9, ... rows for `budget` seconds."""
    for recipe in recipes(spec):
        found = profile_key(spec, recipe)
        assert found.key is not None
        try:
            run_session(session, found.key, synthetic_rows(spec, 1, recipe))
        except Exception:  # noqa: BLE001 (ONNX Runtime's exceptions share no base class)
            continue  # the model does not take such inputs
        runs = _measure(spec, session, found.key, recipe, budget)
        return replace(found, runs=tuple(runs))
    return Profile()


def profile_key(spec: ModelSpec, recipe: Recipe) -> Profile:
    """The profile, without any runs yet, of inputs made by `recipe`."""
    arrays = synthetic_rows(spec, 1, recipe)
    inputs = [tensor for tensor in spec.inputs if not tensor.optional]
    key = spec.key(inputs, arrays, tuple(tensor.name for tensor in spec.outputs))
    return Profile(key, sum(array.nbytes for array in arrays), recipe)


def synthetic_rows(spec: ModelSpec, rows: int, recipe: Recipe) -> list[Array]:
    """An array of so many rows for each required input of `spec`."""
    rng = np.random.default_rng(0)
    return [synthetic(tensor, rows, recipe, rng) for tensor in spec.inputs if not tensor.optional]


def _measure(
    spec: ModelSpec, session: Session, key: Key, recipe: Recipe, budget: float
) -> list[tuple[int, float]]:
    stop = time.perf_counter() + budget
    runs: list[tuple[int, float]] = []
    best, misses, longest = float("inf"), 0, 0
    for rows in _sizes(spec):
        if misses == _MISSES and rows > longest:
            continue
        arrays = synthetic_rows(spec, rows, recipe)
        taken: list[float] = []
        while len(taken) < _RUNS_OF_EACH or (sum(taken) < _LONG_ENOUGH and len(taken) < _MOST_RUNS):
            began = time.perf_counter()
            run_session(session, key, arrays)
            taken.append(time.perf_counter() - began)
            if time.perf_counter() > stop:
                break
        # The first run of a size also makes room for it.
        runs += [(rows, seconds) for seconds in _middle(taken[1:] or taken)]
        if time.perf_counter() > stop:
            break
        if rows > longest:
            misses = misses + 1 if min(taken) / rows > best * _NO_LONGER_PAYS else 0
            longest = rows
        best = min(best, min(taken) / rows)
    return runs


def _middle(taken: Sequence[float]) -> Sequence[float]:
    """The middle two of more than two, so that brief runs count as often as others."""
    middle = len(taken) // 2
    return sorted(taken)[middle - 1 : middle + 1] if len(taken) > 2 else taken


def _sizes(spec: ModelSpec) -> Sequence[int]:
    """The sizes to measure. Where the graph fixes the rows, all take as long as a full batch."""
    if spec.fixed_rows and spec.batched:
        return 1, spec.fixed_rows
    return sizes_to_profile(spec.max_batch_size)
