"""BentoML: `bentoml serve` of a service that takes a binary body, or JSON where it batches."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
from onnx_peer import Arguments, OnnxModel, arguments, inherited
from safetensors.numpy import load, save
from starlette.responses import Response


class OnnxService:
    """A body of bytes in and out, which BentoML passes on as they are."""

    def __init__(self) -> None:
        given = inherited()
        self._onnx = OnnxModel(given.model, given.threads)

    @bentoml.api
    def infer(self, body: bytes, /) -> bytes:
        # A ready response: of plain bytes, BentoML would work out the media type each time anew.
        answer = save(self._onnx.run(load(body)))
        ready: Any = Response(answer, media_type="application/octet-stream")
        return ready


def batched(given: Arguments) -> type:
    """A service that batches. BentoML joins requests only where the one argument is a list or an
    array, and takes those as JSON; a list of named tensors holds any model's inputs."""

    class BatchedOnnxService:
        def __init__(self) -> None:
            self._onnx = OnnxModel(given.model, given.threads)
            self._dtypes = {tensor.name: tensor.dtype for tensor in self._onnx.inputs}

        @bentoml.api(batchable=True, max_batch_size=given.max_batch)
        def infer(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
            feeds = [
                {name: np.array(data, self._dtypes[name]) for name, data in request.items()}
                for request in requests
            ]
            answers = self._onnx.run_many(feeds)
            return [{name: array.tolist() for name, array in a.items()} for a in answers]

    return BatchedOnnxService


def main() -> None:
    given = arguments()
    os.environ |= {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": given.folder}
    here = str(Path(__file__).parent)
    command = [sys.executable, "-m", "bentoml", "serve", "serve:service", "--working-dir", here]
    os.execv(sys.executable, [*command, "--host", given.host, "--port", str(given.ports[0])])


if __name__ == "__main__":
    main()
else:  # BentoML's own processes import this file for what they shall serve
    _given = inherited()
    service = bentoml.service(workers=_given.instances)(
        batched(_given) if _given.max_batch > 1 else OnnxService
    )
