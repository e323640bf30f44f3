"""The server of clients/interop.md: prints its two addresses, and serves until its input ends.

python tests/interop/serve.py
"""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from support import models, server

# One executor, so that what runs and what waits is known.
SINGLE = "instance_group [{ count: 1 kind: KIND_CPU }]\n"
STATE = 'state { input_name: "state" output_name: "next" data_type: TYPE_FP32 dims: [1] }'
MOST_BYTES = 32 << 20
# What a client may send on one connection through the breaking proxy.
CUT_BYTES = 6_000


def write_repository(path: pathlib.Path) -> None:
    for datatype in models.ONNX_TYPES:
        models.write(path, f"identity_{datatype}", models.identity(datatype))
    models.write(path, "scalar", models.identity("FP32", ()))
    models.write(path, "double", models.scaled(2))
    models.write(path, "arithmetic", models.arithmetic())
    for version in (1, 3):
        models.write(path, "versions", models.scaled(version), version=version)
    (path / "versions" / "model.toml").write_text("versions = [1, 3]\n")
    models.write(
        path, "accumulate", models.accumulate(), config=f"sequence_batching {{ {STATE} }}\n"
    )
    for name in ("lab", "lab_deadline", "lab_cancel"):
        models.write(path, name, models.lab(), config=SINGLE)
    bounded = SINGLE + "dynamic_batching { default_queue_policy { max_queue_size: 2 } }\n"
    models.write(path, "lab_bounded", models.lab(), config=bounded)


class Cutter:
    """Carries bytes to `target`, and breaks each connection after `limit` bytes of the client's."""

    def __init__(self, target: str, limit: int) -> None:
        self._host, _, self._port = target.rpartition(":")
        self._limit = limit

    async def start(self) -> str:
        started = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        return f"127.0.0.1:{started.sockets[0].getsockname()[1]}"

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._host, int(self._port))
        ways = [
            asyncio.create_task(_copy(reader, far_writer, self._limit)),
            asyncio.create_task(_copy(far_reader, writer, sys.maxsize)),
        ]
        # Whichever way ends first, both are broken: bytes under way are lost.
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for end in (writer, far_writer):
            end.transport.abort()
        await asyncio.wait(ways)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int) -> None:
    with contextlib.suppress(ConnectionError):
        while limit > 0 and (data := await reader.read(min(limit, 1 << 16))):
            limit -= len(data)
            writer.write(data)
            await writer.drain()


async def serve(address: str) -> None:
    """Until standard input ends, or whoever holds it does."""
    cut_address = await Cutter(address, CUT_BYTES).start()
    sys.stdout.write(f"{address} {cut_address}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_repository(folder / "models")
        settings = {
            "HEADRACE_MAX_MESSAGE_BYTES": str(MOST_BYTES),
            # Plans of models are kept apart from the user's.
            "XDG_CACHE_HOME": str(folder / "cache"),
        }
        with server.serving(folder / "log", folder / "models", environment=settings) as running:
            asyncio.run(serve(running.grpc))


if __name__ == "__main__":
    main()
