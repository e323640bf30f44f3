#!/usr/bin/env bash
# Everything here that needs a GPU, in one go: ONNX Runtime for CUDA beside what is installed, the
# tests that are marked gpu, the programs, and a short table last.
#
#   benchmarks/gpu/run.sh [FOLDER FOR RESULTS] [OPTIONS OF python -m gpu]
#
# WHEELS=folder takes packages from there and asks no registry. PYTHON says which interpreter. What
# is already importable is not installed again, but for ONNX Runtime, whose CPU build must not
# come first.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
out=${1:-$root/.cache/gpu}
shift || true
python=${PYTHON:-python3}
site=${SITE:-${TMPDIR:-/tmp}/headrace-gpu}
from=()
if [ -n "${WHEELS:-}" ]; then
  from=(--no-index --find-links "$WHEELS")
fi

mkdir -p "$out"
if [ ! -d "$site/onnxruntime" ]; then
  "$python" -m pip install --quiet --no-deps --target "$site" "${from[@]}" onnxruntime-gpu
fi
export PYTHONPATH="$site:$root/server:$root/batcher:$root/protos/python:$root/clients/python:$root/benchmarks"
missing=$("$python" - <<'PYTHON'
import importlib.util

NEEDED = {  # the extras cpu, bench, fast and examples of pyproject.toml, and what runs the tests
    "aiohttp": "aiohttp", "flatbuffers": "flatbuffers", "google.rpc": "googleapis-common-protos",
    "grpc": "grpcio", "grpc_health": "grpcio-health-checking", "grpc_reflection": "grpcio-reflection",
    "hdrh": "hdrhistogram", "hpack": "hpack", "onnx": "onnx", "prometheus_client": "prometheus-client",
    "psutil": "psutil", "pydantic": "pydantic", "pygrpc_native": "pygrpc-native",
    "pynvml": "nvidia-ml-py", "pytest": "pytest", "pytest_asyncio": "pytest-asyncio",
    "pytest_timeout": "pytest-timeout", "hypothesis": "hypothesis", "rich": "rich",
    "uvloop": "uvloop",
}
def found(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
print(*[package for module, package in NEEDED.items() if not found(module)])
PYTHON
)
if [ -n "$missing" ]; then
  # shellcheck disable=SC2086 # several words are meant
  "$python" -m pip install --quiet --target "$site" "${from[@]}" $missing
fi

"$python" -c 'import onnxruntime; print(onnxruntime.__version__, onnxruntime.get_available_providers())'
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
(cd "$root" && "$python" -m pytest -q -m gpu tests) || echo "tests marked gpu: not all passed"
cd "$root/benchmarks"
"$python" -m gpu --out "$out/gpu.json" "$@" | tee "$out/gpu.txt"
