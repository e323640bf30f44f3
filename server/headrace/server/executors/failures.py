"""What a run failed of, where callers should know more than ONNX Runtime's exceptions tell."""

from __future__ import annotations

from headrace.batcher.errors import OutOfMemory

# ONNX Runtime has no exception for it. The words are those of its arena, of C++, of CUDA, and of
# cuBLAS and cuDNN.
_NO_MEMORY = ("failed to allocate memory", "bad_alloc", "out of memory", "status_alloc_failed")


def failure(error: Exception) -> Exception:
    """`error` of a run, or OutOfMemory in its place where that is what it was."""
    text = str(error)
    if isinstance(error, MemoryError) or any(words in text.lower() for words in _NO_MEMORY):
        told = OutOfMemory(f"out of memory: {text or 'an allocation failed'}")
        told.__cause__ = error
        return told
    return error
