"""The one table: each error's status, HTTP code and reason, and its details on the wire."""

from __future__ import annotations

import pathlib

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2

from headrace.batcher import errors as batcher
from headrace.server import errors
from headrace.server.errors import Row, message_of, retry_after, rich_status, row_of

Code = grpc.StatusCode

ROWS = [
    (errors.ModelNotFound("m"), Code.NOT_FOUND, 404, "MODEL_NOT_FOUND"),
    (errors.InvalidInput("m"), Code.INVALID_ARGUMENT, 400, "INVALID_INPUT"),
    (batcher.Overloaded("m", 0.25), Code.RESOURCE_EXHAUSTED, 429, "OVERLOADED"),
    (batcher.DeadlineTooShort("m"), Code.DEADLINE_EXCEEDED, 504, "DEADLINE_TOO_SHORT"),
    (batcher.Overtaken("m", 0.5), Code.RESOURCE_EXHAUSTED, 429, "OVERTAKEN"),
    (batcher.Expired("m"), Code.DEADLINE_EXCEEDED, 504, "EXPIRED_IN_QUEUE"),
    (errors.DeadlineExceeded("m"), Code.DEADLINE_EXCEEDED, 504, "EXPIRED_ON_ARRIVAL"),
    (errors.ModelUnavailable("m"), Code.UNAVAILABLE, 503, "MODEL_UNAVAILABLE"),
    (errors.ModelProcessAway("m"), Code.UNAVAILABLE, 503, "MODEL_PROCESS_AWAY"),
    (errors.LoadFailed("m"), Code.FAILED_PRECONDITION, 412, "LOAD_FAILED"),
    (batcher.Draining("m"), Code.UNAVAILABLE, 503, "DRAINING"),
    (errors.Draining("m"), Code.UNAVAILABLE, 503, "DRAINING"),
    (errors.Unauthenticated("m"), Code.UNAUTHENTICATED, 401, "UNAUTHENTICATED"),
    (errors.PermissionDenied("m"), Code.PERMISSION_DENIED, 403, "PERMISSION_DENIED"),
    (errors.Unsupported("m"), Code.UNIMPLEMENTED, 501, "UNSUPPORTED"),
    (batcher.ExecutionFailed("m"), Code.INTERNAL, 500, "EXECUTION_FAILED"),
    (batcher.ExecutorHung("m"), Code.INTERNAL, 500, "EXECUTOR_HUNG"),
    (batcher.OutOfMemory("m"), Code.RESOURCE_EXHAUSTED, 429, "OUT_OF_MEMORY"),
    (MemoryError("m"), Code.RESOURCE_EXHAUSTED, 429, "OUT_OF_MEMORY"),
    (batcher.NoExecutor("m"), Code.UNAVAILABLE, 503, "NO_EXECUTOR"),
    (RuntimeError("m"), Code.INTERNAL, 500, "INTERNAL"),
]


def details(error: Exception) -> list[AnyMessage]:
    return list(rich_status(error).details)


@pytest.mark.parametrize(
    ("error", "code", "http", "reason"), ROWS, ids=[f"{type(r[0]).__module__}.{r[3]}" for r in ROWS]
)
def test_each_row(error: Exception, code: grpc.StatusCode, http: int, reason: str) -> None:
    assert row_of(error) == Row(code, http, reason)
    status = rich_status(error)
    assert (status.code, status.message) == (code.value[0], "m")
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == (reason, "headrace")


def test_the_table_is_complete() -> None:
    assert {type(row[0]) for row in ROWS} == {*errors.TABLE, RuntimeError}


@pytest.mark.parametrize(
    "error",
    [
        batcher.Overloaded("full", 1.5),
        batcher.DeadlineTooShort("others run", 1.5),
        errors.DeadlineExceeded("over", 1.5),
    ],
)
def test_who_may_come_back_is_told_when(error: Exception) -> None:
    retry = error_details_pb2.RetryInfo()
    assert details(error)[1].Unpack(retry)
    assert retry.retry_delay.ToNanoseconds() == 1_500_000_000
    assert retry_after(error) == 1.5


@pytest.mark.parametrize(
    "error", [row[0] for row in ROWS if row[3] not in ("OVERLOADED", "OVERTAKEN")]
)
def test_other_errors_do_not(error: Exception) -> None:
    assert retry_after(error) is None
    assert len(details(error)) == 1


def test_a_kind_of_error_has_the_row_of_what_it_is_a_kind_of() -> None:
    class Special(errors.InvalidInput):
        pass

    assert row_of(Special()).reason == "INVALID_INPUT"


def test_an_error_without_words_is_called_by_its_name() -> None:
    assert message_of(KeyError()) == "KeyError"


def test_a_long_message_is_cut_between_characters() -> None:
    said = message_of(ValueError("x" + "ß" * 5000))
    assert said.startswith("xß")
    assert said.endswith("ß...")
    assert len(said.encode()) < 2000
    assert message_of(ValueError("ß" * 500)) == "ß" * 500


def test_the_page_of_errors_has_each_row() -> None:
    page = pathlib.Path(__file__).parents[2].joinpath("docs", "errors.md").read_text("utf-8")
    lines = [[cell.strip() for cell in line.split("|")[1:4]] for line in page.splitlines()]
    told = {tuple(cells) for cells in lines if len(cells) == 3 and cells[1].isdecimal()}
    rows = {*errors.TABLE.values(), errors.INTERNAL}
    assert told == {(row.code.name, str(row.http), row.reason) for row in rows}
