"""PyTriton: a Triton server whose Python backend calls back into this process for each batch."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnx_peer import Arguments, OnnxModel, arguments
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def main() -> None:
    given = arguments()
    _prefer_our_libpython()
    models = [OnnxModel(given.model, given.threads) for _ in range(given.instances)]
    grpc, http, metrics = given.ports
    where = TritonConfig(
        grpc_port=grpc,
        http_port=http,
        metrics_port=metrics,
        grpc_address=given.host,
        http_address=given.host,
    )
    with Triton(config=where, workspace=str(Path(given.folder, "triton"))) as triton:
        _bind(triton, given, models)
        triton.serve()


def _prefer_our_libpython() -> None:
    """Triton's Python backend loads libpython by name: the system's, where there is one, with this
    interpreter's standard library. The two must be of the same release."""
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        paths = [sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH")]
        os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, paths))


def _bind(triton: Any, given: Arguments, models: list[OnnxModel]) -> None:
    batches = models[0].batches
    if batches:
        delay = round(given.max_delay * 1e6)
        batcher = DynamicBatcher(max_queue_delay_microseconds=delay)
        config = ModelConfig(batching=True, max_batch_size=given.max_batch, batcher=batcher)
    else:
        config = ModelConfig(batching=False)
    skip = 1 if batches else 0  # the batch dimension is not part of what Triton is told
    triton.bind(
        model_name=given.name,
        infer_func=[_function(model) for model in models],
        inputs=[Tensor(name=t.name, dtype=t.dtype, shape=t.shape[skip:]) for t in models[0].inputs],
        outputs=[
            Tensor(name=t.name, dtype=t.dtype, shape=t.shape[skip:]) for t in models[0].outputs
        ],
        config=config,
    )


def _function(model: OnnxModel) -> Callable[..., Any]:
    if not model.batches:
        return lambda requests: [model.run(request.data) for request in requests]

    @batch
    def infer(**inputs: Any) -> dict[str, Any]:
        return model.run(inputs)

    return infer


if __name__ == "__main__":
    main()
