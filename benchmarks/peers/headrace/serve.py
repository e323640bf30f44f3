"""Headrace with a model, as `headrace serve` would be started by hand."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
from typing import Any

COMPILED = pathlib.Path(__file__).resolve().parents[3] / ".cache" / "compiled"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", action="append", required=True, dest="ports")
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--settings", type=json.loads, default={})
    given = parser.parse_args()
    repository = given.folder / "models"
    version = repository / given.name / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").symlink_to(given.model.resolve())
    # These are the server's; all others are the model's.
    engine = given.settings.pop("rpc_engine", "auto")
    compiled = given.settings.pop("compiled", False)
    fronts = given.settings.pop("front_processes", 0)
    lines = [f"{key} = {_toml(value)}" for key, value in given.settings.items()]
    (repository / given.name / "model.toml").write_text("\n".join(lines))
    grpc, http = given.ports
    command = [sys.executable, "-m", "headrace.server.cli", "serve", str(repository)]
    command += ["--host", given.host, "--grpc-port", grpc, "--http-port", http]
    command += ["--rpc-engine", engine, "--front-processes", str(fronts)]
    command += ["--follow-links", "true"]
    environment = _compiled() if compiled else os.environ
    os.execve(sys.executable, [*command, "--log-level", "warning"], environment)


def _compiled() -> dict[str, str]:
    """Where what `make compiled` has built comes before the sources."""
    if not COMPILED.is_dir():
        sys.exit(f"{COMPILED} is not there: `make compiled`, in a checkout, builds it")
    return {**os.environ, "PYTHONPATH": str(COMPILED)}


def _toml(value: Any) -> str:
    """A value as TOML writes it inside a line; strings and numbers are as in JSON."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


if __name__ == "__main__":
    main()
