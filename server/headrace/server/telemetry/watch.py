"""What the rest of the server tells telemetry: calls that begin and end, versions that serve."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.batcher.executor import Completion
from headrace.batcher.observer import Observer
from headrace.batcher.request import Batch, Reject, Request, Why
from headrace.server import errors
from headrace.server.telemetry.calls import Calls
from headrace.server.telemetry.refusals import Refusals
from headrace.server.telemetry.sampling import Metadata
from headrace.server.telemetry.statistics import ModelStatistics

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from headrace.server.telemetry.tracing import Tracing

ACCESS = logging.getLogger("headrace.access")

# The name and version of the model that would answer; the version or both empty where none would.
Resolve = Callable[[str, str], tuple[str, str]]


@dataclass(frozen=True, slots=True)
class End:
    """How a call ended. status: gRPC's. message and reason: what the caller is told of an error,
    and its `google.rpc.ErrorInfo.reason`. queued: the seconds it waited to be run, None where it
    was not answered by a run."""

    status: str
    message: str = ""
    reason: str = ""
    queued: float | None = None


class Call:
    """One call: what came, when (of the monotonic clock), from whom; and its span, if it is traced.

    It ends once, by one of Watch's methods. Without a `method` it is a part of a call that is
    watched as a whole, and nothing is counted.
    """

    __slots__ = ("arrival", "caller", "method", "span")

    def __init__(self, method: str, arrival: float, span: Span | None) -> None:
        self.method = method
        self.arrival = arrival
        self.caller = ""
        self.span = span


class Watch:
    """`on`: without it, nothing is counted but how inference calls end. `access_log`: a line for
    each call. `warns`: the log tells of requests that are refused, which is of use where those who
    send them are others. `resolve`: who knows the models; until it is set, there are none."""

    def __init__(
        self,
        tracing: Tracing | None = None,
        *,
        on: bool = True,
        access_log: bool = False,
        warns: bool = True,
    ) -> None:
        self.calls = Calls()
        self.tracing = tracing
        self.resolve: Resolve = lambda model, version: ("", "")
        self._on = on
        self._access_log = access_log
        self._warns = warns
        self._counts_only = on and not access_log

    def begin(
        self,
        method: str,
        metadata: Callable[[], Metadata | None],
        model: Callable[[], str] = str,
        arrival: float | None = None,
    ) -> Call:
        """`method` is a full name, package.Service/Method. `metadata` gives the caller's, and is
        asked only where calls are traced; `model` gives the model's name in the caller's words, and
        is asked only where models are traced by rules of their own. `arrival`:
        None for now."""
        if arrival is None:
            arrival = time.monotonic()
        if self.tracing is None:
            return Call(method, arrival, None)
        span = self.tracing.begin(method, model, metadata() or (), arrival)
        return Call(method, arrival, span)

    def answered(
        self, call: Call, model: str = "", version: str = "", queued: float | None = None
    ) -> None:
        """`model` and `version` as the server has them; empty for calls that concern none.
        `queued` as End has it."""
        if self._counts_only and call.span is None:  # as nearly always
            self.calls.ended((call.method, model, version, "OK"), time.monotonic() - call.arrival)
        else:
            self._ended(call, model, version, End("OK", queued=queued))

    def failed(self, call: Call, error: Exception, model: str = "", version: str = "") -> None:
        """`model` and `version` in the caller's words."""
        row = errors.row_of(error)
        end = End(row.code.name, errors.message_of(error), row.reason)
        self._ended(call, *self._known(model, version), end)

    def aborted(self, call: Call, status: str, message: str) -> None:
        """The call was ended with a status that is not OK; it concerns no one model."""
        self._ended(call, "", "", End(status, message))

    def cancelled(self, call: Call, model: str = "", version: str = "") -> None:
        """The caller has left; `model` and `version` in its words."""
        self._ended(call, *self._known(model, version), End("CANCELLED", "the caller has left"))

    def _known(self, model: str, version: str) -> tuple[str, str]:
        return self.resolve(model, version) if model else ("", "")

    def _ended(self, call: Call, model: str, version: str, end: End) -> None:
        seconds = time.monotonic() - call.arrival
        if self._on:
            self.calls.ended((call.method, model, version, end.status), seconds)
        if self._access_log:
            _log_access(call, model, version, end, seconds)
        if call.span is not None and self.tracing is not None:
            self.tracing.end(call.span, model, version, end)

    def observer(self, model: str, version: str, statistics: ModelStatistics) -> Observer:
        """For the runner of a version that will serve."""
        if self._warns:
            statistics.refusals = Refusals(model, version)
        observers: list[Observer] = [statistics] if self._on else []
        if self.tracing is not None:
            observers.append(self.tracing.observer(model, version))
        return observers[0] if len(observers) == 1 else Several(observers)


def _log_access(call: Call, model: str, version: str, end: End, seconds: float) -> None:
    fields: dict[str, str | float] = {
        "method": call.method,
        "model": model,
        "version": version,
        "status": end.status,
        "seconds": round(seconds, 6),
        "caller": call.caller,
    }
    if end.reason:
        fields["reason"] = end.reason
    if end.queued is not None:
        fields["queue_seconds"] = round(end.queued, 6)
    text = "%s %s %s in %.1f ms"
    ACCESS.info(text, call.method, model, end.status, seconds * 1e3, extra={"fields": fields})


class Several(Observer):
    """Tells each of `observers`, in order."""

    def __init__(self, observers: list[Observer]) -> None:
        self._observers = observers

    def accepted(self, request: Request) -> None:
        for observer in self._observers:
            observer.accepted(request)

    def rejected(self, refusal: Reject) -> None:
        for observer in self._observers:
            observer.rejected(refusal)

    def dropped(self, request: Request, why: Why, now: float) -> None:
        for observer in self._observers:
            observer.dropped(request, why, now)

    def dispatched(self, batch: Batch) -> None:
        for observer in self._observers:
            observer.dispatched(batch)

    def hung(self, batch: Batch, now: float) -> None:
        for observer in self._observers:
            observer.hung(batch, now)

    def completed(self, batch: Batch, completion: Completion, now: float) -> None:
        for observer in self._observers:
            observer.completed(batch, completion, now)

    def wasted(self, request: Request, batch: Batch, now: float) -> None:
        for observer in self._observers:
            observer.wasted(request, batch, now)

    def answered(self, request: Request, batch: Batch, completion: Completion, now: float) -> None:
        for observer in self._observers:
            observer.answered(request, batch, completion, now)

    def failed(self, request: Request, now: float) -> None:
        for observer in self._observers:
            observer.failed(request, now)
