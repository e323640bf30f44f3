"""Log lines are JSON objects, one a line, unless people read them."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from opentelemetry.trace import NonRecordingSpan, SpanContext

from headrace.server.telemetry.current import CURRENT
from headrace.server.telemetry.logs import (
    ACCESS_NAME,
    ALIKE,
    EQUAL,
    PERIOD,
    HumanFormatter,
    JsonFormatter,
    RepeatFilter,
    configure,
)

LOG = logging.getLogger("headrace.test")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _root() -> Iterator[None]:
    """The root logger as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def written(
    monkeypatch: pytest.MonkeyPatch, form: str, level: str = "info", stream: Any = None
) -> io.StringIO:
    output: io.StringIO = stream or io.StringIO()
    monkeypatch.setattr(sys, "stderr", output)
    configure(form, level)
    return output


@pytest.mark.parametrize("form", ["json", "auto"])
def test_a_line_is_an_object(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    output = written(monkeypatch, form)
    LOG.warning("model %s:\nß", "m")
    (line,) = output.getvalue().splitlines()
    said = json.loads(line)
    assert datetime.fromisoformat(said.pop("time")).tzinfo == UTC
    assert said == {"level": "warning", "logger": "headrace.test", "message": "model m:\nß"}


def test_an_exception_stays_on_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    output = written(monkeypatch, "json")
    try:
        raise ValueError("no")
    except ValueError:
        LOG.exception("it failed")
    (line,) = output.getvalue().splitlines()
    said = json.loads(line)
    assert (said["level"], said["message"]) == ("error", "it failed")
    assert said["exception"].startswith("Traceback")
    assert said["exception"].endswith("ValueError: no")


def test_the_time_is_the_records() -> None:
    record = logging.LogRecord("n", logging.INFO, "f", 1, "m", (), None)
    record.created = 0.25
    assert json.loads(JsonFormatter().format(record))["time"] == "1970-01-01T00:00:00.250+00:00"


@pytest.mark.parametrize(("form", "stream"), [("human", None), ("auto", Terminal())])
def test_people_get_words(monkeypatch: pytest.MonkeyPatch, form: str, stream: Any) -> None:
    output = written(monkeypatch, form, stream=stream)
    LOG.info("loaded")
    assert "INFO" in output.getvalue()
    assert output.getvalue().endswith(" loaded\n")
    assert "{" not in output.getvalue()


def test_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    output = written(monkeypatch, "json", "error")
    LOG.warning("unheard")
    LOG.error("heard")
    assert [json.loads(line)["message"] for line in output.getvalue().splitlines()] == ["heard"]
    quiet, loud = output, written(monkeypatch, "json", "debug")
    LOG.debug("fine print")
    assert "fine print" in loud.getvalue()
    assert "fine print" not in quiet.getvalue()


def lines(output: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.getvalue().splitlines()]


def record(message: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("n", logging.WARNING, "f", 1, message, arguments, None)


def test_what_is_left_out_is_counted_once() -> None:
    now = 100.0
    only = RepeatFilter(lambda: now)
    passed = [only.filter(record("no")) for _ in range(1000)].count(True)
    now += PERIOD
    late = record("no")
    assert only.filter(late)
    assert json.loads(JsonFormatter().format(late))["suppressed"] == 1000 - passed


def test_what_repeats_itself_is_counted() -> None:
    now = 100.0
    only = RepeatFilter(lambda: now)
    assert [only.filter(record("no")) for _ in range(EQUAL + 7)].count(True) == EQUAL
    assert only.filter(record("something else"))
    now += PERIOD
    late = record("no")
    assert only.filter(late)
    assert json.loads(JsonFormatter().format(late))["suppressed"] == 7
    assert "7 more" in HumanFormatter(iso=False).format(late)
    following = record("no")
    assert only.filter(following)
    assert "suppressed" not in json.loads(JsonFormatter().format(following))


def test_one_statement_cannot_flood_the_log_by_saying_it_in_other_words() -> None:
    only = RepeatFilter(lambda: 100.0)
    passed = [only.filter(record("request %d failed", n)) for n in range(ALIKE * 3)]
    assert passed.count(True) == ALIKE


def test_lines_of_calls_all_pass() -> None:
    only = RepeatFilter(lambda: 100.0)
    access = logging.LogRecord(ACCESS_NAME, logging.INFO, "f", 1, "call", (), None)
    assert all(only.filter(access) for _ in range(ALIKE * 3))


def test_fields_stand_beside_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    output = written(monkeypatch, "json")
    LOG.info("call", extra={"fields": {"status": "OK"}})
    assert lines(output)[0]["status"] == "OK"


def test_levels_are_switched_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    monkeypatch.setattr(sys, "stderr", output)
    log = configure("json", "info")
    log.change({"log_warning": False, "log_verbose_level": 1})
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        LOG.log(level, "at %d", level)
    assert [line["level"] for line in lines(output)] == ["debug", "info", "error"]
    log.change({"log_info": False, "log_error": False, "log_verbose_level": 0})
    LOG.critical("unheard")
    assert len(lines(output)) == 3


def test_a_line_names_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    output = written(monkeypatch, "json")
    context = SpanContext(0xABC, 0x12, is_remote=False)
    token = CURRENT.set(NonRecordingSpan(context))
    LOG.info("inside")
    CURRENT.reset(token)
    LOG.info("outside")
    inside, outside = lines(output)
    assert (inside["trace_id"], inside["span_id"]) == (f"{0xABC:032x}", f"{0x12:016x}")
    assert "trace_id" not in outside


@pytest.mark.parametrize("level", ["info", "debug"])
def test_that_a_caller_left_while_he_was_answered_is_no_error(
    monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    output, logger = written(monkeypatch, "json", level), logging.getLogger("grpc._cython.cygrpc")
    left = grpc._cython.cygrpc.ExecuteBatchError("gone")  # type: ignore[attr-defined]
    for error in (left, ValueError("wrong")):
        try:
            raise error
        except Exception:
            logger.exception("raised by a method")
    levels = [json.loads(line)["level"] for line in output.getvalue().splitlines()]
    assert levels == (["debug", "error"] if level == "debug" else ["error"])
