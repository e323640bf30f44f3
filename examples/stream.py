"""Send many requests on one stream and take the answers as they complete.

    python examples/stream.py [ADDRESS] [MODEL] [--requests N]

Without a model's name it takes the first one that is ready. One request has no inputs on purpose:
its answer is an error, and the stream goes on.
"""

import argparse
from collections.abc import Iterator

from headrace.client import (
    Client,
    InferOptions,
    ModelMetadata,
    StreamRequest,
    random_inputs,
)


def requests(model: ModelMetadata, count: int) -> Iterator[StreamRequest]:
    for number in range(count):
        options = InferOptions(request_id=f"good-{number}")
        yield StreamRequest(model.name, random_inputs(model), options)
    yield StreamRequest(model.name, {}, InferOptions(request_id="bad"))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", nargs="?", default="127.0.0.1:8001")
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("--requests", type=int, default=8)
    args = parser.parse_args(argv)

    with Client(args.address) as client:
        name = args.model or client.repository_index(ready=True, deadline=5)[0].name
        model = client.model_metadata(name, deadline=5)
        for answer in client.infer_stream(requests(model, args.requests), deadline=30):
            if answer.error is not None:
                print(f"{answer.id}: {answer.error}")
            else:
                outputs = {k: list(v.shape) for k, v in answer.unwrap().items()}
                print(f"{answer.id}: {outputs}")


if __name__ == "__main__":
    main()
