"""Hear when somebody speaks: a recurrent model on a stream of audio.

    python examples/voice_activity.py [--address HOST:PORT] [--speed 8] [--plot FILE.svg]
    python examples/voice_activity.py --check     # 200 streams at once against ONNX Runtime alone

The model is Silero VAD, out of its Python package; it takes 512 samples at a time, with the 64
before them, and keeps its state on the server. The speech is made by eSpeak NG. Without an address
the program starts a server of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnxruntime as ort

from _plot import Picture, text_plot
from _setup import files_of, server
from _speech import RATE, Audio, Speaker, conversation
from headrace.client import AsyncClient, Client, Gap, StreamOptions

MODEL_TOML = """
[constants]
sr = 16000

[[state]]
input = "state"
output = "stateN"
batch_axis = 1
"""
WINDOW, CONTEXT = 512, 64
OPTIONS = StreamOptions(context=CONTEXT)
SPEECH, SILENCE = 0.5, 0.35  # probabilities above and below which it begins and ends
PATIENCE = 8  # windows of silence that end it


def repository(folder: Path) -> Path:
    """A model repository that holds the model, and says what its state is. Returns the file."""
    package = files_of("silero-vad==6.2.3", "silero_vad/data/silero_vad_16k_op15.onnx")
    target = folder / "silero_vad" / "1" / "model.onnx"
    target.parent.mkdir(parents=True)
    shutil.copy(package / "silero_vad" / "data" / "silero_vad_16k_op15.onnx", target)
    (folder / "silero_vad" / "model.toml").write_text(MODEL_TOML)
    return target


def chunks(audio: Audio, speed: float) -> Iterator[Audio]:
    """A tenth of a second at a time, as fast as a microphone times `speed` would give them."""
    began = time.monotonic()
    for at in range(0, len(audio), RATE // 10):
        if speed:
            time.sleep(max(0.0, began + at / RATE / speed - time.monotonic()))
        yield audio[at : at + RATE // 10]


def listen(client: Client, audio: Audio, speed: float) -> tuple[list[float], list[list[float]]]:
    """The probability of speech in each window, and from when to when there was some."""
    probabilities: list[float] = []
    spans: list[list[float]] = []
    speaking, silent = False, 0
    opened = client.stream("silero_vad", window=WINDOW, sample_rate=RATE, options=OPTIONS)
    with opened as stream:
        for event in stream.run(chunks(audio, speed)):
            if isinstance(event, Gap):
                print(f"windows {event.first_window} to {event.end_window - 1}: {event.message}")
                continue
            probability = float(event["output"][0, 0])
            probabilities.append(probability)
            if not speaking and probability >= SPEECH:
                speaking = True
                spans.append([event.start, event.end])
                print(f"{event.start:6.2f} s  speech", end="", flush=True)
            elif speaking:
                silent = silent + 1 if probability < SILENCE else 0
                if not silent:
                    spans[-1][1] = event.end
                elif silent == PATIENCE:
                    speaking, silent = False, 0
                    print(f" until {spans[-1][1]:6.2f} s", flush=True)
    print(f"\n{stream.summary}")
    return probabilities, spans


def draw(
    path: Path,
    audio: Audio,
    probabilities: Sequence[float],
    found: Sequence[Sequence[float]],
    spoken: Sequence[tuple[float, float]],
) -> None:
    seconds = len(audio) / RATE
    picture = Picture("Voice activity: Silero VAD on a stream, window by window", seconds)
    heard = [(start, end, "#bfdbfe") for start, end in found]
    top = picture.panel("audio", 90, heard)
    peaks = np.array([np.abs(part).max() for part in np.array_split(audio, 800)])
    times = np.linspace(0, seconds, len(peaks))
    for sign in (1, -1):
        picture.line(top, 90, times, 0.5 + sign * peaks / peaks.max() / 2.2, "#4b5563")
    top = picture.panel("probability", 70, heard)
    picture.line(top, 70, (np.arange(len(probabilities)) + 1) * WINDOW / RATE, probabilities)
    picture.panel("spoken", 12, [(start, end, "#16a34a") for start, end in spoken])
    picture.legend([("#bfdbfe", "speech found"), ("#16a34a", "speech there was")])
    picture.save(path)


def alone(model: Path, audio: Audio) -> list[float]:
    """The same by ONNX Runtime alone: a loop over windows that hands the state on."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    state, rate = np.zeros((2, 1, 128), np.float32), np.array(RATE, np.int64)
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), audio])
    answers = []
    for at in range(0, len(audio) - WINDOW + 1, WINDOW):
        window = padded[None, at : at + CONTEXT + WINDOW]
        inputs = {"input": window, "state": state, "sr": rate}
        output, state = session.run(["output", "stateN"], inputs)
        answers.append(float(output[0, 0]))
    return answers


async def listen_to_all(address: str, signals: Sequence[Audio]) -> list[list[float]]:
    """All of them at once, on one connection, in pieces that have nothing to do with windows."""

    async def pieces(audio: Audio, seed: int) -> AsyncIterator[Audio]:
        rng = np.random.default_rng(seed)
        at = 0
        while at < len(audio):
            size = int(rng.integers(1, 3000))
            yield audio[at : at + size]
            at += size
            await asyncio.sleep(0)  # the others' turn

    async def one(client: AsyncClient, audio: Audio, seed: int) -> list[float]:
        opened = client.stream("silero_vad", window=WINDOW, sample_rate=RATE, options=OPTIONS)
        async with opened as stream:
            events = [event async for event in stream.run(pieces(audio, seed))]
        return [float(event["output"][0, 0]) for event in events if not isinstance(event, Gap)]

    async with AsyncClient(address) as client:
        listening = [one(client, audio, seed) for seed, audio in enumerate(signals)]
        return await asyncio.gather(*listening)


def check(address: str, model: Path, audio: Audio, sessions: int) -> None:
    """Raises SystemExit where a stream hears something else than the loop."""
    rng = np.random.default_rng(1)
    signals = []
    for _ in range(sessions):
        start, length = rng.integers(0, len(audio) // 2), rng.integers(RATE // 2, 6 * RATE)
        signals.append(audio[start : start + length])
    began = time.monotonic()
    heard = asyncio.run(listen_to_all(address, signals))
    took = time.monotonic() - began
    furthest, windows = 0.0, 0
    for got, signal in zip(heard, signals, strict=True):
        expected = alone(model, signal)
        if len(got) != len(expected):
            raise SystemExit(f"expected {len(expected)} windows, got {len(got)}")
        windows += len(got)
        furthest = max(furthest, float(np.abs(np.subtract(got, expected)).max(initial=0)))
    print(f"{sessions} streams at once: {windows} windows in {took:.1f} s, at most {furthest:.1e}")
    print("from what ONNX Runtime alone says of the same window")
    if furthest > 1e-4:
        raise SystemExit("that is more than 1e-4")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", help="of a server that has the model silero_vad")
    parser.add_argument("--speed", type=float, default=8, help="times real time; 0: unlimited")
    parser.add_argument("--plot", type=Path, default=Path("voice_activity.svg"))
    parser.add_argument("--check", action="store_true", help="compare with ONNX Runtime alone")
    parser.add_argument("--sessions", type=int, default=200, help="of --check")
    args = parser.parse_args(argv)

    audio, spoken = conversation(Speaker())
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = repository(folder)
        address = args.address or stack.enter_context(server(folder))
        if args.check:
            check(address, model, audio, args.sessions)
            return
        with Client(address) as client:
            probabilities, found = listen(client, audio, args.speed)
    print(text_plot(probabilities))
    draw(args.plot, audio, probabilities, found, spoken)
    print(f"picture: {args.plot}")


if __name__ == "__main__":
    main()
