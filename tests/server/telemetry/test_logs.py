"""Log lines are JSON objects, one a line, unless people read them."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from headrace.server.telemetry.logs import JsonFormatter, configure

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
