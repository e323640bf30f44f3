"""Opening a session: what is asked for is what runs, or the error says what is missing."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import external_data_helper

from headrace.server.errors import LoadFailed
from headrace.server.executors import resources
from headrace.server.executors import session as module
from headrace.server.executors.session import Provider, SessionOptions, open_session, resolve
from server import graphs


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    return graphs.save(graphs.plus(1.0), tmp_path / "model.onnx")


def offer(patch: pytest.MonkeyPatch, *providers: str, devices: bool = True) -> None:
    patch.setattr(ort, "get_available_providers", lambda: [*providers, "CPUExecutionProvider"])
    patch.setattr(module, "_cuda_devices", lambda: devices)


def test_cuda_asked_for_and_absent_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch)
    with pytest.raises(LoadFailed) as caught:
        resolve(Provider.CUDA)
    said = str(caught.value)
    assert "CUDA execution provider was asked for" in said
    assert f"ONNX Runtime {ort.__version__} offers CPUExecutionProvider" in said
    assert "install headrace[gpu]" in said


@pytest.mark.parametrize(
    ("wanted", "providers", "devices", "found"),
    [
        (Provider.CPU, ["CUDAExecutionProvider"], True, Provider.CPU),
        (Provider.CUDA, ["CUDAExecutionProvider"], True, Provider.CUDA),
        (Provider.AUTO, ["CUDAExecutionProvider"], True, Provider.CUDA),
        (Provider.AUTO, ["CUDAExecutionProvider"], False, Provider.CPU),
        (Provider.AUTO, [], True, Provider.CPU),
    ],
)
def test_the_provider_is_made_definite(
    monkeypatch: pytest.MonkeyPatch,
    wanted: Provider,
    providers: list[str],
    devices: bool,
    found: Provider,
) -> None:
    offer(monkeypatch, *providers, devices=devices)
    assert resolve(wanted) is found


class FellBack:
    """A session that was to run on CUDA and does not."""

    def __init__(self, path: str, settings: Any, providers: list[Any]) -> None:
        self.providers = providers

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


def test_a_silent_fall_back_to_the_cpu_is_an_error(
    monkeypatch: pytest.MonkeyPatch, file: pathlib.Path
) -> None:
    monkeypatch.setattr(ort, "InferenceSession", FellBack)
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)
    with pytest.raises(LoadFailed, match=r"model\.onnx: .*fell back to the CPU: check the driver"):
        open_session(file, SessionOptions(Provider.CUDA))


class Recorded(FellBack):
    settings: Any = None
    given: Any = None

    def __init__(self, path: str, settings: Any, providers: list[Any]) -> None:
        Recorded.settings, Recorded.given = settings, providers

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]


def test_the_device_is_the_one_asked_for(
    monkeypatch: pytest.MonkeyPatch, file: pathlib.Path
) -> None:
    monkeypatch.setattr(ort, "InferenceSession", Recorded)
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)
    open_session(file, SessionOptions(Provider.CUDA, device_id=3))
    (name, options), fallback = Recorded.given
    assert (name, fallback) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert options["device_id"] == 3


def test_threads_are_bounded(monkeypatch: pytest.MonkeyPatch, file: pathlib.Path) -> None:
    monkeypatch.setattr(ort, "InferenceSession", Recorded)
    open_session(file, SessionOptions(Provider.CPU, 3, 2))
    settings = Recorded.settings
    assert Recorded.given == ["CPUExecutionProvider"]
    assert (settings.intra_op_num_threads, settings.inter_op_num_threads) == (3, 2)
    assert settings.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert settings.get_session_config_entry("session.inter_op.allow_spinning") == "0"
    open_session(file, SessionOptions(Provider.CPU, 1, 1))
    assert Recorded.settings.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL


@pytest.mark.parametrize(
    ("version", "threads", "spins"),
    [
        ("1.26.0", 2, True),
        ("1.31.1", 2, True),
        ("2.0.0", 2, True),
        ("1.25.2", 2, False),  # it would spin for tens of milliseconds
        ("1.9.0", 2, False),
        ("1.31.1", 1, False),
    ],
)
def test_threads_spin_only_for_a_moment(
    monkeypatch: pytest.MonkeyPatch, file: pathlib.Path, version: str, threads: int, spins: bool
) -> None:
    monkeypatch.setattr(ort, "InferenceSession", Recorded)
    monkeypatch.setattr(ort, "__version__", version)
    open_session(file, SessionOptions(Provider.CPU, threads, 1))
    entry = Recorded.settings.get_session_config_entry
    assert entry("session.intra_op.allow_spinning") == str(int(spins))
    if spins:
        assert 0 < int(entry("session.intra_op.spin_duration_us")) <= 1000


def test_a_model_is_opened(file: pathlib.Path) -> None:
    session = open_session(file, SessionOptions())
    (y,) = session.run(None, {"x": np.zeros((1, 3), np.float32)})
    assert y.tolist() == [[1.0] * 3]


def test_weights_may_lie_beside_the_model(tmp_path: pathlib.Path) -> None:
    model = graphs.plus(5.0)
    external_data_helper.convert_model_to_external_data(
        model, location="weights.bin", size_threshold=0, convert_attribute=False
    )
    onnx.save(model, str(tmp_path / "model.onnx"))
    assert (tmp_path / "weights.bin").stat().st_size == 4
    session = open_session(tmp_path / "model.onnx", SessionOptions())
    assert session.run(None, {"x": np.zeros((1, 3), np.float32)})[0].tolist() == [[5.0] * 3]
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(LoadFailed, match=r"weights\.bin"):
        open_session(tmp_path / "model.onnx", SessionOptions())


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x08" * 20])
def test_what_is_no_model_does_not_load(tmp_path: pathlib.Path, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(LoadFailed, match=r"^broken\.onnx: "):
        open_session(path, SessionOptions())


def test_a_file_that_is_gone_does_not_load(tmp_path: pathlib.Path) -> None:
    with pytest.raises(LoadFailed, match=r"^gone\.onnx: "):
        open_session(tmp_path / "gone.onnx", SessionOptions())


@pytest.mark.parametrize(("threads", "bound"), [(1, ""), (2, ""), (3, "6;8")])
def test_threads_as_many_as_processors_are_bound_to_them(
    monkeypatch: pytest.MonkeyPatch, file: pathlib.Path, threads: int, bound: str
) -> None:
    monkeypatch.setattr(ort, "InferenceSession", Recorded)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7, 2, 5}, raising=False)
    monkeypatch.setattr(resources, "cpu_quota", lambda: None)
    options = SessionOptions(Provider.CPU, threads)
    open_session(file, options)
    entry = Recorded.settings.get_session_config_entry
    if bound:
        assert entry("session.intra_op_thread_affinities") == bound
        assert options.cpus == [2, 5, 7]
    else:
        with pytest.raises(RuntimeError):
            entry("session.intra_op_thread_affinities")
        assert options.cpus == []


def test_threads_of_a_quota_are_not_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other groups' threads are on those processors too."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(resources, "cpu_quota", lambda: 2.0)
    assert SessionOptions(Provider.CPU, 2).cpus == []
    assert SessionOptions(Provider.CPU, 4).cpus == []
