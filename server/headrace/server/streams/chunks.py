"""Reads the samples of a chunk, and says what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headrace.inference.tensors import Array
from headrace.server.errors import StreamRefused
from headrace.server.streams.options import SignalFormat

_EXPONENT = 0x7F80  # of BF16: all ones in a NaN or an infinity


def read_chunk(signals: Sequence[SignalFormat], data: Sequence[bytes]) -> list[Array]:
    """For each signal a view [samples, channels] of its bytes. Raises StreamRefused."""
    if len(data) != len(signals):
        raise StreamRefused(
            "INVALID_INPUT",
            "chunk.data",
            f"expected an entry for each of {len(signals)} signals, got {len(data)}",
        )
    arrays: list[Array] = []
    for number, (signal, raw) in enumerate(zip(signals, data, strict=True)):
        width = signal.channels * signal.datatype.itemsize
        count, rest = divmod(len(raw), width)
        if rest:
            raise StreamRefused(
                "WRONG_CHANNELS",
                f"chunk.data[{number}]",
                f"expected a multiple of {width} bytes ({signal.channels} channels of "
                f"{signal.datatype.name}) for '{signal.input}', got {len(raw)}",
            )
        if arrays and count != len(arrays[0]):
            raise StreamRefused(
                "INVALID_INPUT",
                f"chunk.data[{number}]",
                f"expected {len(arrays[0])} samples, as the first signal has, got {count}",
            )
        arrays.append(np.frombuffer(raw, signal.datatype.numpy).reshape(count, signal.channels))
    return arrays


def check_finite(signals: Sequence[SignalFormat], arrays: Sequence[Array]) -> None:
    """Raises StreamRefused where a floating-point sample is NaN or infinite."""
    for number, (signal, array) in enumerate(zip(signals, arrays, strict=True)):
        if signal.datatype.name == "BF16":
            fine = (array & _EXPONENT) != _EXPONENT
        elif array.dtype.kind == "f":
            fine = np.isfinite(array)
        else:
            continue
        if not fine.all():
            sample, channel = (int(index) for index in np.argwhere(~fine)[0])
            raise StreamRefused(
                "NON_FINITE",
                f"chunk.data[{number}]",
                f"expected finite values for '{signal.input}', got {array[sample, channel]} in "
                f"sample {sample} of the chunk, channel {channel}",
            )
