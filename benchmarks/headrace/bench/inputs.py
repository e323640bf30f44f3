"""What requests carry: random tensors, recorded ones, or those that a Python function makes."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.bench.errors import BenchError
from headrace.bench.spec import RequestSpec
from headrace.client import InferOptions, ModelMetadata, Tensor, TensorMetadata, random_inputs
from headrace.client.messages import infer_request
from headrace.inference.tensors import DATATYPES, datatype_of
from headrace.inference.v2.grpc_service_pb2 import ModelMetadataResponse

Array = npt.NDArray[Any]
Sample = dict[str, Array]
Declared = ModelMetadataResponse.TensorMetadata

OPEN_LENGTH = 16
"""What an open dimension becomes in random inputs where nothing else is asked; the first, which is
the batch's, becomes 1."""

_FILES = (".npy", ".npz")


class InputError(BenchError):
    """Inputs that cannot be had or that the model does not take; the message says whence they
    came, what was expected and what came."""


def bodies(
    request: RequestSpec, metadata: ModelMetadataResponse, count: int, rng: np.random.Generator
) -> list[bytes]:
    """`count` serialised ModelInferRequests of this kind. Raises InputError as `samples` does."""
    datatypes = {tensor.name: tensor.datatype for tensor in metadata.inputs}
    options = InferOptions(version=request.version, parameters=request.parameters)
    return [
        infer_request(
            request.model,
            {name: Tensor(array, datatypes[name]) for name, array in sample.items()},
            options,
        ).SerializeToString()
        for sample in samples(request, metadata, count, rng)
    ]


def samples(
    request: RequestSpec, metadata: ModelMetadataResponse, count: int, rng: np.random.Generator
) -> list[Sample]:
    """The tensors by name of `count` requests, each an array of the shape and dtype that the model
    declares (BF16 as uint16 bit patterns, BYTES as bytes or text).

    Recorded inputs are taken in a random order, and again from the first when they run out.

    Raises InputError where they cannot be had, or are not what the model takes.
    """
    if not metadata.inputs:
        raise InputError(f"model {request.model!r}: the server declares no inputs for it")
    source = f"model {request.model!r}, inputs {request.inputs!r}"
    if request.inputs == "random":
        return _random(request, metadata, count, rng)
    if ":" in request.inputs and not Path(request.inputs).exists():
        function = _function(request.inputs)
        made = [_call(function, rng, source) for _ in range(count)]
    else:
        recorded = _recorded(Path(request.inputs), metadata.inputs, source)
        order = cycle(rng.permutation(len(recorded)).tolist())
        made = [recorded[place] for place in islice(order, count)]
    for sample in made:
        _check(sample, metadata.inputs, source)
    return made


def _random(
    request: RequestSpec, metadata: ModelMetadataResponse, count: int, rng: np.random.Generator
) -> list[Sample]:
    known = {tensor.name for tensor in metadata.inputs}
    unknown = sorted(request.shapes.keys() - known)
    if unknown:
        raise InputError(
            f"model {request.model!r}: a shape is given for {', '.join(unknown)}, "
            f"its inputs are {', '.join(sorted(known))}"
        )
    inputs = tuple(_concrete(request, tensor) for tensor in metadata.inputs)
    model = ModelMetadata(request.model, (), metadata.platform, inputs, ())
    return [
        {
            name: np.asarray(value.array if isinstance(value, Tensor) else value)
            for name, value in random_inputs(model, rng=rng).items()
        }
        for _ in range(count)
    ]


def _concrete(request: RequestSpec, tensor: Declared) -> TensorMetadata:
    """`tensor` without open dimensions: those that `shapes` gives, else the defaults."""
    if tensor.datatype not in DATATYPES:
        raise InputError(
            f"model {request.model!r}, input {tensor.name!r}: the server declares datatype "
            f"{tensor.datatype!r}, expected one of {', '.join(DATATYPES)}"
        )
    wanted = request.shapes.get(tensor.name)
    if wanted is None:
        wanted = tuple(
            dim if dim >= 0 else (OPEN_LENGTH if axis else 1)
            for axis, dim in enumerate(tensor.shape)
        )
    elif not _fits(wanted, tensor):
        raise InputError(
            f"model {request.model!r}, input {tensor.name!r}: expected a shape that fits "
            f"{list(tensor.shape)}, got {list(wanted)}"
        )
    return TensorMetadata(tensor.name, tensor.datatype, wanted)


def _fits(shape: Sequence[int], tensor: Declared) -> bool:
    """Some servers declare no dimension at all where they take any shape."""
    return not tensor.shape or (
        len(shape) == len(tensor.shape)
        and all(declared in (-1, dim) for dim, declared in zip(shape, tensor.shape, strict=True))
    )


def _check(sample: Sample, declared: Sequence[Declared], source: str) -> None:
    expected = {tensor.name for tensor in declared}
    if sample.keys() != expected:
        raise InputError(
            f"{source}: expected tensors {', '.join(sorted(expected))}, "
            f"got {', '.join(sorted(map(str, sample))) or 'none'}"
        )
    for tensor in declared:
        array = sample[tensor.name]
        where = f"{source}, tensor {tensor.name!r}"
        if not _carries(array, tensor.datatype):
            raise InputError(f"{where}: expected {tensor.datatype}, got {array.dtype}")
        if not _fits(array.shape, tensor):
            raise InputError(
                f"{where}: expected shape {list(tensor.shape)}, got {list(array.shape)}"
            )


def _carries(array: Array, datatype: str) -> bool:
    if datatype == "BF16" and array.dtype == np.uint16:
        return True
    try:
        return datatype_of(array).name == datatype
    except TypeError:
        return False


def _recorded(path: Path, declared: Sequence[Declared], source: str) -> list[Sample]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in _FILES)
        if not files:
            raise InputError(f"{source}: expected .npy or .npz files in the folder, found none")
    elif path.suffix in _FILES:
        files = [path]
    else:
        raise InputError(
            f"{source}: expected 'random', a .npy or .npz file, a folder of them, or a function as "
            "'package.module:function' or 'path/to/file.py:function'"
        )
    return [sample for file in files for sample in _read(file, declared, source)]


def _read(file: Path, declared: Sequence[Declared], source: str) -> Iterator[Sample]:
    """The requests in one file. Arrays with one axis more than the model's hold several."""
    try:
        content = np.load(file, allow_pickle=False)
        tensors = {declared[0].name: content} if file.suffix == ".npy" else dict(content)
    except (OSError, ValueError) as error:
        raise InputError(f"{source}: cannot read {file}: {error}") from error
    ranks = {tensor.name: len(tensor.shape) for tensor in declared}
    piled = tensors.keys() == ranks.keys() and all(
        array.ndim == ranks[name] + 1 for name, array in tensors.items()
    )
    if not piled:
        yield tensors
        return
    if len({len(array) for array in tensors.values()}) > 1:
        lengths = ", ".join(f"{name} {len(array)}" for name, array in tensors.items())
        raise InputError(f"{source}: {file} has unequal numbers of requests: {lengths}")
    for arrays in zip(*tensors.values(), strict=True):
        yield dict(zip(tensors, arrays, strict=True))


def _function(name: str) -> Callable[[np.random.Generator], Any]:
    """What "package.module:function" or "path/to/file.py:function" names."""
    place, _, attribute = name.rpartition(":")
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(f"_bench_{Path(place).stem}", place)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # dataclasses, for one, look their module up
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        found: Callable[[np.random.Generator], Any] = getattr(module, attribute)
    except Exception as error:
        raise InputError(
            f"inputs {name!r}: cannot import the function: {type(error).__name__}: {error}"
        ) from error
    return found


def _call(
    function: Callable[[np.random.Generator], Any], rng: np.random.Generator, source: str
) -> Sample:
    try:
        made = function(rng)
    except Exception as error:
        raise InputError(f"{source}: it raised {type(error).__name__}: {error}") from error
    if not isinstance(made, dict):
        raise InputError(f"{source}: expected a dict of arrays by name, got {type(made).__name__}")
    return {name: np.asarray(value) for name, value in made.items()}
