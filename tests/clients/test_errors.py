"""The table from status to exception, and the details that travel with a status."""

import pickle

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from headrace.client import errors


def packed(*details: object) -> tuple[tuple[str, bytes]]:
    status = status_pb2.Status(code=8)
    for detail in details:
        status.details.add().Pack(detail)
    return ((errors.DETAILS_KEY, status.SerializeToString()),)


RETRY = error_details_pb2.RetryInfo()
RETRY.retry_delay.FromMilliseconds(1500)
INFO = error_details_pb2.ErrorInfo(reason="QUEUE_FULL", domain="headrace")


@pytest.mark.parametrize(("code", "kind"), errors.CLASS_OF.items())
def test_each_status_has_its_class(code: grpc.StatusCode, kind: type[errors.HeadraceError]) -> None:
    error = errors.error_of(code, "why")
    assert type(error) is kind
    assert error.code is code
    assert kind.__doc__ is not None
    assert kind.__doc__.startswith(code.name)


def test_a_status_outside_the_table_is_the_base_class() -> None:
    error = errors.error_of(grpc.StatusCode.DATA_LOSS, "why")
    assert type(error) is errors.HeadraceError
    assert error.code is grpc.StatusCode.DATA_LOSS


@pytest.mark.parametrize(("wait", "said"), [(0.25, "0.25"), (0.00859503, "0.009"), (12.0, "12")])
def test_the_message_says_all_there_is(wait: float, said: str) -> None:
    error = errors.error_of(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full", "QUEUE_FULL", wait)
    assert str(error) == f"RESOURCE_EXHAUSTED: queue full [QUEUE_FULL] (retry after {said} s)"


@pytest.mark.parametrize(
    "error",
    [errors.Overloaded(grpc.StatusCode.RESOURCE_EXHAUSTED, "a", "b", 1.0), errors.BadResponse("c")],
)
def test_exceptions_cross_processes(error: errors.HeadraceError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)


def test_details_are_found_in_any_order() -> None:
    assert errors.read_details(packed(RETRY, INFO)) == ("QUEUE_FULL", 1.5)
    assert errors.read_details((("x", "y"), *packed(INFO, RETRY))) == ("QUEUE_FULL", 1.5)


def test_details_of_another_kind_are_passed_over() -> None:
    assert errors.read_details(packed(error_details_pb2.DebugInfo(detail="x"))) == ("", None)
    assert errors.read_details(()) == ("", None)


def test_unreadable_details_count_as_absent() -> None:
    assert errors.read_details(((errors.DETAILS_KEY, b"\xff\xff"),)) == ("", None)


def test_no_delay_is_not_a_delay_of_zero() -> None:
    assert errors.read_details(packed(error_details_pb2.RetryInfo())) == ("", 0.0)
    assert errors.read_details(packed(INFO)) == ("QUEUE_FULL", None)
