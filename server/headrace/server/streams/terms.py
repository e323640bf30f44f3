"""From what a client asks at open, and what the model takes, to a session's terms."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headrace.inference.tensors import DATATYPES, Array
from headrace.server.contract import InputTensor, size_of
from headrace.server.errors import InvalidInput, StreamRefused
from headrace.server.exchange import InferenceRequest, SequencePlace
from headrace.server.inference import check
from headrace.server.models.served import ServedModel
from headrace.server.models.spec import TensorSpec
from headrace.server.streams.options import Overload, SessionOptions, SignalFormat
from headrace.server.streams.window import Framing, Tail

# Of a stateless session. More would let one that catches up fill the queue before its neighbours.
_IN_FLIGHT = 32


class Layout(enum.Enum):
    """How a window of n samples with c channels lies in its input, after the batch dimension."""

    SAMPLES = "[n]"
    SAMPLES_CHANNELS = "[n, c]"
    CHANNELS_SAMPLES = "[c, n]"

    def shape(self, samples: int, channels: int) -> tuple[int, ...]:
        if self is Layout.SAMPLES:
            return (samples,)
        pair = (samples, channels)
        return pair if self is Layout.SAMPLES_CHANNELS else pair[::-1]


@dataclass(frozen=True, slots=True)
class SignalRequest:
    """A signal as asked for; empty strings, 0 and None leave it to the model."""

    input: str = ""
    datatype: str = ""
    channels: int = 0
    layout: Layout | None = None


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """What a client asks. Zeros as in the protocol: hop 0 is the window, buffer 0 the limit.

    rate: samples per second. objective and ttl: seconds. constants and initial_state: tensors for
    one window, batch dimension included.
    """

    model: str
    signals: Sequence[SignalRequest]
    window: int
    rate: float
    version: str = ""
    hop: int = 0
    context: int = 0
    objective: float = math.inf
    overload: Overload = Overload.REFUSE
    tail: Tail = Tail.DROP
    allow_non_finite: bool = False
    ttl: float = 0.0
    buffer: int = 0
    outputs: Sequence[str] = ()
    constants: Sequence[InputTensor] = ()
    initial_state: Sequence[InputTensor] = ()
    priority: int = 0
    caller: str = ""


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """The server's bounds. buffer: samples of one session that may wait, each channel counted. ttl:
    seconds. nbytes: of samples and results of all sessions; twice that is never exceeded."""

    sessions: int = 10_000
    connection_sessions: int = 2_000
    buffer: int = 1 << 18
    ttl: float = 600.0
    nbytes: int = 2 << 30


@dataclass(frozen=True, slots=True)
class _Placed:
    """Where a signal goes: `lead` is the batch dimension in front, if the input has one."""

    name: str
    datatype: str
    layout: Layout
    lead: bool

    def tensor(self, array: Array) -> InputTensor:
        """`array` [samples, channels] as the input has it, as a view."""
        if self.layout is Layout.SAMPLES:
            array = array[:, 0]
        elif self.layout is Layout.CHANNELS_SAMPLES:
            array = array.T
        return InputTensor(self.name, self.datatype, array[np.newaxis] if self.lead else array)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Makes requests of windows."""

    model: str
    version: str
    placed: Sequence[_Placed]
    constants: Sequence[InputTensor] = ()
    outputs: Sequence[str] = ()
    objective: float = math.inf
    priority: int = 0
    caller: str = ""

    def request(
        self, arrays: Sequence[Array], arrival: float, states: Sequence[Array], place: SequencePlace
    ) -> InferenceRequest:
        """`arrays`: for each signal [samples, channels], context included."""
        inputs = [place.tensor(array) for place, array in zip(self.placed, arrays, strict=True)]
        return InferenceRequest(
            self.model,
            self.version,
            [*inputs, *self.constants],
            arrival,
            outputs=self.outputs,
            remaining=self.objective,
            priority=self.priority,
            caller=self.caller,
            states=states,
            sequence=place,
        )


@dataclass(frozen=True, slots=True)
class Terms:
    """Everything that opening a session settles."""

    options: SessionOptions
    recipe: Recipe
    states: Sequence[Array]
    state_inputs: Sequence[str]

    @property
    def kept_bytes(self) -> int:
        """What the session holds in memory as long as it lives: its state, and its constants."""
        states = sum(array.nbytes for array in self.states)
        return states + sum(size_of(tensor.array) for tensor in self.recipe.constants)


def agree(model: ServedModel, asked: OpenRequest, limits: StreamLimits) -> Terms:
    """The terms for `asked`. Raises StreamRefused and InvalidInput naming what does not fit."""
    framing = _framing(asked)
    if not (math.isfinite(asked.rate) and asked.rate > 0):
        raise _refused("sample_rate_hz", f"expected more than 0, got {asked.rate}")
    if asked.ttl > limits.ttl:
        raise _refused(
            "ttl_ms", f"expected at most {limits.ttl * 1e3:.0f}, got {asked.ttl * 1e3:.0f}"
        )
    samples = framing.context + framing.window
    signals, placed = _signals(model, asked, samples)
    states = _states(model, asked.initial_state)
    options = SessionOptions(
        framing,
        signals,
        asked.rate,
        _buffer(asked, limits, samples, sum(signal.channels for signal in signals)),
        asked.objective,
        asked.overload,
        asked.allow_non_finite,
        asked.ttl,
        in_flight=1 if states or asked.overload is Overload.LATEST_ONLY else _IN_FLIGHT,
    )
    recipe = Recipe(
        asked.model,
        asked.version,
        placed,
        asked.constants,
        asked.outputs,
        asked.objective,
        asked.priority,
        asked.caller,
    )
    _try(model, recipe, options, states)
    return Terms(options, recipe, states, [state.input for state in model.spec.states])


def _refused(field_: str, message: str) -> StreamRefused:
    return StreamRefused("INVALID_INPUT", f"open.{field_}", message)


def _framing(asked: OpenRequest) -> Framing:
    if asked.window < 1:
        raise _refused("window", f"expected 1 or more samples, got {asked.window}")
    return Framing(asked.window, asked.hop or asked.window, asked.context, asked.tail)


def _buffer(asked: OpenRequest, limits: StreamLimits, samples: int, channels: int) -> int:
    most = limits.buffer // channels
    if asked.buffer > most:
        raise _refused(
            "buffer_samples",
            f"expected at most {most} (the server keeps {limits.buffer} samples of one channel), "
            f"got {asked.buffer}",
        )
    buffer = asked.buffer or most
    if buffer < 2 * samples:
        field_ = "buffer_samples" if asked.buffer else "window"
        raise _refused(
            field_,
            f"expected a buffer for two windows with their context, {2 * samples} samples, got "
            f"{buffer}",
        )
    return buffer


def _signals(
    model: ServedModel, asked: OpenRequest, samples: int
) -> tuple[list[SignalFormat], list[_Placed]]:
    if not asked.signals:
        raise _refused("signals", "expected at least one, got none")
    formats: list[SignalFormat] = []
    placed: list[_Placed] = []
    for number, signal in enumerate(asked.signals):
        where = f"signals[{number}]"
        spec = _input(model, asked, signal.input, where)
        if spec.name in (place.name for place in placed):
            raise _refused(f"{where}.input", f"'{spec.name}' is given more than once")
        if signal.datatype not in ("", spec.datatype):
            raise _refused(
                f"{where}.datatype", f"expected {spec.datatype}, got '{signal.datatype}'"
            )
        datatype = DATATYPES[spec.datatype]
        if not datatype.itemsize:
            raise _refused(f"{where}.input", f"'{spec.name}' takes text, which is no signal")
        channels = signal.channels or 1
        layout, lead = _place(model, spec, signal, samples, where)
        formats.append(SignalFormat(spec.name, datatype, channels))
        placed.append(_Placed(spec.name, spec.datatype, layout, lead))
    return formats, placed


def _input(model: ServedModel, asked: OpenRequest, name: str, where: str) -> TensorSpec:
    inputs = {n: spec for n, spec in model.inputs.items() if not spec.state}
    constants = {tensor.name for tensor in asked.constants}
    free = [n for n, spec in inputs.items() if n not in constants and not spec.optional]
    if not name and len(free) == 1:
        name = free[0]
    if name not in inputs or name in constants:
        raise _refused(
            f"{where}.input", f"expected one of {', '.join(free) or 'no inputs'}, got '{name}'"
        )
    return inputs[name]


def _place(
    model: ServedModel, spec: TensorSpec, signal: SignalRequest, samples: int, where: str
) -> tuple[Layout, bool]:
    """The layout, and whether the batch dimension stands in front."""
    channels = signal.channels or 1
    layouts = [signal.layout] if signal.layout else list(Layout)
    if channels > 1 and Layout.SAMPLES in layouts:
        layouts.remove(Layout.SAMPLES)
    for lead in (True,) if model.spec.batched else (True, False):
        front = (1,) if lead else ()
        fitting = [
            layout for layout in layouts if _fits(spec, (*front, *layout.shape(samples, channels)))
        ]
        if len(fitting) == 1:
            return fitting[0], lead
        if fitting:
            raise _refused(
                f"{where}.layout",
                f"expected it to be said, since {' and '.join(fit.value for fit in fitting)} both "
                f"fit input '{spec.name}' of shape {list(spec.shape)}",
            )
    raise _refused(
        where,
        f"expected what fits input '{spec.name}' of shape {list(spec.shape)} (-1: any), got "
        f"{samples} samples (context included) of {channels} channels"
        + (f" as {signal.layout.value}" if signal.layout else ""),
    )


def _fits(spec: TensorSpec, shape: Sequence[int]) -> bool:
    return len(shape) == len(spec.shape) and all(
        expected in (-1, dim) for expected, dim in zip(spec.shape, shape, strict=True)
    )


def _states(model: ServedModel, given: Sequence[InputTensor]) -> list[Array]:
    """Where the model starts: what is given, zeros for the rest."""
    tensors = {tensor.name: tensor for tensor in given}
    states = []
    for state in model.spec.states:
        zeros, tensor = state.zeros(1), tensors.pop(state.input, None)
        if tensor is None:
            states.append(zeros)
            continue
        if tensor.datatype != state.datatype or tensor.array.shape != zeros.shape:
            raise _refused(
                "initial_state",
                f"expected {state.datatype} {list(zeros.shape)} for '{state.input}', got "
                f"{tensor.datatype} {list(tensor.array.shape)}",
            )
        states.append(tensor.array)
    for name in tensors:
        known = ", ".join(f"'{state.input}'" for state in model.spec.states) or "none"
        raise _refused("initial_state", f"expected states of the model ({known}), got '{name}'")
    return states


def _try(
    model: ServedModel, recipe: Recipe, options: SessionOptions, states: Sequence[Array]
) -> None:
    """Asks the contract now what it would say to every window."""
    framing = options.framing
    sizes = [framing.context + framing.window]
    if framing.tail is Tail.SHORT:
        sizes.append(framing.context + max(1, framing.window - 1))
    for size in sizes:
        arrays = [np.zeros((size, s.channels), s.datatype.numpy) for s in options.signals]
        try:
            check(model, recipe.request(arrays, 0.0, states, SequencePlace(0)))
        except InvalidInput as error:
            field_ = "open" if size == sizes[0] else "open.tail"
            raise StreamRefused("INVALID_INPUT", field_, str(error)) from None
