"""Log lines on standard error: for people on a terminal, JSON otherwise.

A line that comes again and again is written a few times in a while, and then counted: whatever goes
wrong with each request must not fill the disk. What is logged can be changed while the server runs.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from headrace.server.telemetry.current import trace_ids

# So many equal lines, and lines of one statement, in so many seconds.
EQUAL, ALIKE, PERIOD = 5, 100, 10.0
# Kinds of lines that are remembered.
_MOST_KINDS = 1000
ACCESS_NAME = "headrace.access"
# Who tells of callers that left, and what it is raised as: a class that gRPC does not export.
_GRPC, _LEFT = "grpc._cython.cygrpc", "ExecuteBatchError"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, exception; the ids of
    the trace it belongs to; how many lines like it were left out; and an access line's fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        ids = trace_ids()
        if ids is not None:
            line["trace_id"], line["span_id"] = ids
        suppressed = getattr(record, "suppressed", 0)
        if suppressed:
            line["suppressed"] = suppressed
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class HumanFormatter(logging.Formatter):
    """Time of day or, with `iso`, RFC 3339; level; message."""

    def __init__(self, *, iso: bool) -> None:
        dates = "%Y-%m-%dT%H:%M:%S%z" if iso else "%H:%M:%S"
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", dates)

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        suppressed = getattr(record, "suppressed", 0)
        return f"{text} (and {suppressed} more like it before)" if suppressed else text


class RepeatFilter(logging.Filter):
    """Of equal lines lets `EQUAL` pass in `PERIOD` seconds, and `ALIKE` of those that one statement
    makes; the first one after that says how many were left out.

    Lines that are wished for, one for each call, all pass.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == ACCESS_NAME:
            return True
        equal = self._passes((record.name, record.getMessage()), EQUAL, record)
        return equal and self._passes((record.name, f"{record.msg}\0"), ALIKE, record)

    def _passes(self, kind: tuple[str, str], most: int, record: logging.LogRecord) -> bool:
        now = self._clock()
        since, count = self._seen.get(kind, (now, 0))
        if now - since >= PERIOD:
            record.suppressed = getattr(record, "suppressed", 0) + max(0, count - most)
            since, count = now, 0
        if len(self._seen) >= _MOST_KINDS and kind not in self._seen:
            self._seen.clear()
        self._seen[kind] = since, count + 1
        return count < most


def soften(record: logging.LogRecord) -> bool:
    """Makes of gRPC's errors a debug message where all they say is that a caller left while his
    answer was written: callers with short deadlines do so all the time. Every record passes."""
    kind = record.exc_info[0] if record.exc_info else None
    if record.name == _GRPC and kind is not None and kind.__name__ == _LEFT:
        record.levelno, record.levelname = logging.DEBUG, logging.getLevelName(logging.DEBUG)
    return True


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What is logged: the names are those of the protocol's LogSettings.

    log_verbose_level: 0 for no debug messages. log_format: "default" or "ISO8601".
    """

    log_file: str = ""
    log_info: bool = True
    log_warning: bool = True
    log_error: bool = True
    log_verbose_level: int = 0
    log_format: str = "default"

    def passes(self, level: int) -> bool:
        if level >= logging.ERROR:
            return self.log_error
        if level >= logging.WARNING:
            return self.log_warning
        return self.log_info if level >= logging.INFO else self.log_verbose_level > 0


FORMATS = ("default", "ISO8601")


class Log:
    """The one handler of all logs, and what it lets pass."""

    def __init__(self, form: str, level: str) -> None:
        """`form` is auto, human or json; `level` debug, info, warning or error."""
        self._handler = logging.StreamHandler(sys.stderr)
        self._json = form == "json" or (form == "auto" and not sys.stderr.isatty())
        least: int = getattr(logging, level.upper())
        self.settings = LogSettings(
            log_info=least <= logging.INFO,
            log_warning=least <= logging.WARNING,
            log_verbose_level=int(least <= logging.DEBUG),
        )
        self._handler.addFilter(soften)
        self._handler.addFilter(lambda record: self.settings.passes(record.levelno))
        self._handler.addFilter(RepeatFilter())
        self._apply()

    def install(self) -> None:
        """Sends all logs of this process to standard error."""
        global _installed  # as the root logger is
        logging.basicConfig(handlers=[self._handler], force=True)
        _installed = self
        self._apply()

    def change(self, values: dict[str, Any]) -> None:
        """Sets what `values` names."""
        self.settings = replace(self.settings, **values)
        self._apply()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self.settings)

    def _apply(self) -> None:
        iso = self.settings.log_format == "ISO8601"
        self._handler.setFormatter(JsonFormatter() if self._json else HumanFormatter(iso=iso))
        # What nobody will see is not even made: the root's level is asked first.
        levels = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)
        least = next((level for level in levels if self.settings.passes(level)), logging.CRITICAL)
        if self._handler in logging.getLogger().handlers:
            logging.getLogger().setLevel(least)


_installed: Log | None = None


def installed() -> Log | None:
    """What writes the logs of this process; None where that is not the server's own affair."""
    return _installed


def configure(form: str, level: str) -> Log:
    """Sends all logs to standard error. `form` is auto, human or json."""
    log = Log(form, level)
    log.install()
    return log
