"""Inputs that scenario files name: what the metadata of a model cannot say of its inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_VOCABULARY = 1000, 30_000  # whole words of BERT's, without what has a meaning of its own
_FIRST, _LAST = 101, 102  # [CLS], [SEP]


def short_texts(rng: np.random.Generator) -> dict[str, npt.NDArray[Any]]:
    """One text's tokens, without padding: lengths are lognormal, half of them under 24 tokens, and
    cut at 128, as those of search queries and sentences together are."""
    length = int(np.clip(rng.lognormal(np.log(24), 0.7), 4, 128))
    tokens = rng.integers(*_VOCABULARY, (1, length))
    tokens[0, 0], tokens[0, -1] = _FIRST, _LAST
    return {"input_ids": tokens, "attention_mask": np.ones((1, length), np.int64)}


def file_beginnings(rng: np.random.Generator) -> dict[str, npt.NDArray[Any]]:
    """What Magika reads of a file: the first and the last 1,024 bytes."""
    return {"bytes": rng.integers(0, 256, (1, 2048), dtype=np.int32)}


def lines_of_text(rng: np.random.Generator) -> dict[str, npt.NDArray[Any]]:
    """A line of text as an image 48 high, of any width from 80 to 640 in steps of 16: few requests
    share a shape."""
    width = 16 * int(rng.integers(5, 41))
    return {"x": rng.standard_normal((1, 3, 48, width), np.float32)}
