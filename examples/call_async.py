"""Call a model many times at once from asyncio: the server batches what arrives together.

    python examples/call_async.py [ADDRESS] [MODEL] [--calls N]

Without a model's name it takes the first one that is ready. The inputs are random and made to fit.
"""

import argparse
import asyncio

from headrace.client import AsyncClient, DeadlineExceeded, InferResult, Overloaded, random_inputs


async def call_all(address: str, name: str, calls: int) -> None:
    async with AsyncClient(address) as client:
        name = name or (await client.repository_index(ready=True, deadline=5))[0].name
        model = await client.model_metadata(name, deadline=5)

        async def call() -> InferResult | None:
            try:
                return await client.infer(name, random_inputs(model), deadline=10)
            except (Overloaded, DeadlineExceeded):
                return None  # Refused, or too late: what a loaded server says to some.

        results = await asyncio.gather(*(call() for _ in range(calls)))

    answered = [result for result in results if result is not None]
    print(f"{len(answered)} of {calls} calls answered by {name}")
    for output, array in answered[0].items() if answered else ():
        print(f"{output}: {array.dtype}{list(array.shape)}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", nargs="?", default="127.0.0.1:8001")
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("--calls", type=int, default=32, help="how many, all at once")
    args = parser.parse_args(argv)
    asyncio.run(call_all(args.address, args.model, args.calls))


if __name__ == "__main__":
    main()
