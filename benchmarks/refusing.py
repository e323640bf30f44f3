"""A bare grpc.aio server that refuses every call: how soon callers can know, on grpcio, at best.

It reads no message and decides nothing. Prints its address when it serves.
"""

from __future__ import annotations

from typing import Any

import grpc
import uvloop


class Refusing(grpc.GenericRpcHandler):
    """Takes calls of any method."""

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        return grpc.unary_unary_rpc_method_handler(refuse)


async def refuse(_: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
    context.set_details("refused")
    return b""


async def main() -> None:
    server = grpc.aio.server(handlers=(Refusing(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main())
