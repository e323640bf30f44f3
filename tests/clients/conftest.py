from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from clients.fake_server import LONG, Either, FakeServer
from headrace.inference.v2 import grpc_service_pb2_grpc as rpc


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()  # type: ignore[abstract]
    pool = ThreadPoolExecutor(4)
    grpc_server = grpc.server(pool)
    rpc.add_GRPCInferenceServiceServicer_to_server(fake, grpc_server)
    fake.address = f"127.0.0.1:{grpc_server.add_insecure_port('127.0.0.1:0')}"
    grpc_server.start()
    yield fake
    fake.cancelled.set()
    grpc_server.stop(None).wait(LONG)
    pool.shutdown()


@pytest.fixture(params=["sync", "asyncio"])
def client(request: pytest.FixtureRequest, server: FakeServer) -> Either:
    return Either(request.param, server.address)
