"""Health and reflection, spoken by their own stubs, as a stranger's tool would."""

from __future__ import annotations

from typing import Any

import grpc

from conformance.cases import PATIENCE, SERVICE, Cases, Env, failure

case = Cases()

HEALTH_SERVICE = "grpc.health.v1.Health"


def _check(env: Env, service: str) -> str:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    stub = health_pb2_grpc.HealthStub(env.channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service=service))
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


@case
def health_check(env: Env) -> None:
    for service in ("", SERVICE, "identity_FP32"):
        assert _check(env, service) == "SERVING", service
    assert failure(lambda: _check(env, "nothing")).code == grpc.StatusCode.NOT_FOUND


@case
def health_watch_follows_a_model(env: Env) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    stub = health_pb2_grpc.HealthStub(env.channel)
    call = stub.Watch(health_pb2.HealthCheckRequest(service="watched"), timeout=PATIENCE)
    name = health_pb2.HealthCheckResponse.ServingStatus.Name
    assert name(next(call).status) == "SERVING"
    env.client.unload_model("watched")
    assert name(next(call).status) == "NOT_SERVING"
    assert _check(env, "watched") == "NOT_SERVING"
    assert _check(env, "") == "SERVING"
    env.client.load_model("watched")
    assert name(next(call).status) == "SERVING"
    call.cancel()


@case
def health_watch_of_the_unknown(env: Env) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    stub = health_pb2_grpc.HealthStub(env.channel)
    call = stub.Watch(health_pb2.HealthCheckRequest(service="nothing"), timeout=PATIENCE)
    name = health_pb2.HealthCheckResponse.ServingStatus.Name
    assert name(next(call).status) == "SERVICE_UNKNOWN"
    call.cancel()


@case
def health_of_a_model_that_failed_to_load(env: Env) -> None:
    assert _check(env, "broken") == "NOT_SERVING"


@case.each({"v1alpha": "grpc.reflection.v1alpha", "v1": "grpc.reflection.v1"})
def reflection(env: Env, package: str) -> None:
    """Services can be listed, and each one's file and those it imports be had and understood."""
    from google.protobuf import descriptor_pb2, descriptor_pool
    from grpc_reflection.v1alpha import reflection_pb2

    method = f"/{package}.ServerReflection/ServerReflectionInfo"
    call: Any = env.channel.stream_stream(
        method,
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )

    def ask(**question: str) -> Any:
        (answer,) = call(iter([reflection_pb2.ServerReflectionRequest(**question)]), timeout=20)
        return answer

    listed = ask(list_services="").list_services_response.service
    names = {service.name for service in listed}
    assert {SERVICE, HEALTH_SERVICE, f"{package}.ServerReflection"} <= names
    for name in names:
        answer = ask(file_containing_symbol=name)
        assert not answer.HasField("error_response"), (name, answer.error_response)
    pool = descriptor_pool.DescriptorPool()
    known: set[str] = set()

    def add(data: bytes) -> None:
        file = descriptor_pb2.FileDescriptorProto.FromString(data)
        for needed in file.dependency:
            if needed not in known:
                files = ask(file_by_filename=needed).file_descriptor_response
                for found in files.file_descriptor_proto:
                    add(found)
        if file.name not in known:
            known.add(file.name)
            pool.Add(file)

    for data in ask(file_containing_symbol=SERVICE).file_descriptor_response.file_descriptor_proto:
        add(data)
    assert pool.FindServiceByName(SERVICE).methods_by_name["ModelInfer"]
    missing = ask(file_containing_symbol="no.such.Service")
    assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
