"""Inputs: of the model's shapes and dtypes, repeatable, and refused with reasons."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.bench.inputs import OPEN_LENGTH, InputError, bodies, samples
from headrace.bench.spec import RequestSpec
from headrace.inference.tensors import DATATYPES, decode_raw
from headrace.inference.v2.grpc_service_pb2 import ModelInferRequest, ModelMetadataResponse


def model(**inputs: tuple[str, list[int]]) -> ModelMetadataResponse:
    metadata = ModelMetadataResponse(name="m")
    for name, (datatype, shape) in inputs.items():
        metadata.inputs.add(name=name, datatype=datatype, shape=shape)
    return metadata


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


IMAGE = model(x=("FP32", [-1, 3]))


@settings(deadline=None)
@given(
    datatype=st.sampled_from(sorted(DATATYPES)),
    shape=st.lists(st.sampled_from([-1, 1, 3]), max_size=4),
    seed=st.integers(0, 1000),
)
def test_random_inputs_are_what_the_model_declares(
    datatype: str, shape: list[int], seed: int
) -> None:
    metadata = model(x=(datatype, shape))
    request = RequestSpec(model="m", version="3", parameters={"priority": 2})
    expected = [1 if dim < 0 and not axis else dim for axis, dim in enumerate(shape)]
    expected = [OPEN_LENGTH if dim < 0 else dim for dim in expected]
    (body, other) = bodies(request, metadata, 2, rng(seed))
    message = ModelInferRequest.FromString(body)
    assert (message.model_name, message.model_version) == ("m", "3")
    assert message.parameters["priority"].int64_param == 2
    (tensor,) = message.inputs
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("x", datatype, expected)
    decode_raw(message.raw_input_contents[0], DATATYPES[datatype], expected)
    assert [body, other] == bodies(request, metadata, 2, rng(seed))


def test_random_inputs_differ() -> None:
    first, second = samples(RequestSpec(model="m"), IMAGE, 2, rng())
    assert (first["x"] != second["x"]).all()


def test_shapes_fix_open_dimensions() -> None:
    metadata = model(x=("FP32", [-1, -1, 3]), y=("INT64", [-1, -1]))
    request = RequestSpec(model="m", shapes={"x": (2, 320, 3)})
    (sample,) = samples(request, metadata, 1, rng())
    assert (sample["x"].shape, sample["y"].shape) == ((2, 320, 3), (1, OPEN_LENGTH))


@pytest.mark.parametrize(
    ("shapes", "named"),
    [
        ({"x": (1, 4)}, r"input 'x': expected a shape that fits \[-1, 3\], got \[1, 4\]"),
        ({"x": (3,)}, r"fits \[-1, 3\], got \[3\]"),
        ({"z": (1, 3)}, "given for z, its inputs are x"),
    ],
)
def test_shapes_that_do_not_fit(shapes: dict[str, tuple[int, ...]], named: str) -> None:
    with pytest.raises(InputError, match=named):
        samples(RequestSpec(model="m", shapes=shapes), IMAGE, 1, rng())


def test_a_file_is_one_request_or_many(tmp_path: pathlib.Path) -> None:
    one, many = tmp_path / "one.npy", tmp_path / "many.npz"
    np.save(one, np.ones((1, 3), np.float32))
    np.savez(many, x=np.arange(12, dtype=np.float32).reshape(4, 1, 3))
    for sample in samples(RequestSpec(model="m", inputs=str(one)), IMAGE, 2, rng()):
        assert sample["x"].tolist() == [[1, 1, 1]]
    found = samples(RequestSpec(model="m", inputs=str(many)), IMAGE, 6, rng())
    firsts = [float(sample["x"][0, 0]) for sample in found]
    assert set(firsts[:4]) == {0, 3, 6, 9}
    assert firsts[4:] == firsts[:2]


def test_a_folder_holds_requests_of_unequal_shapes(tmp_path: pathlib.Path) -> None:
    for length in (2, 5):
        np.savez(tmp_path / f"{length}.npz", a=np.zeros((1, length)), b=np.ones((1, length)))
    (tmp_path / "notes.txt").write_text("of no concern")
    metadata = model(a=("FP64", [-1, -1]), b=("FP64", [-1, -1]))
    found = samples(RequestSpec(model="m", inputs=str(tmp_path)), metadata, 2, rng())
    assert {sample["a"].shape for sample in found} == {(1, 2), (1, 5)}


def test_a_function_in_a_file(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import numpy as np\n"
        "def make(rng):\n"
        "    return {'x': rng.standard_normal((1, 3)).astype(np.float32)}\n"
    )
    request = RequestSpec(model="m", inputs=f"{file}:make")
    first, second = samples(request, IMAGE, 2, rng(5))
    expected = rng(5).standard_normal((2, 1, 3)).astype(np.float32)
    assert first["x"].tolist() == expected[0].tolist()
    assert second["x"].tolist() == expected[1].tolist()


def wrong_dtype(rng: np.random.Generator) -> dict[str, Any]:
    return {"x": np.ones((1, 3))}


def wrong_shape(rng: np.random.Generator) -> dict[str, Any]:
    return {"x": np.ones((1, 4), np.float32)}


def wrong_name(rng: np.random.Generator) -> dict[str, Any]:
    return {"y": np.ones((1, 3), np.float32)}


def no_dict(rng: np.random.Generator) -> Any:
    return [1]


def failing(rng: np.random.Generator) -> Any:
    raise RuntimeError("no camera")


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("wrong_dtype", "tensor 'x': expected FP32, got float64"),
        ("wrong_shape", r"tensor 'x': expected shape \[-1, 3\], got \[1, 4\]"),
        ("wrong_name", "expected tensors x, got y"),
        ("no_dict", "expected a dict of arrays by name, got list"),
        ("failing", "RuntimeError: no camera"),
        ("nowhere", "AttributeError.*nowhere"),
    ],
)
def test_a_function_that_makes_the_wrong_thing(name: str, named: str) -> None:
    request = RequestSpec(model="m", inputs=f"{__file__}:{name}")
    with pytest.raises(InputError, match=named):
        samples(request, IMAGE, 1, rng())


def test_unequal_piles_are_refused(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "piles.npz"
    np.savez(file, a=np.zeros((2, 1)), b=np.zeros((3, 1)))
    metadata = model(a=("FP64", [-1]), b=("FP64", [-1]))
    with pytest.raises(InputError, match="unequal numbers of requests: a 2, b 3"):
        samples(RequestSpec(model="m", inputs=str(file)), metadata, 1, rng())


@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        ("nowhere.npy", "cannot read nowhere.npy"),
        ("words", "expected 'random', a .npy or .npz file, a folder"),
        ("no.such.module:make", "cannot import the function: ModuleNotFoundError"),
    ],
)
def test_sources_that_are_none(inputs: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        samples(RequestSpec(model="m", inputs=inputs), IMAGE, 1, rng())


def test_a_pickle_is_not_unpacked(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "pickle.npy"
    np.save(file, np.array([b"x"], object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot read"):
        samples(RequestSpec(model="m", inputs=str(file)), IMAGE, 1, rng())


def test_a_model_without_inputs_or_with_unknown_datatypes() -> None:
    with pytest.raises(InputError, match="declares no inputs"):
        samples(RequestSpec(model="m"), model(), 1, rng())
    with pytest.raises(InputError, match="input 'x': the server declares datatype 'COMPLEX'"):
        samples(RequestSpec(model="m"), model(x=("COMPLEX", [1])), 1, rng())
