"""What is asked of a load test, as a command line or a scenario file says it.

Everything is a pydantic model that refuses unknown keys, so that a file's errors are reported all
at once, each by its key. Times are seconds, rates are requests per second, unless a name says
otherwise."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt


class Spec(BaseModel):
    """The base of all: immutable, and no key that nobody reads."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ClosedLoad(Spec):
    """`callers` that each send the next request when the last is answered, after `think`
    seconds."""

    kind: Literal["closed"] = "closed"
    callers: PositiveInt = 1
    think: NonNegativeFloat = 0.0


class OpenLoad(Spec):
    """Requests that are due at times that do not depend on the answers.

    `arrivals` is the law of the gaps between them: "poisson", "constant", or "gamma" with
    `burstiness` as the squared coefficient of variation (1 is Poisson, more comes in bursts).
    """

    kind: Literal["open"] = "open"
    rate: PositiveFloat
    arrivals: Literal["poisson", "constant", "gamma"] = "poisson"
    burstiness: PositiveFloat = 1.0


class Step(Spec):
    """From the end of the step before: `seconds` at `rate`, reached at once or, as a ramp,
    evenly."""

    seconds: PositiveFloat
    rate: NonNegativeFloat


class SteppedLoad(Spec):
    """An open load whose rate follows `steps`; with `ramp`, linearly from each rate to the next,
    and from 0 to the first. It ends with the last step."""

    kind: Literal["steps"] = "steps"
    steps: tuple[Step, ...] = Field(min_length=1)
    ramp: bool = False
    arrivals: Literal["poisson", "constant", "gamma"] = "poisson"
    burstiness: PositiveFloat = 1.0


class TraceLoad(Spec):
    """Requests due at recorded times: `file` has a time in seconds on each line, and may name,
    after a comma, which of the job's requests it is, from 0. The first time is the load's start.
    `speed` 2 plays it in half the time."""

    kind: Literal["trace"] = "trace"
    file: str
    speed: PositiveFloat = 1.0


class BurstLoad(Spec):
    """`count` requests due at once, every `period` seconds (once, where there is no period)."""

    kind: Literal["burst"] = "burst"
    count: PositiveInt
    period: PositiveFloat | None = None


class SensorLoad(Spec):
    """`sessions` of headrace.stream.v1 that each send chunks of `chunk` samples at `sample_rate`
    hertz; the server cuts windows of `window` samples every `hop` (default: the window)."""

    kind: Literal["sensor"] = "sensor"
    sessions: PositiveInt
    sample_rate: PositiveFloat
    chunk: PositiveInt
    window: PositiveInt
    hop: PositiveInt | None = None


Load = Annotated[
    ClosedLoad | OpenLoad | SteppedLoad | TraceLoad | BurstLoad | SensorLoad,
    Field(discriminator="kind"),
]


class RequestSpec(Spec):
    """One kind of request. Where a job has several, each is drawn with its `weight`.

    `inputs` says where tensors come from: "random" (by the model's metadata), a `.npy` or `.npz`
    file, a folder of such files, or a Python function as "package.module:function" or
    "path/to/file.py:function", called with a numpy Generator and returning {name: array}. `shapes`
    fixes open dimensions: {"x": [1, 320, 3]}. `deadline` is relative to the time the request is
    due."""

    model: str
    version: str = ""
    weight: PositiveFloat = 1.0
    inputs: str = "random"
    shapes: dict[str, tuple[PositiveInt, ...]] = {}
    deadline: PositiveFloat | None = None
    parameters: dict[str, bool | int | float | str] = {}


Protocol = Literal["grpc", "grpc-stream", "sensor", "http"]


class Target(Spec):
    """A server under test. `address` is host:port for gRPC, or a URL for HTTP. `protocol` is "grpc"
    (ModelInfer), "grpc-stream" (ModelStreamInfer), "sensor" (headrace.stream.v1) or "http"
    (`adaptor` names how a peer wants its requests). `pid` is the process to watch, with its
    children, where it is on this machine."""

    name: str = "server"
    address: str
    protocol: Protocol = "grpc"
    transport: Literal["auto", "grpcio", "lean"] = "auto"
    adaptor: str = ""
    pid: PositiveInt | None = None
    about: dict[str, Any] = {}  # versions, configuration, what differs: goes into the report


class Job(Spec):
    """One load on one target. `warm_up` is "auto" (until the latency is stable) or seconds.
    `pulse` asks for small calls beside the load, so many seconds apart (see `pulse`)."""

    target: Target
    load: Load
    requests: tuple[RequestSpec, ...] = Field(min_length=1)
    duration: PositiveFloat = 10.0
    warm_up: Literal["auto"] | NonNegativeFloat = "auto"
    processes: PositiveInt = 1
    pulse: PositiveFloat | None = None
    seed: int = 0
