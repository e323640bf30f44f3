"""Accuracy and drift of a real server: they follow what its callers say, and send."""

from __future__ import annotations

import hashlib
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace.client import (
    AsyncClient,
    ChannelOptions,
    Client,
    InferOptions,
    InvalidInput,
    ModelNotFound,
    PermissionDenied,
    StreamRequest,
    Unimplemented,
)
from headrace.feedback.v1 import feedback_pb2 as pb
from support import models, server
from support.server import PATIENCE, RunningServer

WINDOW = 40
LABELS = ("side", "tensor", "feature", "outcome", "kind", "window")
QUALITY = f"""
[quality]
task = "classification"
classes = ["cat", "dog", "hen"]
window = {WINDOW}
reference = {WINDOW}
"""
REGRESSION = '[quality]\ntask = "regression"\ndrift = false\n'
IDENTITIES = """
[[identity]]
name = "one"
token_sha256 = "{one}"
calls = ["infer", "read"]

[[identity]]
name = "two"
token_sha256 = "{two}"
calls = ["infer", "control"]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """`pets`, `birds`: the scores are the input; `double`: a value twice as large; `plain`: nobody
    watches it."""
    pytest.importorskip("scipy")
    folder = tmp_path_factory.mktemp("quality") / "models"
    models.write(folder, "pets", models.identity(dims=("batch", 3)), toml=QUALITY)
    models.write(folder, "birds", models.identity(dims=("batch", 3)), toml=QUALITY)
    models.write(folder, "double", models.scaled(2), toml=REGRESSION)
    models.write(folder, "plain", models.scaled(2))
    return folder


@pytest.fixture(scope="module")
def running(folder: pathlib.Path) -> Iterator[RunningServer]:
    with server.serving(folder.parent / "log", folder) as up:
        yield up


def scores(classes: Sequence[int], shift: float = 0.0) -> Any:
    """Rows whose largest scores are those of `classes`."""
    rng = np.random.default_rng(len(classes))
    found = rng.uniform(0, 1, (len(classes), 3)) + shift
    found[np.arange(len(classes)), classes] += 2
    return found.astype(np.float32)


def send(client: Client, prefix: str, classes: Sequence[int], shift: float = 0.0) -> None:
    """A request for each of `classes`, called `prefix` and its number."""
    requests = [
        StreamRequest("pets", {"x": row[None]}, InferOptions(request_id=f"{prefix}{number}"))
        for number, row in enumerate(scores(classes, shift))
    ]
    for answer in client.infer_stream(requests):
        answer.unwrap()


def metrics(running: RunningServer, model: str = "pets") -> dict[str, float]:
    """Values of quality and drift, by name and the labels that are its own."""
    found = {}
    for family in text_string_to_metric_families(running.get("/metrics")[1]):
        for sample in family.samples:
            if sample.name.startswith(("headrace_quality", "headrace_drift")):
                labels = sample.labels
                assert labels["version"] == "1"
                if labels["model"] == model:
                    own = (labels[key] for key in LABELS if key in labels)
                    found[" ".join((sample.name, *own))] = sample.value
    return found


def until(running: RunningServer, name: str, low: float, high: float) -> dict[str, float]:
    """The metrics once `name` is between both."""
    ends = time.monotonic() + PATIENCE
    while not low <= metrics(running).get(name, -1.0) <= high:
        assert time.monotonic() < ends, (name, metrics(running))
        time.sleep(0.02)
    return metrics(running)


ACCURACY = "headrace_quality_accuracy_ratio"
DRIFT = "headrace_drift_score_ratio"


def test_accuracy_follows_what_was_right_and_drift_what_is_sent(running: RunningServer) -> None:
    classes = [0, 1, 2, 1] * (WINDOW // 4)
    with Client(running.grpc) as client:
        send(client, "a", classes)
        right = {f"a{number}": class_ for number, class_ in enumerate(classes)}
        assert client.report("pets", right) == ()
        assert metrics(running)[ACCURACY] == 1.0
        assert client.report("pets", {"a0": 0, "never": 1}) == ("a0", "never")
        # Half of the truths that are told next say that the model was wrong.
        send(client, "b", classes)
        wrong = {f"b{n}": class_ if n % 2 else (class_ + 1) % 3 for n, class_ in enumerate(classes)}
        assert client.report("pets", wrong, "1") == ()
        found = until(running, f"{DRIFT} input x mean", 0, 0.3)
        assert found[ACCURACY] == 0.5
        assert found["headrace_quality_classes_total right"] == 1.5 * WINDOW
        assert found["headrace_quality_truths_total unknown request"] == 2
        assert found[f"{DRIFT} output y class"] < 0.01
        # The same classes, but from inputs that look otherwise; then other classes.
        send(client, "c", classes, shift=50)
        found = until(running, f"{DRIFT} input x mean", 0.99, 1)
        assert found[f"{DRIFT} output y mean"] == 1.0
        assert found[f"{DRIFT} output y class"] < 0.01
        send(client, "d", [0] * WINDOW, shift=50)
        until(running, f"{DRIFT} output y class", 0.5, 1)
        # Nobody has said anything of the last two, and they look as is now usual.
        client.reset_reference("pets")
        assert f"{DRIFT} input x mean" not in metrics(running)
        send(client, "e", [0] * 2 * WINDOW, shift=50)
        found = until(running, f"{DRIFT} input x mean", 0, 0.4)
        assert found[ACCURACY] == 0.5
        assert found["headrace_quality_answers"] == 4 * WINDOW


async def test_errors_of_regression_and_classes_by_name(running: RunningServer) -> None:
    async with AsyncClient(running.grpc) as client:
        await client.infer("double", {"x": np.array([[1, 2]], np.float32)}, request_id="r")
        assert await client.report("double", {"r": np.array([[2.0, 7.0]])}) == ()
        found = metrics(running, "double")
        assert found["headrace_quality_error mae"] == 1.5
        assert found["headrace_quality_error rmse"] == pytest.approx(np.sqrt(4.5))
        assert not [name for name in found if name.startswith("headrace_drift_score")]
        await client.infer("birds", {"x": scores([2, 0])}, request_id="named")
        with pytest.raises(InvalidInput, match=r"truths\[0\]\.names\[1\]: expected one of 3 class"):
            await client.report("birds", {"named": ["hen", "cow"]})
        assert await client.report("birds", {"named": ["hen", "cat"]}) == ()


def test_what_cannot_be_reported(running: RunningServer) -> None:
    with Client(running.grpc) as client:
        with pytest.raises(Unimplemented, match=r"model 'plain': nobody watches .* \[quality\]"):
            client.report("plain", {"r": 1})
        with pytest.raises(ModelNotFound, match="no model is called 'nothing'"):
            client.report("nothing", {"r": 1})
        with pytest.raises(TypeError, match="truth of request 'r': expected numbers or text"):
            client.report("pets", {"r": b"bytes"})
    with grpc.insecure_channel(running.grpc) as channel:
        call: Any = channel.unary_unary("/headrace.feedback.v1.Feedback/Report")
        wrong: list[tuple[pb.Truth | None, str]] = [
            (pb.Truth(request_id="r"), "truths[0]: expected classes, names or values, got none"),
            (
                pb.Truth(names=pb.Names(names=["cat"])),
                "truths[0].request_id: expected the id of an infer",
            ),
            (None, "the message cannot be parsed"),
        ]
        for truth, said in wrong:
            asked = pb.ReportRequest(model="pets", truths=[truth] if truth else [])
            with pytest.raises(grpc.RpcError) as caught:
                call(asked.SerializeToString() if truth else b"\xff\xff")
            error: Any = caught.value
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert said in error.details()


def test_who_may_report_what(tmp_path: pathlib.Path, folder: pathlib.Path) -> None:
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("one", "two")}
    (tmp_path / "access.toml").write_text(IDENTITIES.format(**digests))
    option = f"--access-file={tmp_path / 'access.toml'}"
    plain = ChannelOptions(token_in_plain_text=True)
    with (
        server.serving(tmp_path / "log", folder, option) as up,
        Client(up.grpc, token="one", channel=plain) as one,
        Client(up.grpc, token="two", channel=plain) as two,
    ):
        one.infer("pets", {"x": scores([1])}, request_id="r")
        assert two.report("pets", {"r": 1}) == ("r",)
        assert one.report("pets", {"r": 1}) == ()
        with pytest.raises(
            PermissionDenied, match="control of model 'pets': not allowed for 'one'"
        ):
            one.reset_reference("pets")
        two.reset_reference("pets")
