"""Triton, out of PyTriton's wheel, with the backend beside this file, which is compiled here."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from onnx_peer import Arguments, OnnxModel, Tensor, arguments, declared

BACKEND = "onnxruntime"  # NVIDIA's name for it, by which Triton chooses some defaults
_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = ("-std=c++17", "-O2", "-shared", "-fPIC", "-fvisibility=hidden")
_SOURCES = Path(__file__).parent


def main() -> None:
    given = arguments()
    server = _package("pytriton") / "tritonserver" / "bin" / "tritonserver"
    backends = compiled(Path(sys.prefix, "backends"), _onnx_runtime())
    repository = Path(given.folder, "models")
    write_repository(repository, given, OnnxModel(given.model, threads=1))
    # In this process's place, so that the signals that end a peer reach the server.
    os.execv(server, [str(server), *_options(given, repository, backends)])


def compiled(cache: Path, onnx_runtime: Path) -> Path:
    """The folder of backends with ours in it, compiled where it is not in `cache` yet."""
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        sys.exit(f"no C++ compiler to make the backend with: none of {', '.join(_COMPILERS)}")
    command = [compiler, *_FLAGS, f'-DORT_LIBRARY="{onnx_runtime}"', str(_SOURCES / "backend.cc")]
    backends = cache / _digest(command)
    library = backends / BACKEND / f"libtriton_{BACKEND}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        # Another peer may be at the same: each writes its own file, and the last one stays.
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            made = Path(folder, library.name)
            done = subprocess.run([*command, "-o", str(made)], stderr=subprocess.PIPE, text=True)
            if done.returncode != 0:
                sys.exit(f"the backend cannot be compiled by {compiler}\n{done.stderr}")
            made.replace(library)
    return backends


def write_repository(repository: Path, given: Arguments, model: OnnxModel) -> None:
    """Triton's folder of models, with this one alone."""
    version = repository / given.name / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").symlink_to(Path(given.model).resolve())
    (version.parent / "config.pbtxt").write_text(configuration(given, model))


def configuration(given: Arguments, model: OnnxModel) -> str:
    """The model's, in protobuf's text format, where strings may be written as in JSON."""
    rows = given.max_batch if model.batches else 0
    lines = [
        f"name: {json.dumps(given.name)}",
        f"backend: {json.dumps(BACKEND)}",
        f"max_batch_size: {rows}",
        *_tensors("input", model.inputs, model.batches),
        *_tensors("output", model.outputs, model.batches),
        f"instance_group {{ kind: KIND_CPU count: {given.instances} }}",
        'parameters { key: "intra_op_thread_count"',
        f'  value {{ string_value: "{given.threads}" }} }}',
    ]
    if rows > 1:
        delay = round(given.max_delay * 1e6)
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {delay} }}")
    return "\n".join(lines) + "\n"


def _tensors(kind: str, tensors: Iterable[Tensor], batches: bool) -> Iterator[str]:
    """Their declarations, in which the batch dimension is left out."""
    skip = 1 if batches else 0
    for each in declared(tensors):
        shape = each["shape"][skip:]
        dims = shape or [1]  # Triton wants one at least
        reshape = " reshape { shape: [] }" if batches and not shape else ""
        name = json.dumps(each["name"])
        words = f"name: {name} data_type: TYPE_{each['datatype']} dims: {dims}{reshape}"
        yield f"{kind} {{ {words} }}"


def _options(given: Arguments, repository: Path, backends: Path) -> list[str]:
    grpc, http, metrics = given.ports
    return [
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        "--disable-auto-complete-config",
        f"--grpc-address={given.host}",
        f"--grpc-port={grpc}",
        f"--http-address={given.host}",
        f"--http-port={http}",
        f"--metrics-address={given.host}",
        f"--metrics-port={metrics}",
        "--allow-gpu-metrics=false",
        "--log-info=false",
        "--exit-timeout-secs=5",
    ]


def _onnx_runtime() -> Path:
    return next(_package("onnxruntime").glob("capi/libonnxruntime.so.*"))


def _package(name: str) -> Path:
    """Where a package is installed; importing PyTriton would take a second."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        sys.exit(f"{name} is not installed")
    return Path(spec.origin).parent


def _digest(command: Sequence[str]) -> str:
    """Of all that the backend is made of."""
    found = hashlib.sha256(json.dumps(command).encode())
    for path in sorted([*_SOURCES.glob("*.h"), *_SOURCES.glob("*.cc")]):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


if __name__ == "__main__":
    main()
