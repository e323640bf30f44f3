"""What a run failed of: memory, in whichever words, or the model itself."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper

from headrace.batcher.errors import OutOfMemory
from headrace.server.executors.failures import failure
from server import graphs


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("std::bad_alloc"),
        RuntimeError("bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 8"),
        RuntimeError("CUDA failure 2: out of memory ; GPU=0"),
        RuntimeError("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED"),
        np._core._exceptions._ArrayMemoryError((1 << 50,), np.dtype(np.int8)),  # type: ignore[attr-defined]
    ],
)
def test_memory_that_ran_out_is_told_as_that(error: Exception) -> None:
    told = failure(error)
    assert isinstance(told, OutOfMemory)
    assert str(told).startswith("out of memory: ")
    assert told.__cause__ is error


def test_anything_else_is_left_as_it_is() -> None:
    error = RuntimeError("the input has the wrong rank")
    assert failure(error) is error


def test_what_onnx_runtime_says_where_there_is_none() -> None:
    """A tensor of 16 TiB: more than any machine gives."""
    node = helper.make_node("ConstantOfShape", ["x"], ["y"])
    model = graphs.build([node], [graphs.tensor("x", (1,), "INT64")], [graphs.tensor("y", ("n",))])
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    session = ort.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    with pytest.raises(Exception) as caught:  # noqa: PT011 (its exceptions share no base class)
        session.run(None, {"x": np.array([1 << 42], np.int64)})
    assert isinstance(failure(caught.value), OutOfMemory)
