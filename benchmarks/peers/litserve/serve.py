"""LitServe with a LitAPI that reads and writes tensors as binary bodies."""

# No postponed annotations here: LitServe reads those of `decode_request` as they stand.
from typing import Annotated, Any

import litserve
from fastapi import Body, Response
from onnx_peer import OnnxModel, Tensors, arguments, inherited
from safetensors.numpy import load, save


class OnnxAPI(litserve.LitAPI):
    """One request at a time. LitServe sets up one in each worker process."""

    def setup(self, device: str) -> None:
        given = inherited()
        self._onnx = OnnxModel(given.model, given.threads)

    def decode_request(self, request: Annotated[bytes, Body()]) -> Tensors:
        tensors: Tensors = load(request)
        return tensors

    def predict(self, x: Tensors) -> Any:
        return self._onnx.run(x)

    def encode_response(self, output: Tensors) -> Response:
        return Response(save(dict(output)), media_type="application/octet-stream")


class BatchedOnnxAPI(OnnxAPI):
    """Lists of requests in, lists of answers out."""

    def batch(self, inputs: list[Tensors]) -> list[Tensors]:
        return inputs

    def unbatch(self, output: list[Tensors]) -> list[Tensors]:
        return output

    def predict(self, x: Any) -> Any:
        return self._onnx.run_many(x)


def main() -> None:
    given = arguments()
    if given.max_batch > 1 and OnnxModel(given.model, 1).batches:
        api = BatchedOnnxAPI(max_batch_size=given.max_batch, batch_timeout=given.max_delay)
    else:
        api = OnnxAPI()
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=given.instances)
    server.run(host=given.host, port=given.ports[0], generate_client_file=False)


if __name__ == "__main__":
    main()
