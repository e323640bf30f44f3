"""A rolling window is the end of what was added."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headrace.server.quality.rolling import Rolling


@given(st.integers(1, 8), st.lists(st.lists(st.integers(0, 99), max_size=20)))
def test_it_holds_the_last_that_were_added(size: int, parts: list[list[int]]) -> None:
    rolling, added = Rolling(size), list[int]()
    for part in parts:
        rolling.add(np.array(part, np.float64))
        added += part
    kept = added[-size:]
    assert sorted(rolling.numbers()) == sorted(kept)
    assert len(rolling) == len(kept)
    assert rolling.full == (len(kept) == size)
    mean = rolling.mean()
    assert (mean is None) == (not kept)
    assert mean is None or abs(mean - sum(kept) / len(kept)) < 1e-9
