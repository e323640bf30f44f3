"""The jobs that a command line means."""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from headrace.bench import arrivals
from headrace.bench.commands import values
from headrace.bench.commands.listener import listener
from headrace.bench.scenario import explained
from headrace.bench.spec import Job, OpenLoad, SteppedLoad, TraceLoad


class UsageError(Exception):
    """The options, together, make no sense; the message says which and why."""


def jobs(given: argparse.Namespace, address: str) -> list[Job]:
    """The jobs that the options mean for `address`, or "name=address": one for each load.

    Raises UsageError, naming each option or key that is wrong.
    """
    data = _file(given.job) if given.job else {}
    data["target"] = {**data.get("target", {}), **_target(given, address)}
    loads = _loads(given) or [data.get("load", {"kind": "closed"})]
    if requests := _requests(given):
        data["requests"] = requests
    if not data.get("requests"):
        raise UsageError("expected a model: say -m NAME, --request, or --job FILE")
    data.update(
        {
            name: value
            for name in ("duration", "warm_up", "processes", "pulse", "seed")
            if (value := getattr(given, name)) is not None
        }
    )
    return [_validated({**data, "load": load}) for load in loads]


def _validated(data: dict[str, Any]) -> Job:
    try:
        job = Job.model_validate(data)
    except ValidationError as error:
        raise UsageError(explained(error)) from error
    if "duration" not in data and isinstance(job.load, SteppedLoad | TraceLoad):
        try:
            length = arrivals.length(job.load)
        except arrivals.TraceError as error:
            raise UsageError(str(error)) from error
        if length is not None:
            job = job.model_copy(update={"duration": length})
    return job


def _file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--job {path}: {error}") from error


def _target(given: argparse.Namespace, address: str) -> dict[str, Any]:
    name, named, address = address.rpartition("=")
    protocol = given.protocol
    if protocol is None:
        protocol = "http" if "://" in address else "grpc"
        protocol = "sensor" if getattr(given, "sessions", None) else protocol
    target = {"name": name if named else address, "address": address, "protocol": protocol}
    for option in ("transport", "adaptor"):
        if (value := getattr(given, option)) is not None:
            target[option] = value
    if (pid := _pid(given.pid, address)) is not None:
        target["pid"] = pid
    return target


def _pid(words: str, address: str) -> int | None:
    if words == "none":
        return None
    if words != "auto":
        try:
            return values.count(words)
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"--pid: expected a process, auto or none, got {words!r}") from error
    return listener(address)


def _requests(given: argparse.Namespace) -> list[dict[str, Any]]:
    one = {
        "model": given.model,
        "version": given.model_version,
        "inputs": given.inputs,
        "shapes": dict(given.shape) if given.shape else None,
        "deadline": given.deadline,
        "parameters": dict(given.parameter) if given.parameter else None,
    }
    one = {name: value for name, value in one.items() if value is not None}
    if given.request and one:
        names = ", ".join(one)
        raise UsageError(f"--request says all of a request: put {names} into it")
    if one and "model" not in one:
        raise UsageError(f"expected -m NAME beside {', '.join(one)}")
    return given.request or ([one] if one else [])


# What makes a load, its kind, and the options that belong to it.
_ARRIVALS = ("arrivals", "burstiness")
_LOADS: dict[str, tuple[str, tuple[str, ...]]] = {
    "concurrency": ("closed", ("think",)),
    "rate": ("open", _ARRIVALS),
    "steps": ("steps", ("ramp", *_ARRIVALS)),
    "trace": ("trace", ("speed",)),
    "burst": ("burst", ("period",)),
    "sessions": ("sensor", ("sample_rate", "chunk", "window", "hop")),
}
_FIELDS = {"concurrency": "callers", "trace": "file", "burst": "count"}


def _loads(given: argparse.Namespace) -> list[dict[str, Any]]:
    """The loads that the options mean; none where there is no option for one."""
    made = next((name for name in _LOADS if getattr(given, name, None) is not None), None)
    kind, own = _LOADS[made] if made else ("closed", ())
    details = {name: getattr(given, name, None) for _, names in _LOADS.values() for name in names}
    details = {name: value for name, value in details.items() if value is not None}
    for name in details.keys() - set(own):
        makers = [f"--{maker}" for maker, (_, names) in _LOADS.items() if name in names]
        raise UsageError(f"--{name.replace('_', '-')} goes with {' or '.join(makers)}")
    if made is None:
        return []
    details = _gamma(details)
    value = getattr(given, made)
    each = value if made in ("concurrency", "rate") else [value]
    return [{"kind": kind, _FIELDS.get(made, made): one, **details} for one in each]


def open_load(given: argparse.Namespace) -> OpenLoad | None:
    """The law of arrivals where a question finds the rates itself; None where none is asked."""
    details = {name: getattr(given, name) for name in _ARRIVALS if getattr(given, name) is not None}
    return OpenLoad.model_validate({"rate": 1.0, **_gamma(details)}) if details else None


def _gamma(details: dict[str, Any]) -> dict[str, Any]:
    """A burstiness asks for gamma gaps, and for no others."""
    if "burstiness" not in details:
        return details
    if details.get("arrivals", "gamma") != "gamma":
        raise UsageError(f"--burstiness goes with --arrivals gamma, not {details['arrivals']}")
    return {**details, "arrivals": "gamma"}
