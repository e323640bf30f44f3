"""Opening ONNX Runtime sessions: providers, threads, memory."""

from __future__ import annotations

import enum
import pathlib
from dataclasses import dataclass
from typing import Any

import onnxruntime as ort

from headrace.server.errors import LoadFailed
from headrace.server.executors.resources import cpus_for


class Provider(enum.Enum):
    """Where a model runs. AUTO takes CUDA where it can be used, else the CPU."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How a session is opened.

    intra_op_threads: threads within one operator; 1 runs on the executor's own thread.
    inter_op_threads: threads across operators; above 1 the graph runs in parallel mode.
    operator_libraries: of custom operators, to be loaded with it. profile: where each run writes
    down its operators, None for nowhere; the path's last part begins a file's name.
    """

    provider: Provider = Provider.CPU
    intra_op_threads: int = 1
    inter_op_threads: int = 1
    device_id: int = 0
    operator_libraries: tuple[pathlib.Path, ...] = ()
    profile: pathlib.Path | None = None

    @property
    def on_caller(self) -> bool:
        """Whether runs are made by the thread that asks for them, on the CPU."""
        threads = max(self.intra_op_threads, self.inter_op_threads)
        return self.provider is Provider.CPU and threads == 1

    @property
    def cpus(self) -> list[int]:
        """Those that threads are bound to, the one of the thread that runs it first; empty where
        the system places them."""
        return cpus_for(self.intra_op_threads) if self.provider is Provider.CPU else []


def resolve(wanted: Provider) -> Provider:
    """AUTO made definite. Raises LoadFailed when CUDA is asked for and cannot be had."""
    available = ort.get_available_providers()
    has_cuda = "CUDAExecutionProvider" in available
    if wanted is Provider.AUTO:
        return Provider.CUDA if has_cuda and _cuda_devices() else Provider.CPU
    if wanted is Provider.CUDA and not has_cuda:
        raise LoadFailed(
            "the CUDA execution provider was asked for, but the installed ONNX Runtime "
            f"{ort.__version__} offers {', '.join(available)}: install headrace[gpu] in place of "
            "headrace[cpu]"
        )
    return wanted


def _cuda_devices() -> bool:
    return any(pathlib.Path("/dev").glob("nvidia[0-9]*")) or pathlib.Path("/dev/dxg").exists()


# The first version that can bound it: by default threads spin for tens of milliseconds.
_BOUNDS_SPINNING = (1, 26)
_SPIN_US = "200"


def open_session(path: pathlib.Path, options: SessionOptions) -> ort.InferenceSession:
    """Opens the model at `path`. Raises LoadFailed with ONNX Runtime's words."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.intra_op_threads
    settings.inter_op_num_threads = options.inter_op_threads
    if options.inter_op_threads > 1:
        settings.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    _set_spinning(settings, options.intra_op_threads)
    if options.cpus:  # the first is the caller's; ONNX Runtime counts from 1
        others = ";".join(str(cpu + 1) for cpu in options.cpus[1:])
        settings.add_session_config_entry("session.intra_op_thread_affinities", others)
    # What fails is raised too; ONNX Runtime's own lines would come between ours, uncaught by any
    # handler, one for each failing or cancelled run.
    settings.log_severity_level = 4
    for library in options.operator_libraries:
        _register(settings, library)
    if options.profile is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(options.profile)
    try:
        session = ort.InferenceSession(str(path), settings, providers=_providers(options))
    except Exception as error:
        raise LoadFailed(f"{path.name}: {error}") from error
    if options.provider is Provider.CUDA and "CUDAExecutionProvider" not in session.get_providers():
        raise LoadFailed(
            f"{path.name}: the CUDA execution provider was asked for, but ONNX Runtime could not "
            "start it and fell back to the CPU: check the driver, and that the CUDA and cuDNN "
            "libraries (headrace[gpu] brings them) can be found"
        )
    return session


def _set_spinning(settings: ort.SessionOptions, threads: int) -> None:
    """Between the operators of a run, a thread that is woken comes too late to be of much use; one
    that spins for long takes the core from whoever is beside it (docs/performance.md)."""
    settings.add_session_config_entry("session.inter_op.allow_spinning", "0")
    bounded = tuple(map(int, ort.__version__.split(".")[:2])) >= _BOUNDS_SPINNING
    spins = bounded and threads > 1
    settings.add_session_config_entry("session.intra_op.allow_spinning", str(int(spins)))
    if spins:
        settings.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_US)


def _register(settings: ort.SessionOptions, library: pathlib.Path) -> None:
    try:
        settings.register_custom_ops_library(str(library))
    except Exception as error:
        raise LoadFailed(f"{library}: is no library of custom operators: {error}") from error


def _providers(options: SessionOptions) -> list[Any]:
    if options.provider is not Provider.CUDA:
        return ["CPUExecutionProvider"]
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    cuda = {
        "device_id": options.device_id,
        # The default doubles the arena at each growth; and exhaustive search costs
        # hundreds of milliseconds at each new shape.
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    return [("CUDAExecutionProvider", cuda), "CPUExecutionProvider"]
