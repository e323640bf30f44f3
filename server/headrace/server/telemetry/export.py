"""Whether OpenTelemetry's variables ask for anything to be sent, and who sends it.

The SDK and its exporters are an extra. They are imported only where they are asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.server.telemetry.otlp import Otlp

_log = logging.getLogger(__name__)

TRACES, METRICS = "TRACES", "METRICS"


def wanted(signal: str, environment: Mapping[str, str]) -> bool:
    """Whether `signal` is to be sent."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    chosen = environment.get(f"OTEL_{signal}_EXPORTER", "").strip()
    if chosen:
        return "otlp" in [name.strip() for name in chosen.split(",")]
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    return any(environment.get(name, "").strip() for name in endpoints)


def configured(environment: Mapping[str, str]) -> Otlp | None:
    """What the variables ask for; None where they ask for nothing, or for what cannot be had.

    The latter is logged, and the server serves all the same: it is there for its callers.
    """
    if not (wanted(TRACES, environment) or wanted(METRICS, environment)):
        return None
    try:
        from headrace.server.telemetry.otlp import Otlp

        return Otlp(environment)
    except ModuleNotFoundError as error:
        _log.error(
            "nothing is sent to OpenTelemetry: %s is missing, it comes with an extra, "
            "pip install 'headrace[otlp]'",
            error.name,
        )
    except ValueError as error:
        _log.error("nothing is sent to OpenTelemetry: %s", error)
    return None
