"""What goes into a stream and what comes back from calls, as plain typed objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from headrace.client.errors import HeadraceError
from headrace.client.options import InferOptions, ParameterValue
from headrace.client.tensors import Inputs
from headrace.inference.tensors import Array


class InferResult(Mapping[str, Array]):
    """The outputs of one request by name, in the server's order.

    Arrays of fixed-size types are read-only views of the received message: copy one to write to
    it. BYTES outputs are object arrays of `bytes`. BF16 outputs have the dtype
    `ml_dtypes.bfloat16` where that package is installed, else they are `uint16` bit patterns.

    `model` and `version` say what computed it, `id` is the request's, and `parameters` are the
    response's as plain Python values.
    """

    __slots__ = ("_arrays", "id", "model", "parameters", "version")

    def __init__(
        self,
        arrays: Mapping[str, Array],
        *,
        model: str,
        version: str = "",
        id: str = "",
        parameters: Mapping[str, ParameterValue] | None = None,
    ) -> None:
        self._arrays = arrays
        self.model = model
        self.version = version
        self.id = id
        self.parameters = dict(parameters or {})

    # Two results are the same when they are the same object: comparing arrays gives arrays.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __getitem__(self, name: str) -> Array:
        try:
            return self._arrays[name]
        except KeyError:
            known = ", ".join(map(repr, self._arrays))
            raise KeyError(f"no output {name!r}; {self.model!r} gave {known}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        outputs = ", ".join(f"{k}: {v.dtype}{list(v.shape)}" for k, v in self._arrays.items())
        return f"InferResult({self.model}:{self.version} {outputs})"


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """One request of a stream; `inputs` as for `infer`.

    Without a `request_id` in its options it gets the id "#n", where n is its position in the
    stream, from 0.
    """

    model: str
    inputs: Inputs
    options: InferOptions = field(default_factory=InferOptions)


@dataclass(frozen=True, slots=True)
class StreamAnswer:
    """The answer to the stream request with this `id`: exactly one of `result` and `error`."""

    id: str
    result: InferResult | None = None
    error: HeadraceError | None = None

    def unwrap(self) -> InferResult:
        """The result; raises `error` where there is none."""
        if self.error is not None:
            raise self.error
        if self.result is None:
            raise ValueError(f"answer {self.id!r} has neither result nor error")
        return self.result


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """Who answers: name and version of the server, and the protocol extensions it has."""

    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """An input or output of a model. In `shape`, -1 is a dimension that varies."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What a model takes and gives, and in which versions it is served."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


@dataclass(frozen=True, slots=True)
class ModelIndex:
    """One model version of the repository.

    `state` is READY, UNAVAILABLE, LOADING, UNLOADING or UNKNOWN; `reason` says why it is not READY.
    """

    name: str
    version: str
    state: str
    reason: str
