"""Which calls are traced: as their callers decided, else a share of them.

Configured by OpenTelemetry's variables OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG, and while
the server runs by the protocol's TraceSetting, in Triton's words. The decision comes before
anything else is done for a trace: a call that is not sampled costs a look at its metadata.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

# W3C Trace Context, level 1, "traceparent": version, trace id, parent id, flags. What does not fit
# counts as absent.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{16}([0-9a-f]{16})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})"
)
_SAMPLED = 1
_RATIOS = {"always_on": 1.0, "always_off": 0.0, "traceidratio": None}
_PARENT_BASED = "parentbased_"

Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Rule:
    """on: whether anything is traced. ratio: the share of calls whose callers have not decided.
    follow: whether callers decide for theirs."""

    on: bool = True
    ratio: float = 1.0
    follow: bool = True

    def samples(self, traceparent: str) -> bool:
        """Whether a call with this `traceparent`, empty for none, is to be traced."""
        if not self.on:
            return False
        found = _TRACEPARENT.match(traceparent) if traceparent else None
        if found is None:
            return self.ratio >= 1 or random.random() < self.ratio
        if self.follow:
            return bool(int(found[2], 16) & _SAMPLED)
        # As every service does that samples by the trace's id alone: all of a trace, or nothing.
        return int(found[1], 16) < self.ratio * 2.0**64


def from_environment(environment: Mapping[str, str]) -> Rule:
    """The rule that the variables ask for. Raises ValueError for one that is unknown or unfit."""
    name = environment.get("OTEL_TRACES_SAMPLER", "").strip().lower() or "parentbased_always_on"
    kind = name.removeprefix(_PARENT_BASED)
    if kind not in _RATIOS:
        known = ", ".join((*_RATIOS, *(_PARENT_BASED + each for each in _RATIOS)))
        raise ValueError(f"OTEL_TRACES_SAMPLER: expected one of {known}, got {name!r}")
    ratio = _RATIOS[kind]
    if ratio is None:
        ratio = _ratio(environment.get("OTEL_TRACES_SAMPLER_ARG", "").strip() or "1")
    return Rule(ratio=ratio, follow=name.startswith(_PARENT_BASED))


def _ratio(text: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        raise ValueError(f"OTEL_TRACES_SAMPLER_ARG: expected a number from 0 to 1, got {text!r}")
    return ratio


def traceparent_of(metadata: Metadata) -> str:
    """The call's traceparent, empty where it has none."""
    for key, value in metadata:
        if key == "traceparent":
            return value if isinstance(value, str) else ""
    return ""


class Sampling:
    """A rule for all calls, and others for the models that TraceSetting has named.

    `left`: how many more traces may begin by a rule, -1 for any number.
    """

    def __init__(self, rule: Rule) -> None:
        self._start = rule
        self._rule = rule
        self._left = -1
        self._models: dict[str, tuple[Rule, int]] = {}

    def sample(self, traceparent: str, model: Callable[[], str] = str) -> bool:
        """Whether a call with this `traceparent` is traced. `model` gives its model's name, empty
        for none, and is asked only where some have rules of their own."""
        name = model() if self._models else ""
        own = name in self._models
        rule, left = self.get(name)
        if not rule.samples(traceparent) or left == 0:
            return False
        if left > 0:
            self.set(rule, left - 1, name if own else "")
        return True

    def get(self, model: str = "") -> tuple[Rule, int]:
        """What holds for `model`; for those not named, where it is empty."""
        return self._models.get(model, (self._rule, self._left))

    def set(self, rule: Rule, left: int, model: str = "") -> None:
        if model:
            self._models[model] = rule, left
        else:
            self._rule, self._left = rule, left

    def forget(self, model: str) -> None:
        """`model` follows the rule of all again."""
        self._models.pop(model, None)

    @property
    def start(self) -> Rule:
        """The rule that the server was started with."""
        return self._start


def with_rate(rule: Rule, rate: int) -> Rule:
    """`rule`, for one call out of `rate`."""
    return replace(rule, ratio=1 / rate)


def rate_of(rule: Rule) -> int:
    """One call out of how many; 0 for none."""
    return round(1 / rule.ratio) if rule.ratio else 0
