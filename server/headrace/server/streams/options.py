"""What was agreed when a session was opened."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.inference.tensors import Datatype
from headrace.server.streams.window import Framing


class Overload(enum.Enum):
    """What gives way when windows come faster than they are run, or their results are taken."""

    REFUSE = "refuse"
    DROP_OLDEST = "drop_oldest"
    LATEST_ONLY = "latest_only"


@dataclass(frozen=True, slots=True)
class SignalFormat:
    """How the samples of one signal travel: [samples, channels] of `datatype`."""

    input: str
    datatype: Datatype
    channels: int


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """One session's terms.

    rate: samples per second. objective: seconds from the arrival of a window's last sample within
    which its result is of use. ttl: seconds that the session outlives its connection; results are
    kept until acknowledged unless it is 0. buffer: samples that may wait, at least twice a window
    with its context. in_flight: windows that may run at once. outstanding: deliveries that may be
    on their way, and outstanding_bytes: their size, beyond which no more windows are run.
    """

    framing: Framing
    signals: Sequence[SignalFormat]
    rate: float
    buffer: int
    objective: float = math.inf
    overload: Overload = Overload.REFUSE
    allow_non_finite: bool = False
    ttl: float = 0.0
    in_flight: int = 32
    outstanding: int = 256
    outstanding_bytes: int = 8 << 20

    @property
    def largest_chunk(self) -> int:
        """Samples. With half the buffer for one chunk, credit never ends between two."""
        return self.buffer // 2
