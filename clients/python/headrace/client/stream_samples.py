"""From arrays of samples to the bytes of chunks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.client.stream_options import Signal
from headrace.inference.tensors import Array, encode_raw

Samples = npt.ArrayLike | Mapping[str, npt.ArrayLike]
"""What is accepted as samples: an array [samples] or [samples, channels]; where the stream has
`signals`, a dict of them by input, equally many samples of each.

A NumPy array must have the signal's dtype, for nothing is converted; lists and numbers take it.
"""

# A chunk's bytes, about: so that no session keeps its neighbours on the same call waiting.
_CHUNK_BYTES = 128 << 10


def as_chunks(chunks: Iterable[Samples]) -> Iterable[Samples]:
    """`chunks`, of which a single array is one; iterated, it would fall into single samples."""
    return [chunks] if isinstance(chunks, np.ndarray) else chunks


@dataclass(frozen=True, slots=True)
class Chunk:
    """`data`: for each signal its samples, as they travel. timestamp_ns: of the first sample."""

    data: Sequence[bytes]
    count: int
    timestamp_ns: int | None = None


class Sampler:
    """Reads what a user sends. `signals`: by input; the empty name stands for the only one."""

    def __init__(self, signals: Mapping[str, Signal], *, finite: bool) -> None:
        self._signals = {name: (signal, signal.datatype) for name, signal in signals.items()}
        self._finite = finite
        width = sum(d.itemsize * s.channels for s, d in self._signals.values())
        self.longest = max(1, _CHUNK_BYTES // width)
        """Samples of a chunk, at most."""

    def read(self, samples: Samples) -> list[Array]:
        """For each signal an array [samples, channels].

        Raises TypeError and ValueError naming the signal, what was expected and what came.
        """
        if not isinstance(samples, Mapping):
            if len(self._signals) > 1:
                raise TypeError(f"expected a dict of {self._names()}, got {_kind(samples)}")
            samples = dict.fromkeys(self._signals, samples)
        elif samples.keys() != self._signals.keys():
            got = ", ".join(map(repr, samples)) or "nothing"
            raise ValueError(f"expected samples of {self._names()}, got {got}")
        arrays = [self._array(name, samples[name]) for name in self._signals]
        counts = {len(array) for array in arrays}
        if len(counts) > 1:
            raise ValueError(
                f"expected equally many samples of {self._names()}, got "
                + ", ".join(str(len(array)) for array in arrays)
            )
        return arrays

    def _array(self, name: str, value: npt.ArrayLike) -> Array:
        signal, datatype = self._signals[name]
        where = f"signal {name!r}" if name else "samples"
        array: Array
        if isinstance(value, np.ndarray):
            array = value
            bfloat16 = datatype.name == "BF16" and array.dtype.name == "bfloat16"
            if bfloat16:
                array = array.view(np.uint16)
            if array.dtype.newbyteorder("<") != datatype.numpy:
                raise TypeError(
                    f"{where}: expected {datatype.numpy.name} ({datatype.name}), got {array.dtype}"
                )
        else:
            array = np.asarray(value, datatype.numpy)
        if array.ndim == 1 and signal.channels == 1:
            array = array[:, np.newaxis]
        if array.ndim != 2 or array.shape[1] != signal.channels:
            expected = f"[samples, {signal.channels}]"
            if signal.channels == 1:
                expected = f"[samples] or {expected}"
            raise ValueError(f"{where}: expected the shape {expected}, got {list(array.shape)}")
        if self._finite:
            _check_finite(where, array, bits=datatype.name == "BF16")
        return array

    def _names(self) -> str:
        return ", ".join(map(repr, self._signals))

    def cut(
        self, arrays: Sequence[Array], start: int, count: int, timestamp_ns: int | None = None
    ) -> Chunk:
        """`count` samples from `start` on, copied."""
        data = [
            encode_raw(array[start : start + count], datatype)
            for array, (_, datatype) in zip(arrays, self._signals.values(), strict=True)
        ]
        return Chunk(data, count, timestamp_ns)

    def rest(self, chunk: Chunk, after: int) -> Chunk:
        """`chunk` without its first `after` samples, whose time follows from theirs."""
        data = [
            raw[after * signal.channels * datatype.itemsize :]
            for raw, (signal, datatype) in zip(chunk.data, self._signals.values(), strict=True)
        ]
        return Chunk(data, chunk.count - after)


def _check_finite(where: str, array: Array, *, bits: bool) -> None:
    if bits:
        finite = (array & 0x7F80) != 0x7F80  # the exponent of BF16: all ones
    elif array.dtype.kind == "f":
        finite = np.isfinite(array)
    else:
        return
    if not finite.all():
        sample, channel = (int(index) for index in np.argwhere(~finite)[0])
        raise ValueError(
            f"{where}: expected finite values, got {array[sample, channel]} in sample {sample}, "
            f"channel {channel} (non_finite='allow' gives them to the model)"
        )


def _kind(samples: object) -> str:
    return type(samples).__name__
