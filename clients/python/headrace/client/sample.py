"""Inputs made up from a model's metadata, to try a model without knowing it."""

from __future__ import annotations

import numpy as np

from headrace.client.results import ModelMetadata, TensorMetadata
from headrace.client.tensors import Inputs, Tensor
from headrace.inference.tensors import DATATYPES


def random_inputs(
    model: ModelMetadata,
    *,
    rows: int = 1,
    length: int = 16,
    rng: np.random.Generator | None = None,
) -> Inputs:
    """One random array for each input of `model`, by name.

    A first dimension that varies becomes `rows`, any other that varies `length`. Floats are
    normal, integers from 0 to 99 (most vocabularies hold these), BYTES short words.
    """
    rng = rng or np.random.default_rng()
    return {tensor.name: _random_tensor(tensor, rows, length, rng) for tensor in model.inputs}


def _random_tensor(
    tensor: TensorMetadata, rows: int, length: int, rng: np.random.Generator
) -> Tensor:
    shape = [
        dim if dim >= 0 else (rows if axis == 0 else length)
        for axis, dim in enumerate(tensor.shape)
    ]
    dtype = DATATYPES[tensor.datatype].numpy
    if tensor.datatype == "BF16":
        # The upper half of a float32 is the same number in bfloat16.
        bits = np.asarray(rng.standard_normal(shape, np.float32)).view(np.uint32)
        return Tensor((bits >> 16).astype(np.uint16), "BF16")
    if dtype.kind == "f":
        array = np.asarray(rng.standard_normal(shape)).astype(dtype)
    elif dtype.kind == "O":
        array = np.asarray(rng.integers(100, size=shape)).astype("U").astype(object)
    else:
        array = np.asarray(rng.integers(2 if dtype.kind == "b" else 100, size=shape)).astype(dtype)
    return Tensor(array, tensor.datatype)
