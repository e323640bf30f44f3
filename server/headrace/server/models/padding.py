"""Does padding leave a model's answers alone? Asked of the model itself, at load.

Only models with one variable length are asked: one open dimension besides the batch, which several
inputs may share. Rows of several lengths are run as they are and padded by several amounts, alone
and in a batch of unequal lengths; the true part of every output must stay what it was, within a
tenth of the tolerance of batches: what matters little in noise may matter more in real inputs. The
output's own length must follow a rule, so that it can be cut back. The first mode that passes is
taken, zeros before repeating the last slice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from headrace.inference.tensors import Array
from headrace.server.executors.padding import LengthRule, Mode, Padding
from headrace.server.executors.running import Session, run_session
from headrace.server.models.probe import (
    TOLERANCE,
    Recipe,
    deviation_of,
    is_mask,
    recipes,
    synthetic,
)
from headrace.server.models.rules import LONGEST_STRIDE, fitting, most_telling
from headrace.server.models.spec import ModelSpec, TensorSpec

# Seconds that may be spent on one model; a run that has begun is finished.
BUDGET = 1.0
# How far beyond the first accepted length others are tried: as far as the model and the time allow.
_SPANS = (4 * LONGEST_STRIDE, 64, 32, 16, 8)
# All runs together take about as long as so many runs of the longest row.
_LONGEST_RUNS = 10
_WORDS = {
    Mode.ZEROS: "zeros at the end",
    Mode.EDGE: "repeating the last slice",
    Mode.MASK: "zeros at the end, masked out,",
}


@dataclass(frozen=True, slots=True)
class PaddingVerdict:
    """What the probe saw. Without `padding`, `reason` says why; empty where nothing is variable.

    deviation: the largest change that padding made, as a share of the output's largest value.
    """

    padding: Padding | None = None
    reason: str = ""
    deviation: float = 0.0


class _NotPaddable(Exception):
    """The reason, in words."""


def probe_padding(
    spec: ModelSpec,
    session: Session,
    budget: float = BUDGET,
    clock: Callable[[], float] = time.perf_counter,
) -> PaddingVerdict:
    """Whether rows of unequal length may be padded to one, and how. `budget` is in seconds."""
    try:
        axes = length_axes(spec)
        if not axes or not spec.batched or spec.max_batch_size < 2:
            return PaddingVerdict()
        return _Trials(spec, session, axes, clock, clock() + budget).verdict()
    except _NotPaddable as reason:
        return PaddingVerdict(reason=str(reason))


def length_axes(spec: ModelSpec) -> dict[str, int]:
    """The axis of the variable length, by name of each input that has it; empty where none has.

    Raises _NotPaddable when there is more than one variable length.
    """
    axes: dict[str, int] = {}
    symbols: dict[str, str] = {}
    for tensor in spec.inputs:
        found = [axis for axis, dim in enumerate(tensor.shape) if axis and dim == -1]
        if tensor.optional or not found:
            continue
        if tensor.model_shape is not None:
            raise _NotPaddable(f"the configuration reshapes input '{tensor.name}'")
        if len(found) > 1:
            raise _NotPaddable(f"input '{tensor.name}' has more than one variable dimension")
        axes[tensor.name] = found[0]
        if symbol := tensor.symbols[found[0]]:
            symbols.setdefault(symbol, tensor.name)
    if len(symbols) > 1:
        (one, first), (two, second) = list(symbols.items())[:2]
        raise _NotPaddable(
            f"the inputs have more than one variable length: '{one}' of '{first}' and '{two}' of "
            f"'{second}'"
        )
    return axes


class _Trials:
    """The runs that are made of one model, and what they showed."""

    def __init__(
        self,
        spec: ModelSpec,
        session: Session,
        axes: Mapping[str, int],
        clock: Callable[[], float],
        stop: float,
    ) -> None:
        self._spec = spec
        self._session = session
        self._axes = axes
        self._clock = clock
        self._stop = stop
        self._inputs = [tensor for tensor in spec.inputs if not tensor.optional]
        self._masked = any(is_mask(t) and t.name in axes for t in self._inputs)
        self._alone: dict[int, tuple[list[Array], list[Array]]] = {}
        self._recipe = Recipe()

    def verdict(self) -> PaddingVerdict:
        """Raises _NotPaddable."""
        first, far = self._range()
        rules = self._rules(first, far)
        if not self._says_anything():
            raise _NotPaddable("its outputs say the same of all synthetic inputs")
        objections = []
        for mode in (Mode.MASK if self._masked else Mode.ZEROS, Mode.EDGE):
            padding = Padding(mode, self._axes, rules)
            try:
                return PaddingVerdict(padding, deviation=self._try(padding, first, far))
            except _Changed as objection:
                objections.append(f"{_WORDS[mode]} {objection}")
        raise _NotPaddable("; ".join(objections))

    def _run(self, arrays: Sequence[Array]) -> list[Array]:
        if self._clock() > self._stop:
            raise _NotPaddable("padding could not be checked in the time allowed")
        outputs = tuple(tensor.name for tensor in self._spec.outputs)
        key = self._spec.key(self._inputs, arrays, outputs)
        return run_session(self._session, key, arrays)

    def _row(self, length: int) -> tuple[list[Array], list[Array]]:
        """A synthetic row of `length` and its answer alone. Raises what the model raises."""
        if length not in self._alone:
            rng = np.random.default_rng(length)
            recipe = Recipe(length, self._recipe.integers)
            arrays = [synthetic(tensor, 1, recipe, rng) for tensor in self._inputs]
            if length % 2:  # what a caller has masked out stays so
                for tensor, array in zip(self._inputs, arrays, strict=True):
                    if is_mask(tensor) and tensor.name in self._axes:
                        hidden = rng.random(array.shape) < 0.3
                        hidden.ravel()[0] = False
                        array[hidden] = 0
            self._alone[length] = (arrays, self._run(arrays))
        return self._alone[length]

    def _takes(self, length: int) -> bool:
        try:
            self._row(length)
        except _NotPaddable:
            raise
        except Exception:  # noqa: BLE001 (ONNX Runtime's exceptions share no base class)
            return False
        return True

    def _range(self) -> tuple[int, int]:
        """A length that the model takes, and one far beyond it that it takes too."""
        for recipe in recipes(self._spec):
            self._recipe, first = recipe, recipe.variable
            if not self._takes(first):
                continue
            began = self._clock()
            if not self._takes(first + 1):
                break
            now = self._clock()
            longest = (self._stop - now) / _LONGEST_RUNS
            for span in _SPANS:
                fits = (now - began) * (1 + span / first) < longest or span == _SPANS[-1]
                if fits and self._takes(first + span):
                    return first, first + span
        raise _NotPaddable("the model does not take synthetic inputs of several lengths")

    def _rules(self, first: int, far: int) -> dict[str, list[LengthRule]]:
        """The rules by which each output's dimensions follow the length. Raises _NotPaddable."""
        self._require((first + far) // 2)
        return {
            tensor.name: list(self._rules_of(place, tensor, first, far))
            for place, tensor in enumerate(self._spec.outputs)
        }

    def _require(self, length: int) -> None:
        if not self._takes(length):
            raise _NotPaddable(f"the model does not take inputs of every length: not {length}")

    def _rules_of(
        self, place: int, tensor: TensorSpec, first: int, far: int
    ) -> Iterator[LengthRule]:
        """One for each dimension that follows the length, sure within the lengths tried."""
        where = f"dimension {{}} of output '{tensor.name}' follows the length by no known rule"
        for axis in range(1, self._alone[first][1][place].ndim):
            while True:
                sizes = {n: row[1][place].shape[axis] for n, row in self._alone.items()}
                if len(set(sizes.values())) == 1:
                    break
                candidates = fitting(sizes)
                if not candidates:
                    raise _NotPaddable(f"{where.format(axis)}: {sizes}")
                telling = most_telling(candidates, range(first, far + 1))
                if telling is not None:
                    self._require(telling)
                    continue
                if most_telling(candidates, range(far, 8 * far)) is not None:
                    raise _NotPaddable(f"{where.format(axis)} that few lengths could tell")
                yield LengthRule(axis, *candidates[0])
                break

    def _says_anything(self) -> bool:
        """Whether any output has different values at all: else no change could be seen."""
        for place, tensor in enumerate(self._spec.outputs):
            values = np.concatenate([row[1][place].ravel() for row in self._alone.values()])
            if tensor.datatype in TOLERANCE and tensor.datatype != "BF16":
                values = values[np.isfinite(values)]
            if len(values) and (values != values[0]).any():
                return True
        return False

    def _try(self, padding: Padding, first: int, far: int) -> float:
        """The largest change that `padding` makes. Raises _Changed when that is too large."""
        middle, short = (first + far) // 2, max(1, first // 3)
        pairs = [(first, first + 1), (first + 1, far), (middle, middle + 3)]
        unequal = [first, middle + 1, first + 1, far]
        if self._takes(short):
            pairs.append((short, first))
            unequal.append(short)
        worst = max(self._compare(padding, [length], padded) for length, padded in pairs)
        return max(worst, self._compare(padding, unequal, far))

    def _compare(self, padding: Padding, lengths: Sequence[int], padded: int) -> float:
        """The largest change to rows of `lengths` that are padded to `padded` and run together."""
        for length in lengths:
            self._require(length)
        rows = [self._row(length) for length in lengths]
        try:
            outputs = self._run(self._stack(padding, [arrays for arrays, _ in rows], padded))
        except _NotPaddable:
            raise
        except Exception as error:
            raise _Changed(f"makes the model fail: {error}") from error
        worst = 0.0
        for place, tensor in enumerate(self._spec.outputs):
            for at, (length, (_, alone)) in enumerate(zip(lengths, rows, strict=True)):
                try:
                    answer = padding.cut(tensor.name, outputs[place][at : at + 1], length, padded)
                except ValueError as error:
                    raise _NotPaddable(str(error)) from error
                worst = max(worst, self._change(tensor, alone[place], answer))
        return worst

    def _change(self, tensor: TensorSpec, alone: Array, padded: Array) -> float:
        if alone.shape != padded.shape:
            raise _NotPaddable(
                f"output '{tensor.name}' of a row has shape {list(alone.shape)} alone, "
                f"{list(padded.shape)} when it is cut from a padded one"
            )
        deviation = deviation_of(tensor, alone, padded)
        if deviation > TOLERANCE.get(tensor.datatype, 0.0) / 10:
            raise _Changed(
                f"changes output '{tensor.name}' by {deviation:.2g} of its largest value"
            )
        return deviation

    def _stack(self, padding: Padding, rows: Sequence[Sequence[Array]], padded: int) -> list[Array]:
        """The rows' inputs as a batch in which each row is padded to `padded`."""
        stacked = []
        for place, tensor in enumerate(self._inputs):
            shape = list(rows[0][place].shape)
            shape[0] = len(rows)
            if tensor.name in self._axes:
                shape[self._axes[tensor.name]] = padded
            target = np.empty(shape, rows[0][place].dtype)
            for at, arrays in enumerate(rows):
                padding.fill(tensor.name, target[at : at + 1], arrays[place])
            stacked.append(target)
        return stacked


class _Changed(Exception):
    """What a mode of padding did to the answers, in words."""
