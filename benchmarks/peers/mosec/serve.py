"""mosec: an HTTP front in Rust, and worker processes of Python behind it."""

from __future__ import annotations

import os
from typing import Any

from mosec import Server, Worker
from onnx_peer import LARGEST_MESSAGE, OnnxModel, Tensors, arguments, inherited
from safetensors.numpy import load, save


class OnnxWorker(Worker):
    """Tensors as binary bodies in and out."""

    resp_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        super().__init__()
        given = inherited()
        self._onnx = OnnxModel(given.model, given.threads)

    def deserialize(self, data: bytes) -> Tensors:
        tensors: Tensors = load(bytes(data))  # mosec hands over a bytearray
        return tensors

    def serialize(self, data: Tensors) -> bytes:
        body: bytes = save(dict(data))
        return body

    def forward(self, data: Any) -> Any:
        # With batching on, mosec gives a list and expects one as long.
        return self._onnx.run_many(data) if self.max_batch_size > 1 else self._onnx.run(data)


def main() -> None:
    given = arguments()
    os.environ |= {
        "MOSEC_ADDRESS": given.host,
        "MOSEC_PORT": str(given.ports[0]),
        "MOSEC_MAX_REQUEST_SIZE": str(LARGEST_MESSAGE),
    }
    server = Server()
    if given.max_batch > 1 and OnnxModel(given.model, 1).batches:
        wait = max(round(given.max_delay * 1000), 1)  # milliseconds
        server.append_worker(
            OnnxWorker, num=given.instances, max_batch_size=given.max_batch, max_wait_time=wait
        )
    else:
        server.append_worker(OnnxWorker, num=given.instances)
    server.run()


if __name__ == "__main__":
    main()
