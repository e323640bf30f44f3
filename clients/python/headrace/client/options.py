"""The options of one inference request, as an object and as keywords."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import Any, TypedDict, TypeVar

ParameterValue = bool | int | float | str
Options = TypeVar("Options")


@dataclass(frozen=True, slots=True)
class InferOptions:
    """Options of one inference request.

    deadline: seconds from the call to its answer, retries included; None waits without limit. In a
        stream, where the call has its own, it is sent as the request parameter `timeout`.
    version: of the model; empty leaves the choice to the server.
    request_id: comes back as the result's `id`.
    outputs: names of the outputs to compute and send; None for all.
    parameters: request parameters, passed to the server as they are.
    priority: 1 is the highest; None and 0 are the model's default.
    solo: ask a Headrace server to run the request alone, not in a batch with others.
    headers: gRPC metadata of the call. In a stream they belong to the stream, not to a request.
    """

    deadline: float | None = None
    version: str = ""
    request_id: str = ""
    outputs: Sequence[str] | None = None
    parameters: Mapping[str, ParameterValue] | None = None
    priority: int | None = None
    solo: bool = False
    headers: Mapping[str, str | bytes] | None = None

    def __post_init__(self) -> None:
        expect("version", self.version, str)
        expect("request_id", self.request_id, str)
        expect("priority", self.priority, (Integral, type(None)), "an integer")
        expect("headers", self.headers, (Mapping, type(None)), "values by name")
        expect("parameters", self.parameters, (Mapping, type(None)), "values by name")
        if isinstance(self.outputs, str):
            raise TypeError(f"outputs takes a sequence of names: [{self.outputs!r}]")
        expect("outputs", self.outputs, (Collection, type(None)), "names")
        for name in self.outputs or ():
            expect("outputs", name, str, "names")


class InferKeywords(TypedDict, total=False):
    """The fields of `InferOptions` as keywords of `infer`."""

    deadline: float | None
    version: str
    request_id: str
    outputs: Sequence[str] | None
    parameters: Mapping[str, ParameterValue] | None
    priority: int | None
    solo: bool
    headers: Mapping[str, str | bytes] | None


def expect(name: str, value: object, kind: type | tuple[type, ...], words: str = "") -> None:
    """Raises TypeError, in which `name` is what the `value` was given for, where it is of another
    kind. words: what was expected, where the kind's own name does not say it."""
    if not isinstance(value, kind):
        expected = words or (kind if isinstance(kind, type) else kind[0]).__name__
        raise TypeError(f"{name}: expected {expected}, got {value!r}")


def merged(
    method: str, kind: type[Options], options: Options | None, keywords: Mapping[str, Any]
) -> Options:
    """`options`, or those of a `kind` as they come, with `keywords` in place of their own fields.
    Raises TypeError for others, and, in the name of the `method` that took the keywords, for one
    that is no field."""
    given = kind() if options is None else options
    expect("options", given, kind)
    try:
        return replace(given, **keywords)  # type: ignore[type-var]
    except TypeError:
        known = [each.name for each in fields(given)]  # type: ignore[arg-type]
        for name in keywords:
            if name not in known:
                raise TypeError(
                    f"{method}() got an unexpected keyword argument {name!r}; "
                    f"options are {', '.join(known)}"
                ) from None
        raise
