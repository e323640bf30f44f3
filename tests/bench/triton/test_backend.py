"""The peer triton's backend, with the part of Triton's core in core.cc around it, and its start."""

from __future__ import annotations

import ctypes
import importlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from headrace.bench import peer_environment
from support import models

TYPES = {
    "BOOL": 1,
    "UINT8": 2,
    "UINT16": 3,
    "UINT32": 4,
    "UINT64": 5,
    "INT8": 6,
    "INT16": 7,
    "INT32": 8,
    "INT64": 9,
    "FP16": 10,
    "FP32": 11,
    "FP64": 12,
}
DTYPES = {number: np.dtype(name.lower().replace("fp", "float")) for name, number in TYPES.items()}
ONE_THREAD = {"parameters": {"intra_op_thread_count": {"string_value": "1"}}}

Arrays = Mapping[str, Any]


class Core:
    """One instance of a model, in the backend, and what is asked of it."""

    def __init__(self, core: ctypes.CDLL, backend: ctypes.CDLL, folder: Path, rows: int) -> None:
        self._core, self._backend = core, backend
        config = json.dumps({"max_batch_size": rows, **ONE_THREAD}, separators=(",", ":"))
        made = core.make_instance(str(folder).encode(), config.encode())
        self._instance = ctypes.c_void_p(made)
        self.check(backend.TRITONBACKEND_ModelInstanceInitialize(self._instance))

    def check(self, error: int | None) -> None:
        if error:
            message = self._core.TRITONSERVER_ErrorMessage(ctypes.c_void_p(error)).decode()
            self._core.TRITONSERVER_ErrorDelete(ctypes.c_void_p(error))
            raise ValueError(message)

    def close(self) -> None:
        self.check(self._backend.TRITONBACKEND_ModelInstanceFinalize(self._instance))

    def run(self, batch: Sequence[Arrays], outputs: Sequence[str], *, pieces: int = 1) -> list[Any]:
        """Of each request the outputs by name, or the error as text."""
        made = [self._request(inputs, outputs, pieces) for inputs in batch]
        requests = (ctypes.c_void_p * len(made))(*made)
        execute = self._backend.TRITONBACKEND_ModelInstanceExecute
        self.check(execute(self._instance, requests, len(made)))
        assert all(self._core.done(ctypes.c_void_p(each)) for each in made)
        assert self._core.living() == 0
        return [self._answer(ctypes.c_void_p(each)) for each in made]

    @property
    def statistics(self) -> tuple[int, int]:
        """Requests that succeeded, rows that were in batches."""
        core = self._core
        return core.succeeded(self._instance), core.batched_rows(self._instance)

    def _request(self, inputs: Arrays, outputs: Sequence[str], pieces: int) -> int:
        request: int = self._core.make_request()
        for name in outputs:
            self._core.want(ctypes.c_void_p(request), name.encode())
        for name, array in inputs.items():
            number = next(key for key, dtype in DTYPES.items() if dtype == array.dtype)
            shape = (ctypes.c_int64 * array.ndim)(*array.shape)
            data, size = array.tobytes(), ctypes.c_size_t(array.nbytes)
            cut = ctypes.c_size_t(array.nbytes // pieces)
            rank = ctypes.c_size_t(array.ndim)
            self._core.add_input(
                ctypes.c_void_p(request), name.encode(), number, shape, rank, data, size, cut
            )
        return request

    def _answer(self, request: ctypes.c_void_p) -> Arrays | str:
        if error := self._core.error_of(request):
            return str(error.decode())
        return dict(self._output(request, i) for i in range(self._core.output_count(request)))

    def _output(self, request: ctypes.c_void_p, index: int) -> tuple[str, Any]:
        number, rank, size = ctypes.c_int(), ctypes.c_size_t(), ctypes.c_size_t()
        shape, data = ctypes.POINTER(ctypes.c_int64)(), ctypes.c_void_p()
        places = [ctypes.byref(each) for each in (number, shape, rank, data, size)]
        name = self._core.output_of(request, ctypes.c_size_t(index), *places)
        flat = np.frombuffer(ctypes.string_at(data, size.value), DTYPES[number.value])
        return name.decode(), flat.reshape(shape[: rank.value])


@pytest.fixture(scope="module")
def program() -> Any:
    """The peer's serve.py, which finds what peers share on its path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(peer_environment.folder() / "shared"))
        yield importlib.import_module("peers.triton.serve")


@pytest.fixture(scope="module")
def libraries(program: Any, tmp_path_factory: pytest.TempPathFactory) -> list[ctypes.CDLL]:
    """The core, and the backend, which finds the core's functions in the process."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    cache = tmp_path_factory.mktemp("backends")
    core, source = cache / "libcore.so", Path(__file__).with_name("core.cc")
    headers = f"-I{peer_environment.folder() / 'triton'}"
    build = [compiler, "-std=c++17", "-shared", "-fPIC", headers, str(source), "-o", str(core)]
    subprocess.run(build, check=True)
    runtime = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    backend = program.compiled(cache, runtime) / "onnxruntime" / "libtriton_onnxruntime.so"
    opened = [ctypes.CDLL(str(core), mode=ctypes.RTLD_GLOBAL), ctypes.CDLL(str(backend))]
    for name in ("make_instance", "make_request"):
        getattr(opened[0], name).restype = ctypes.c_void_p
    for name in ("TRITONSERVER_ErrorMessage", "error_of", "output_of"):
        getattr(opened[0], name).restype = ctypes.c_char_p
    opened[0].done.restype = ctypes.c_bool
    for name in ("Initialize", "Finalize", "Execute"):
        getattr(opened[1], f"TRITONBACKEND_ModelInstance{name}").restype = ctypes.c_void_p
    return opened


@pytest.fixture
def load(libraries: list[ctypes.CDLL], tmp_path: Path) -> Iterator[Callable[..., Core]]:
    """Loads a model as one that batches up to `rows`."""
    loaded = []

    def load(model: Any, *, rows: int = 32) -> Core:
        (tmp_path / "1").mkdir()
        models.save(model, tmp_path / "1" / "model.onnx")
        loaded.append(Core(libraries[0], libraries[1], tmp_path, rows))
        return loaded[-1]

    yield load
    for core in loaded:
        core.close()


def rows(*counts: int, columns: int = 3) -> list[Arrays]:
    """Requests of so many rows, in which no number comes twice."""
    ends = np.cumsum(counts) * columns
    numbers = np.split(np.arange(ends[-1], dtype=np.float32), ends[:-1])
    return [{"x": each.reshape(-1, columns)} for each in numbers]


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("counts", [(1,), (4,), (1, 1), (3, 1, 2)])
def test_each_request_gets_its_rows(
    load: Callable[..., Core], counts: tuple[int, ...], pieces: int
) -> None:
    core = load(models.scaled(2.0))
    batch = rows(*counts)
    answers = core.run(batch, ["y"], pieces=pieces)
    for inputs, outputs in zip(batch, answers, strict=True):
        np.testing.assert_array_equal(outputs["y"], 2 * inputs["x"])
    assert core.statistics == (len(counts), sum(counts))


def test_batches_of_other_sizes_follow_one_another(load: Callable[..., Core]) -> None:
    core = load(models.scaled(2.0))
    for counts in ((8, 8), (1, 1), (20, 12), (2,)):
        batch = rows(*counts)
        for inputs, outputs in zip(batch, core.run(batch, ["y"]), strict=True):
            np.testing.assert_array_equal(outputs["y"], 2 * inputs["x"])


@pytest.mark.parametrize("datatype", TYPES)
def test_every_type_of_number_passes(load: Callable[..., Core], datatype: str) -> None:
    array = np.array([[0, 1], [1, 1]], DTYPES[TYPES[datatype]])
    (answer,) = load(models.identity(datatype)).run([{"x": array}], ["y"])
    assert answer["y"].dtype == array.dtype
    np.testing.assert_array_equal(answer["y"], array)


def test_only_the_outputs_asked_for_are_answered(load: Callable[..., Core]) -> None:
    core = load(models.arithmetic())
    inputs = {"a": np.full((1, 2), 3, np.float32), "b": np.full((1, 2), 1, np.float32)}
    answer, other = core.run([inputs, inputs], ["doubled", "total"])
    assert set(answer) == set(other) == {"doubled", "total"}
    np.testing.assert_array_equal(answer["doubled"], [[6, 6]])


def test_without_a_batch_dimension_the_whole_is_the_answer(load: Callable[..., Core]) -> None:
    core = load(models.identity("FP32", (2, 3)), rows=0)
    (inputs,) = rows(2)
    (answer,) = core.run([inputs], ["y"])
    np.testing.assert_array_equal(answer["y"], inputs["x"])
    assert core.statistics == (1, 1)


def test_what_the_runtime_refuses_is_the_answer_of_all_in_the_batch(
    load: Callable[..., Core],
) -> None:
    core = load(models.projection(8))
    answers = core.run(rows(1, 2, columns=5), ["y"])
    assert len(answers) == 2
    assert all("onnx runtime error" in answer for answer in answers)
    assert core.statistics == (0, 0)
    (answer,) = core.run(rows(1, columns=8), ["y"])
    assert set(answer) == {"y"}


def test_rows_that_do_not_add_up_are_an_error(load: Callable[..., Core]) -> None:
    (answer,) = load(models.nonzero()).run([{"x": np.ones((2, 4), np.float32)}], ["places"])
    assert answer == "output 'places' has 8 rows for a batch of 2"


def test_a_model_with_text_is_not_loaded(load: Callable[..., Core]) -> None:
    with pytest.raises(ValueError, match="'x' holds neither numbers nor booleans"):
        load(models.identity("BYTES"))


def test_the_backend_is_compiled_once(
    program: Any, libraries: list[ctypes.CDLL], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(libraries[1]._name).parents[2]
    monkeypatch.setattr(program.subprocess, "run", None)
    runtime = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    assert program.compiled(folder, runtime) == Path(libraries[1]._name).parents[1]


def test_without_a_compiler_the_program_says_what_it_needs(
    program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"no C\+\+ compiler .* none of c\+\+, g\+\+"):
        program.compiled(tmp_path, tmp_path / "libonnxruntime.so")


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        (
            models.identity("FP32", ("batch", 3)),
            {"max_batch": 8, "max_delay": 0.001},
            [
                "max_batch_size: 8",
                'input { name: "x" data_type: TYPE_FP32 dims: [3] }',
                "instance_group { kind: KIND_CPU count: 2 }",
                "dynamic_batching { max_queue_delay_microseconds: 1000 }",
            ],
        ),
        (models.identity("INT64"), {"max_batch": 1}, ["max_batch_size: 1", "dims: [-1] }"]),
        (
            models.identity("FP32", (2, 3)),
            {"max_batch": 8},
            ["max_batch_size: 0", "dims: [2, 3] }"],
        ),
        (models.identity("FP32", ("batch",)), {}, ["dims: [1] reshape { shape: [] } }"]),
        (models.identity("FP32", ()), {}, ["max_batch_size: 0", "dims: [1] }"]),
    ],
    ids=["batches", "one row", "no batch dimension", "one number for a row", "a scalar"],
)
def test_the_configuration_says_what_is_served(
    program: Any, tmp_path: Path, model: Any, settings: dict[str, Any], words: list[str]
) -> None:
    path = tmp_path / "m.onnx"
    models.save(model, path)
    settings = {"threads": 1, "instances": 2, **settings}
    given = program.Arguments(str(path), "m", "127.0.0.1", (1, 2, 3), str(tmp_path), settings)
    program.write_repository(tmp_path / "models", given, program.OnnxModel(str(path), threads=1))
    written = (tmp_path / "models" / "m" / "config.pbtxt").read_text()
    assert [each for each in words if each not in written] == []
    assert ("dynamic_batching" in written) == ("max_delay" in settings)
    assert (tmp_path / "models" / "m" / "1" / "model.onnx").resolve() == path
