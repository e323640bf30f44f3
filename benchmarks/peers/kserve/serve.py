"""KServe's model server for Python with a model of our own, as its manual has custom predictors."""

from __future__ import annotations

import asyncio
import queue
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.model_server import args as flags
from kserve.utils.numpy_codec import from_np_dtype
from kserve.utils.utils import generate_uuid
from onnx_peer import LARGEST_MESSAGE, Arguments, OnnxModel, Tensors, arguments, declared


class Predictor(Model):
    """Runs on the event loop, one request at a time: what one gets by writing `predict`."""

    def __init__(self, given: Arguments) -> None:
        super().__init__(given.name)
        self._onnx = OnnxModel(given.model, given.threads)
        self.ready = True

    def get_input_types(self) -> list[dict[str, Any]]:
        return declared(self._onnx.inputs)

    def get_output_types(self) -> list[dict[str, Any]]:
        return declared(self._onnx.outputs)

    def predict(self, payload: InferRequest, *_: Any) -> InferResponse:
        return _response(self.name, self._onnx.run(_feeds(payload)))


class ThreadedPredictor(Predictor):
    """Runs on `instances` threads, each with a session of its own, beside the event loop."""

    def __init__(self, given: Arguments) -> None:
        super().__init__(given)
        self._idle: queue.SimpleQueue[OnnxModel] = queue.SimpleQueue()
        self._idle.put(self._onnx)
        for _ in range(given.instances - 1):
            self._idle.put(OnnxModel(given.model, given.threads))
        self._threads = ThreadPoolExecutor(given.instances)

    async def predict(self, payload: InferRequest, *_: Any) -> InferResponse:
        loop = asyncio.get_running_loop()
        outputs = await loop.run_in_executor(self._threads, self._run, _feeds(payload))
        return _response(self.name, outputs)

    def _run(self, feeds: Tensors) -> dict[str, Any]:
        model = self._idle.get()
        try:
            return model.run(feeds)
        finally:
            self._idle.put(model)


def _feeds(payload: InferRequest) -> dict[str, Any]:
    return {tensor.name: tensor.as_numpy() for tensor in payload.inputs}


def _response(model: str, outputs: Tensors) -> InferResponse:
    tensors = []
    for name, array in outputs.items():
        tensor = InferOutput(name, list(array.shape), from_np_dtype(array.dtype))
        tensor.set_data_from_numpy(array, binary_data=True)
        tensors.append(tensor)
    return InferResponse(generate_uuid(), model, tensors)


def main() -> None:
    given = arguments()
    predictor = ThreadedPredictor if given.settings.get("executor") else Predictor
    grpc, http = given.ports
    flags.grpc_max_receive_message_length = flags.grpc_max_send_message_length = LARGEST_MESSAGE
    logs = bool(given.settings.get("latency_log", True))
    server = ModelServer(http_port=http, grpc_port=grpc, enable_latency_logging=logs)
    server.start([predictor(given)])


if __name__ == "__main__":
    main()
