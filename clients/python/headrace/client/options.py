"""The options of one inference request, as an object and as keywords."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
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
        if isinstance(self.outputs, str):
            raise TypeError(f"outputs takes a sequence of names: [{self.outputs!r}]")


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


def merged(method: str, options: Options, keywords: Mapping[str, Any]) -> Options:
    """`options`, a dataclass, with `keywords` in place of its own fields. Raises TypeError, in the
    name of the `method` that took the keywords, for one that is no field."""
    try:
        return replace(options, **keywords)  # type: ignore[type-var]
    except TypeError:
        known = [each.name for each in fields(options)]  # type: ignore[arg-type]
        for name in keywords:
            if name not in known:
                raise TypeError(
                    f"{method}() got an unexpected keyword argument {name!r}; "
                    f"options are {', '.join(known)}"
                ) from None
        raise
