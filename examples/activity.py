"""Tell from a smart watch what its wearer does: a small classifier on streams of body sensors.

    python examples/activity.py [--address HOST:PORT] [--speed 20] [--plot FILE.svg]

The recordings are BasicMotions, out of the Python package aeon: six channels of a watch
(accelerometer and gyroscope), ten times a second, of people who stand, walk, run and play
badminton. The program trains on one half, writes the model as ONNX, starts a server of its own
(unless given an address), streams the other half, and says how often the answer was right. It
needs the package onnx, as `pip install 'headrace[examples]'` brings it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from _plot import Picture
from _setup import files_of, server
from headrace.client import Client, Gap

RATE, WINDOW, HOP, CHANNELS = 10, 25, 5, 6
ACTIVITIES = ("Standing", "Walking", "Running", "Badminton")
COLOURS = ("#cbd5e1", "#86efac", "#fca5a5", "#fde68a")

Array = Any


@dataclass(frozen=True)
class Recording:
    """samples: [samples, channels]. activity: an index into ACTIVITIES."""

    samples: Array
    activity: int


def recordings(part: str) -> list[Recording]:
    """Those of the file for `part`, TRAIN or TEST: one a line, channels apart by colons."""
    folder = "aeon/datasets/data/BasicMotions/"
    file = files_of("aeon==1.6.0", folder) / folder / f"BasicMotions_{part}.ts"
    lines = file.read_text().partition("@data\n")[2].splitlines()
    found = []
    for line in lines:
        *channels, activity = line.split(":")
        samples = np.array([channel.split(",") for channel in channels], np.float32).T
        found.append(Recording(samples, ACTIVITIES.index(activity)))
    return found


# The model: what a window of each channel looks like, in numbers, and a line between the classes.


def features(windows: Array) -> Array:
    """[windows, samples, channels] to [windows, 3 * channels]: the mean, the deviation from it, and
    the step from sample to sample; the graph below computes the same."""
    mean = windows.mean(axis=1)
    deviation = np.abs(windows - mean[:, None]).mean(axis=1)
    step = np.abs(np.diff(windows, axis=1)).mean(axis=1)
    return np.concatenate([mean, np.log(deviation + 0.01), np.log(step + 0.01)], axis=1)


def train(of: Sequence[Recording]) -> tuple[Array, Array]:
    """Weights [features, classes] and biases of a logistic regression, by gradient descent."""
    cut = [
        (recording.samples[at : at + WINDOW], recording.activity)
        for recording in of
        for at in range(0, len(recording.samples) - WINDOW + 1, HOP)
    ]
    x = features(np.stack([window for window, _ in cut]))
    wanted = np.eye(len(ACTIVITIES))[[activity for _, activity in cut]]
    mean, scale = x.mean(axis=0), x.std(axis=0)
    x = (x - mean) / scale
    weights, bias = np.zeros((x.shape[1], len(ACTIVITIES))), np.zeros(len(ACTIVITIES))
    for _ in range(1000):
        scores = x @ weights + bias
        chances = np.exp(scores - scores.max(axis=1, keepdims=True))
        error = (chances / chances.sum(axis=1, keepdims=True) - wanted) / len(x)
        weights -= 0.5 * (x.T @ error + 1e-3 * weights)
        bias -= 0.5 * error.sum(axis=0)
    weights /= scale[:, None]  # so that the graph need not scale its features
    return weights.astype(np.float32), (bias - mean @ weights).astype(np.float32)


def export(weights: Array, bias: Array, path: Path) -> None:
    """The model as ONNX: x [batch, samples, 6] to probabilities [batch, 4]."""
    constants: dict[str, Array] = {
        "weights": weights,
        "bias": bias,
        "small": np.array(0.01, np.float32),
        "time": np.array([1], np.int64),
        "from": np.array([1], np.int64),
        "end": np.array([2**31], np.int64),
        "start": np.array([0], np.int64),
        "last": np.array([-1], np.int64),
    }
    nodes = [
        helper.make_node("ReduceMean", ["x", "time"], ["mean"], keepdims=0),
        helper.make_node("ReduceMean", ["x", "time"], ["mean_kept"]),
        helper.make_node("Sub", ["x", "mean_kept"], ["centred"]),
        helper.make_node("Slice", ["x", "from", "end", "time"], ["later"]),
        helper.make_node("Slice", ["x", "start", "last", "time"], ["earlier"]),
        helper.make_node("Sub", ["later", "earlier"], ["steps"]),
        *_log_of_mean_size("centred", "deviation"),
        *_log_of_mean_size("steps", "step"),
        helper.make_node("Concat", ["mean", "deviation", "step"], ["features"], axis=1),
        helper.make_node("Gemm", ["features", "weights", "bias"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "activity",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "samples", CHANNELS])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def _log_of_mean_size(source: str, target: str) -> list[Any]:
    return [
        helper.make_node("Abs", [source], [f"{target}_sizes"]),
        helper.make_node("ReduceMean", [f"{target}_sizes", "time"], [f"{target}_mean"], keepdims=0),
        helper.make_node("Add", [f"{target}_mean", "small"], [f"{target}_sum"]),
        helper.make_node("Log", [f"{target}_sum"], [target]),
    ]


# The stream.


@dataclass
class Seen:
    """What the model said of each window. ends: of the window, in seconds."""

    ends: list[float]
    activities: list[int]
    probabilities: list[Array]


def watch(client: Client, of: Sequence[Recording], speed: float) -> Seen:
    """Streams the recordings as one day of a watch, and prints what it sees as it changes."""

    def samples() -> Iterator[Array]:
        began, sent = time.monotonic(), 0
        for recording in of:
            for sample in recording.samples:
                if speed:
                    due = began + sent / RATE / speed
                    time.sleep(max(0.0, due - time.monotonic()))
                yield sample[None]
                sent += 1

    seen = Seen([], [], [])
    opened = client.stream("activity", window=WINDOW, hop=HOP, sample_rate=RATE, channels=CHANNELS)
    with opened as stream:
        for event in stream.run(samples()):
            if isinstance(event, Gap):
                print(f"windows {event.first_window} to {event.end_window - 1}: {event.message}")
                continue
            probabilities = event["probabilities"][0]
            activity = int(probabilities.argmax())
            if not seen.activities or activity != seen.activities[-1]:
                sure = float(probabilities.max())
                print(f"{event.end:7.1f} s  {ACTIVITIES[activity]:<10} {sure:4.0%}", flush=True)
            seen.ends.append(event.end)
            seen.activities.append(activity)
            seen.probabilities.append(probabilities)
    return seen


def accuracy(of: Sequence[Recording], seen: Seen) -> float:
    """The share of right answers, of windows that lie in one recording."""
    length = len(of[0].samples)
    right = total = 0
    for end, activity in zip(seen.ends, seen.activities, strict=True):
        last = round(end * RATE) - 1
        first = last - WINDOW + 1
        if first // length == last // length:
            total += 1
            right += activity == of[last // length].activity
    return right / total


def draw(path: Path, of: Sequence[Recording], seen: Seen) -> None:
    length = len(of[0].samples) / RATE
    picture = Picture("Activity by time, from the sensors of a watch", length * len(of))
    true = [
        (at * length, (at + 1) * length, COLOURS[recording.activity])
        for at, recording in enumerate(of)
    ]
    said = [
        (end - HOP / RATE, end, COLOURS[activity])
        for end, activity in zip(seen.ends, seen.activities, strict=True)
    ]
    signal = np.concatenate([recording.samples[:, 0] for recording in of])
    top = picture.panel("acceleration", 80)
    scaled = np.clip(0.5 + signal / 40, 0, 1)
    picture.line(top, 80, np.arange(len(signal)) / RATE, scaled, "#4b5563")
    picture.panel("said", 30, said)
    picture.panel("true", 30, true)
    picture.legend(list(zip(COLOURS, ACTIVITIES, strict=True)))
    picture.save(path)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", help="of a server that has the model, as --save wrote it")
    parser.add_argument("--speed", type=float, default=20, help="times real time; 0: unlimited")
    parser.add_argument("--recordings", type=int, default=40, help="how many to stream")
    parser.add_argument("--save", type=Path, help="a model repository to write the model to")
    parser.add_argument("--plot", type=Path, default=Path("activity.svg"))
    args = parser.parse_args(argv)

    held_out = recordings("TEST")
    order = np.random.default_rng(0).permutation(len(held_out))[: args.recordings]
    held_out = [held_out[index] for index in order]
    with ExitStack() as stack:
        folder = args.save or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        export(*train(recordings("TRAIN")), folder / "activity" / "1" / "model.onnx")
        address = args.address or stack.enter_context(server(folder))
        with Client(address) as client:
            seen = watch(client, held_out, args.speed)
    share = accuracy(held_out, seen)
    print(f"{share:.1%} of {len(seen.ends)} windows right, on recordings it was not trained on")
    draw(args.plot, held_out, seen)
    print(f"picture: {args.plot}")


if __name__ == "__main__":
    main()
