"""Coverage-guided fuzzing of what reads requests: `python fuzz_codec.py -runs=100000 [CORPUS]`.

Whatever bytes come, reading them gives a request or an error of the table. `test_atheris.py` runs
it for a while; on its own it goes on for as long as it is let.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["headrace.server.rpc", "headrace.inference.tensors"]):
    from headrace.server.rpc import codec
    from headrace.server.rpc.limits import Limits, cost_of
    from headrace.server.rpc.wire import Reader

from google.protobuf.message import DecodeError

from headrace.server.errors import InvalidInput, Unsupported

LIMITS = Limits(elements=1 << 12, parameters=8, tensors=8, head_bytes=1 << 12)


def read(data: bytes) -> None:
    """Any exception but these is a finding."""
    try:
        wire = Reader(LIMITS.head_bytes).read(data)
        assert cost_of(wire) >= 0
        request = codec.decode(wire, 0.0, None, limits=LIMITS)
    except (DecodeError, InvalidInput, Unsupported):
        return
    for tensor in request.inputs:
        assert tensor.array.size <= LIMITS.elements


if __name__ == "__main__":
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()
