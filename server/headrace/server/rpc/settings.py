"""LogSettings and TraceSetting: what is logged and traced, changed while the server runs.

Names and values are Triton's (its extensions "logging" and "trace"). No file is written by a
caller's word: log_file and trace_file cannot be set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.server.errors import InvalidInput, Unsupported
from headrace.server.telemetry import logs
from headrace.server.telemetry.sampling import Rule, Sampling, rate_of, with_rate

_LOG_KINDS = {
    "log_info": "bool_param",
    "log_warning": "bool_param",
    "log_error": "bool_param",
    "log_verbose_level": "uint32_param",
    "log_format": "string_param",
}
_LEVELS = {"OFF": False, "TIMESTAMPS": True}
_TRACE_KEYS = ("trace_level", "trace_rate", "trace_count")


def log_settings(request: pb.LogSettingsRequest) -> pb.LogSettingsResponse:
    """Changes what `request` names; all or, with an error, nothing. Raises InvalidInput."""
    log = logs.installed()
    if log is None:
        raise Unsupported("LogSettings: this process was not started by headrace serve")
    log.change({key: _log_value(key, value) for key, value in request.settings.items()})
    response = pb.LogSettingsResponse()
    for key, value in log.as_dict().items():
        kind = _LOG_KINDS.get(key, "string_param")
        setattr(response.settings[key], kind, value)
    return response


def _log_value(key: str, value: Any) -> Any:
    if key == "log_file":
        raise InvalidInput("setting 'log_file': logs go to standard error, this cannot be changed")
    if key not in _LOG_KINDS:
        raise InvalidInput(f"setting '{key}': expected one of {', '.join(_LOG_KINDS)}")
    kind = value.WhichOneof("parameter_choice")
    if kind != _LOG_KINDS[key]:
        raise InvalidInput(f"setting '{key}': expected {_LOG_KINDS[key]}, got {kind}")
    found = getattr(value, kind)
    if key == "log_format" and found not in logs.FORMATS:
        raise InvalidInput(f"setting '{key}': expected {' or '.join(logs.FORMATS)}, got {found!r}")
    return found


def trace_setting(
    sampling: Sampling | None, request: pb.TraceSettingRequest
) -> pb.TraceSettingResponse:
    """Changes what `request` names, for one model or all others; all or, with an error, nothing.

    A setting without a value is put back: a model's to that of all, that of all to what the server
    was started with. Raises InvalidInput; Unsupported for changes where no traces are sent.
    """
    model = request.model_name
    if sampling is None:
        if request.settings:
            raise Unsupported(
                "TraceSetting: traces go nowhere; start the server with "
                "OTEL_EXPORTER_OTLP_ENDPOINT, and with headrace[otlp] installed"
            )
        return _trace_response(Rule(on=False), -1)
    if request.settings:
        rule, left = sampling.get(model)
        defaults = sampling.get() if model else (sampling.start, -1)
        for key, setting in request.settings.items():
            rule, left = _changed(rule, left, key, list(setting.value), defaults)
        cleared = model and not any(setting.value for setting in request.settings.values())
        if cleared and set(_TRACE_KEYS) <= set(request.settings):
            sampling.forget(model)
        else:
            sampling.set(rule, left, model)
    return _trace_response(*sampling.get(model))


def _changed(
    rule: Rule, left: int, key: str, values: Sequence[str], defaults: tuple[Rule, int]
) -> tuple[Rule, int]:
    """`rule` and `left` with one setting changed."""
    default, default_left = defaults
    if key == "trace_level":
        return replace(rule, on=_level(values) if values else default.on), left
    if key == "trace_rate":
        if not values:
            return replace(rule, ratio=default.ratio), left
        return with_rate(rule, _whole(key, values, least=1)), left
    if key == "trace_count":
        return rule, _whole(key, values, least=-1) if values else default_left
    if key in ("trace_file", "log_frequency"):
        raise InvalidInput(f"setting '{key}': traces go to an OTLP receiver, not to files")
    raise InvalidInput(f"setting '{key}': expected one of {', '.join(_TRACE_KEYS)}")


def _level(values: Sequence[str]) -> bool:
    for value in values:
        if value not in _LEVELS:
            known = " or ".join(_LEVELS)
            raise InvalidInput(f"setting 'trace_level': expected {known}, got {value!r}")
    return any(_LEVELS[value] for value in values)


def _whole(key: str, values: Sequence[str], least: int) -> int:
    try:
        (text,) = values
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        got = ", ".join(map(repr, values))
        raise InvalidInput(f"setting '{key}': expected a whole number from {least}, got {got}")
    return number


def _trace_response(rule: Rule, left: int) -> pb.TraceSettingResponse:
    response = pb.TraceSettingResponse()
    for key, value in (
        ("trace_level", "TIMESTAMPS" if rule.on else "OFF"),
        ("trace_rate", str(rate_of(rule))),
        ("trace_count", str(left)),
        ("log_frequency", "0"),
        ("trace_file", ""),
        ("trace_mode", "opentelemetry"),
    ):
        response.settings[key].value.append(value)
    return response
