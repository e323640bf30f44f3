"""The span of the call that is being worked on, for whoever may say something about it.

It knows nothing of OpenTelemetry, which is an extra: without it no call has a span.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.trace import Span

CURRENT: ContextVar[Span | None] = ContextVar("headrace_span", default=None)


def trace_ids() -> tuple[str, str] | None:
    """The ids of the trace and of the span, in hexadecimal; None where nothing is traced."""
    span = CURRENT.get()
    if span is None:
        return None
    context = span.get_span_context()
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"
