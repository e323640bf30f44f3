"""A bare grpc.aio server whose answer to ModelInfer is the request's own bytes.

It bounds from below what a server on grpcio can take for a request, and so makes processor times of
one machine comparable with those of another. The bytes are never looked at.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import uvloop
from onnx_peer import Arguments, OnnxModel, arguments, declared

SERVICE = "inference.GRPCInferenceService"
YES = b"\x08\x01"  # `bool ready = 1`, or `live`


def main() -> None:
    uvloop.run(serve(arguments()))


async def serve(given: Arguments) -> None:
    about = metadata(given.name, declared(OnnxModel(given.model, threads=1).inputs))
    answers = {"ServerLive": YES, "ServerReady": YES, "ModelReady": YES, "ModelMetadata": about}
    handlers: dict[str, Any] = {
        name: grpc.unary_unary_rpc_method_handler(always(a)) for name, a in answers.items()
    }
    handlers["ModelInfer"] = grpc.unary_unary_rpc_method_handler(echo)
    server = grpc.aio.server(
        options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"{given.host}:{given.ports[0]}")
    await server.start()
    await asyncio.Event().wait()


async def echo(request: bytes, _: Any) -> bytes:
    return request


def always(answer: bytes) -> Any:
    async def handler(_: bytes, __: Any) -> bytes:
        return answer

    return handler


def metadata(name: str, inputs: list[dict[str, Any]]) -> bytes:
    """A ModelMetadataResponse (`name` = 1, `inputs` = 4), in the protobuf encoding."""
    tensors = [
        field(1, tensor["name"].encode())
        + field(2, tensor["datatype"].encode())
        + field(3, b"".join(varint(dim % 2**64) for dim in tensor["shape"]))
        for tensor in inputs
    ]
    return field(1, name.encode()) + b"".join(field(4, tensor) for tensor in tensors)


def field(number: int, value: bytes) -> bytes:
    """A length-delimited field of a message."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


if __name__ == "__main__":
    main()
