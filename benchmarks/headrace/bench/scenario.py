"""Scenarios: a model, its requests and the questions to ask, in a TOML file that has a name."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from headrace.bench.errors import BenchError
from headrace.bench.questions.curve import SHARES
from headrace.bench.spec import Job, Load, Protocol, RequestSpec, Spec, Target


class LoadQuestion(Spec):
    """What happens under each of `loads`; where there are several sides, who is better at it."""

    kind: Literal["load"] = "load"
    loads: tuple[Load, ...] = Field(min_length=1)


class SearchQuestion(Spec):
    """The highest rate at which the 99th percentile stays under `p99` seconds and no more than the
    share `errors` fails."""

    kind: Literal["search"] = "search"
    p99: PositiveFloat
    errors: NonNegativeFloat = 0.01
    tolerance: PositiveFloat = 0.05


class CurveQuestion(Spec):
    """Latency at `shares` of saturation."""

    kind: Literal["curve"] = "curve"
    shares: tuple[PositiveFloat, ...] = SHARES


class GoodputQuestion(Spec):
    """What is answered in time, at `shares` of each side's own saturation."""

    kind: Literal["goodput"] = "goodput"
    shares: tuple[PositiveFloat, ...] = (0.5, 1.0, 2.0, 3.0)


class StartQuestion(Spec):
    """How long it takes from starting a server to being ready, the first time and again, and what
    the first requests then see."""

    kind: Literal["start"] = "start"


class GuardQuestion(Spec):
    """Whether the server CPU per request of each side in `at_most`, as a multiple of that of the
    side `base`, keeps to the bound given there; under `load`. Where not, the run ends with a
    failure."""

    kind: Literal["guard"] = "guard"
    load: Load
    base: str
    at_most: dict[str, PositiveFloat] = Field(min_length=1)


Question = Annotated[
    LoadQuestion | SearchQuestion | CurveQuestion | GoodputQuestion | StartQuestion | GuardQuestion,
    Field(discriminator="kind"),
]


class Scenario(Spec):
    """A scenario file. `model` is one of headrace.bench.models, and a request that names none asks
    for it. `peers` are who is measured unless the command line says otherwise, the first against
    the others: "headrace", "pytriton", or with a configuration "pytriton:tuned". `turns` is how
    often sides alternate. `pulse` asks for small calls beside the load, so many seconds apart.
    `short` overrides any of the others for a run of a few minutes."""

    about: str
    model: str
    requests: tuple[RequestSpec, ...] = Field(min_length=1)
    questions: tuple[Question, ...] = Field(min_length=1)
    peers: tuple[str, ...] = ("headrace",)
    protocol: Protocol | None = None
    duration: PositiveFloat = 10.0
    warm_up: Literal["auto"] | NonNegativeFloat = "auto"
    turns: PositiveInt = 6
    processes: PositiveInt = 1
    pulse: PositiveFloat | None = None
    short: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _requests_ask_for_the_model(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("requests"), list | tuple):
            return data
        requests = [
            {"model": data.get("model"), **request} if isinstance(request, dict) else request
            for request in data["requests"]
        ]
        return {**data, "requests": requests}

    @model_validator(mode="after")
    def _short_is_a_scenario(self) -> Self:
        if self.short:
            self.shortened()
        return self

    def shortened(self) -> Scenario:
        """The short variant. Raises pydantic's ValidationError where that is none."""
        whole = self.model_dump(exclude={"short"})
        return Scenario.model_validate({**whole, **self.short})

    def job(self, target: Target, seed: int) -> Job:
        """What is asked of `target`, with the first load that a question names."""
        loads = [load for q in self.questions if isinstance(q, LoadQuestion) for load in q.loads]
        protocol = {"protocol": self.protocol} if self.protocol else {}
        return Job.model_validate(
            {
                "target": target.model_copy(update=protocol),
                "load": loads[0] if loads else {"kind": "closed"},
                "requests": self.requests,
                "duration": self.duration,
                "warm_up": self.warm_up,
                "processes": self.processes,
                "pulse": self.pulse,
                "seed": seed,
            }
        )


def folder() -> Path:
    """Where the scenarios are: beside this file in a wheel, two floors down in a checkout."""
    here = Path(__file__).parent
    places = (here / "scenarios", here.parents[1] / "scenarios")
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise BenchError(f"no scenarios: neither {places[0]} nor {places[1]} is there")
    return found


def names() -> list[str]:
    """All scenarios that come with the harness."""
    return sorted(file.stem for file in folder().glob("*.toml"))


def load(name: str) -> Scenario:
    """The scenario of this name, or in the file of this path where it ends with .toml.

    Raises BenchError, naming the file and each key that is wrong.
    """
    path = Path(name) if name.endswith(".toml") else folder() / f"{name}.toml"
    if not path.is_file():
        raise BenchError(f"scenario {name!r}: expected a file or one of {', '.join(names())}")
    try:
        return Scenario.model_validate(tomllib.loads(path.read_text()))
    except tomllib.TOMLDecodeError as error:
        raise BenchError(f"{path}: {error}") from error
    except ValidationError as error:
        raise BenchError(f"{path}: {explained(error)}") from error


def explained(error: ValidationError) -> str:
    """Every key that is wrong, what was expected and what came, in one line for each."""
    return "\n".join(
        f"{'.'.join(map(str, wrong['loc'])) or 'the whole'}: {wrong['msg']}, got {wrong['input']!r}"
        for wrong in error.errors(include_url=False)
    )
