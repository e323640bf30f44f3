"""Call a model once, without an event loop.

    python examples/call_sync.py [ADDRESS] [MODEL]

Without a model's name it takes the first one that is ready. The input is random and made to fit.
"""

import argparse

from headrace.client import Client, HeadraceError, random_inputs


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", nargs="?", default="127.0.0.1:8001")
    parser.add_argument("model", nargs="?", default="")
    args = parser.parse_args(argv)

    with Client(args.address) as client:
        try:
            name = args.model or client.repository_index(ready=True, deadline=5)[0].name
            model = client.model_metadata(name, deadline=5)
            result = client.infer(name, random_inputs(model), deadline=5)
        except HeadraceError as error:
            raise SystemExit(f"the call failed: {error}") from error

    print(f"{result.model}, version {result.version}")
    for output, array in result.items():
        print(f"{output}: {array.dtype}{list(array.shape)} {array.ravel()[:4]} ...")


if __name__ == "__main__":
    main()
