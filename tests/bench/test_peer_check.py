"""An answer compared with the right one."""

import numpy as np
import pytest

from headrace.bench import peer_check
from headrace.bench.peer_check import WrongAnswer, check
from headrace.bench.spec import Target

RIGHT = {"y": np.array([[1.0, 2.0]], np.float32)}


def checked(answer: dict[str, peer_check.Array], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_check, "ask", lambda *_: answer)
    check(Target(name="peer", address="127.0.0.1:1"), "m", {}, RIGHT)


def test_the_order_of_summation_may_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    checked({"y": RIGHT["y"] + np.float32(1e-5), "more": np.zeros(1)}, monkeypatch)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"z": RIGHT["y"]}, r"output 'y' is missing; got z"),
        ({}, r"got none"),
        ({"y": RIGHT["y"][0]}, r"expected shape \(1, 2\), got \(2,\)"),
        ({"y": RIGHT["y"] * [[1, 1.1]]}, r"1 of 2 values differ, by up to 0\.2"),
        ({"y": np.full((1, 2), np.nan)}, r"2 of 2 values differ"),
    ],
)
def test_a_wrong_answer_is_told_by_tensor(
    answer: dict[str, peer_check.Array], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WrongAnswer, match=f"peer: .*{words}"):
        checked(answer, monkeypatch)
