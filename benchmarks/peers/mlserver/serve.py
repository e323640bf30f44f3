"""MLServer with a runtime for ONNX, since it brings none: `mlserver start FOLDER`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from onnx_peer import LARGEST_MESSAGE, OnnxModel, arguments, declared, inherited


class OnnxRuntime(MLModel):
    """A custom runtime as MLServer's manual has it: decode, run, encode."""

    async def load(self) -> bool:
        given = inherited()
        self._onnx = OnnxModel(given.model, given.threads)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        feeds = {tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs}
        outputs = self._onnx.run(feeds)
        return InferenceResponse(
            model_name=self.name,
            model_version=self.version,
            outputs=[NumpyCodec.encode_output(name, array) for name, array in outputs.items()],
        )


def main() -> None:
    given = arguments()
    folder = Path(given.folder)
    grpc, http, metrics = given.ports
    settings = {
        "host": given.host,
        "grpc_port": grpc,
        "http_port": http,
        "metrics_port": metrics,
        "parallel_workers": given.instances,
        "grpc_max_message_length": LARGEST_MESSAGE,
        "environments_dir": str(folder / "environments"),
        "metrics_dir": str(folder / "metrics"),
    }
    if "debug" in given.settings:
        settings["debug"] = given.settings["debug"]
    onnx = OnnxModel(given.model, 1)
    model: dict[str, Any] = {
        "name": given.name,
        "implementation": "serve.OnnxRuntime",
        "inputs": declared(onnx.inputs),
        "outputs": declared(onnx.outputs),
    }
    if given.max_batch > 1 and onnx.batches:
        model |= {"max_batch_size": given.max_batch, "max_batch_time": given.max_delay}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    command = str(Path(sys.executable).with_name("mlserver"))
    os.execv(command, [command, "start", str(folder)])


if __name__ == "__main__":
    main()
