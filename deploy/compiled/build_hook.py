"""Compiles the path of a request to machine code, for wheels that are asked for it.

Theory of operation. mypyc, which comes with mypy, turns typed Python into extension modules. The
sources stay as they are and are installed beside them; Python takes the extension where there is
one. What is compiled is what every request or batch runs through, listed here; all else would gain
nothing. Of these modules nothing may be replaced at run time, and no interpreted class may derive
from their classes: `Observer` and the exceptions, from which others derive, are left out.

Hatchling runs this where HATCH_BUILD_HOOK_ENABLE_CUSTOM is true: `make compiled`, and the images.
Needs a C compiler, and takes about a minute. What it saves: docs/performance.md, "Compiled".
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# Folders that hold a part of the namespace, and of each what is compiled.
MODULES = {
    "batcher/headrace/batcher": (
        *("admission", "buckets", "callers", "cost", "cost_model", "curve", "demand", "executor"),
        *("fairness", "fixed", "group", "learned", "lookahead", "outcomes", "overhead"),
        *("placement", "policy", "profiled", "promise", "queue", "request", "runner"),
        *("scheduler", "sizing", "state", "trials", "waiting", "watchdog"),
    ),
    "protos/python/headrace/inference": ("tensors",),
    "server/headrace/server": (
        *("contract", "exchange", "inference"),
        *("executors/layout", "executors/onnx", "executors/padding", "executors/payload"),
        *("models/lengths",),
        *("rpc/codec", "rpc/limits", "rpc/native", "rpc/native_reader", "rpc/service", "rpc/wire"),
        *("security/guard", "streams/sequences"),
        *("telemetry/calls", "telemetry/histogram", "telemetry/statistics", "telemetry/watch"),
    ),
}
# Types were checked before. What is not installed where a wheel is built is of no type here.
_OPTIONS = (
    *("--config-file=", "--explicit-package-bases", "--namespace-packages"),
    *("--ignore-missing-imports", "--follow-imports=silent"),
)
_COMPILE = """
import sys
from mypyc.build import mypycify
from setuptools import setup
folder, *arguments = sys.argv[1:]
modules = mypycify(arguments, opt_level="3", debug_level="0")
setup(packages=[], ext_modules=modules, script_args=["--quiet", "build_ext", "-b", folder])
"""


def sources() -> list[str]:
    """What is compiled, as paths from the project's root."""
    return [f"{folder}/{name}.py" for folder, names in MODULES.items() for name in names]


def compile_into(folder: pathlib.Path, root: pathlib.Path) -> list[pathlib.Path]:
    """The extension modules, below `folder` as they are to lie in an installation.

    Raises RuntimeError with the compiler's words.
    """
    with tempfile.TemporaryDirectory() as scratch:
        # mypyc leaves C files where it is told to build; nothing is to be left among the sources.
        for name in {path.split("/")[0] for path in sources()}:
            os.symlink(root / name, pathlib.Path(scratch, name))
        roots = (each.rpartition("/headrace/")[0] for each in MODULES)
        done = subprocess.run(
            [sys.executable, "-c", _COMPILE, str(folder), *_OPTIONS, *sources()],
            cwd=scratch,
            env={**os.environ, "MYPYPATH": os.pathsep.join((*roots, "clients/python"))},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"headrace cannot be compiled: {done.stdout}{done.stderr}")
    return sorted(folder.rglob(f"*{sysconfig.get_config_var('EXT_SUFFIX')}"))


class CompiledWheel(BuildHookInterface[Any]):
    """Adds the extension modules to a wheel, which then fits one platform alone."""

    PLUGIN_NAME = "custom"
    _folder: pathlib.Path | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """`version` is of the wheel: an editable one stays interpreted."""
        if self.target_name != "wheel" or version == "editable":
            return
        self._folder = folder = pathlib.Path(tempfile.mkdtemp(prefix="headrace-"))
        for module in compile_into(folder, pathlib.Path(self.root)):
            build_data["force_include"][str(module)] = str(module.relative_to(folder))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The wheel has them now."""
        if self._folder is not None:
            shutil.rmtree(self._folder)
