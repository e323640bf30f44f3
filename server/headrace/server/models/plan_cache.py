"""Measured plans on disk, so that a restart need not measure again.

One JSON file for each model's digest. It is valid for one version of ONNX Runtime, one provider,
one machine and one contract of the model; whatever else it was written for is noticed, said in the
log, and measured again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pathlib
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnxruntime as ort

from headrace.server.executors.resources import usable_cpus
from headrace.server.models.plan import Layout, Measured, Plan, choose
from headrace.server.models.probe import Recipe, has_open_dimensions
from headrace.server.models.profile import Profile, profile_key
from headrace.server.models.spec import ModelSpec

_log = logging.getLogger(__name__)
_FORMAT = 2


def digest(path: pathlib.Path) -> str:
    """SHA-256 of a model: of its file's content, and of name, size and time of what lies beside it.

    Weights can lie outside the file, and are too large to be read for this.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256")
    beside = [p for p in path.parent.iterdir() if p != path and p.suffix != ".onnx" and p.is_file()]
    for other in sorted(beside):
        status = other.stat()
        found.update(f"{other.name} {status.st_size} {status.st_mtime_ns}".encode())
    return found.hexdigest()


@dataclass(frozen=True, slots=True)
class PlanCache:
    """The plans kept in `folder`. Whatever goes wrong with them only costs a measurement."""

    folder: pathlib.Path

    def load(self, model: str, spec: ModelSpec, plan: Plan) -> Plan | None:
        """The plan that was measured for the model of this digest, completing `plan`.

        None when there is none, or none that fits.
        """
        path = self.folder / f"{model}.json"
        try:
            kept = json.loads(path.read_text())
            stale = _differences(kept["fingerprint"], _fingerprint(spec, plan))
            if not stale:
                measured = tuple(_read(entry, spec, plan.main) for entry in kept["measured"])
                plan = replace(plan, origin="measured before", measured=measured)
                return choose(plan, guessed=has_open_dimensions(spec))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _log.warning("the plan in %s cannot be read, measuring again: %s", path, error)
            return None
        _log.info("model %s: the plan kept for it is stale: %s", spec.name, "; ".join(stale))
        return None

    def store(self, model: str, spec: ModelSpec, plan: Plan) -> None:
        """Keeps `plan` for the next start."""
        kept = {
            "fingerprint": _fingerprint(spec, plan),
            "measured": [_write(measured) for measured in plan.measured],
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.folder, delete=False) as file:
                json.dump(kept, file, indent=1)
            os.replace(file.name, self.folder / f"{model}.json")
        except OSError as error:
            _log.warning("model %s: its measured plan cannot be kept: %s", spec.name, error)


def plan_cache(folder: str) -> PlanCache | None:
    """The cache in `folder`; "auto" is in the user's cache (XDG base directories), "off" none."""
    if folder == "off":
        return None
    if folder != "auto":
        return PlanCache(pathlib.Path(folder))
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return PlanCache(pathlib.Path(base, "headrace", "plans"))


def _fingerprint(spec: ModelSpec, plan: Plan) -> dict[str, Any]:
    """What a measurement holds for."""
    return {
        "format": _FORMAT,
        "onnxruntime": ort.__version__,
        "provider": plan.main.session.provider.value,
        "processor": _processor(),
        "processors": usable_cpus(),
        "largest batch": spec.max_batch_size,
        "inputs": [[t.name, t.datatype, list(t.shape)] for t in spec.inputs],
        "outputs": [tensor.name for tensor in spec.outputs],
    }


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return ", ".join(sorted(names)) or platform.machine()


def _differences(kept: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{what} was {kept.get(what)}, is {value}"
        for what, value in now.items()
        if kept.get(what) != value
    ]


def _write(measured: Measured) -> dict[str, Any]:
    costs = measured.profile
    return {
        "threads": measured.layout.session.intra_op_threads,
        "instances": measured.layout.instances,
        "alone": measured.alone,
        "rate": measured.rate,
        "recipe": [costs.recipe.variable, costs.recipe.integers],
        "runs": costs.runs,
    }


def _read(entry: Mapping[str, Any], spec: ModelSpec, main: Layout) -> Measured:
    session = replace(main.session, intra_op_threads=int(entry["threads"]))
    runs = tuple((int(rows), float(seconds)) for rows, seconds in entry["runs"])
    costs = (
        replace(profile_key(spec, Recipe(*map(int, entry["recipe"]))), runs=runs)
        if runs
        else Profile()
    )
    layout = Layout(session, int(entry["instances"]))
    return Measured(layout, float(entry["alone"]), float(entry["rate"]), costs)
