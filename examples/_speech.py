"""Speech to test with, made by eSpeak NG: the installed one, or the library in a Python package."""

from __future__ import annotations

import ctypes
import io
import shutil
import subprocess
import sys
import wave

import numpy as np
import numpy.typing as npt

from _setup import files_of

RATE = 16_000
SENTENCES = (
    "The water in the head race is clear today.",
    "Yes.",
    "Open the gate by twenty centimetres, and tell me when the turbine has settled.",
    "Wait.",
    "Nothing moves, the river is quiet, and the night shift begins at ten.",
    "How much does it carry?",
    "Eleven cubic metres in a second, more than yesterday.",
    "Good, then close it again.",
)

Audio = npt.NDArray[np.float32]


class Speaker:
    """Says sentences as audio at 16 kHz."""

    def __init__(self) -> None:
        self._library = None if shutil.which("espeak-ng") else _Library()

    def say(self, sentence: str, *, words_per_minute: int = 165, pitch: int = 50) -> Audio:
        """[samples], from -1 to 1."""
        if self._library is not None:
            samples, rate = self._library.say(sentence, words_per_minute, pitch)
        else:
            options = ["-s", str(words_per_minute), "-p", str(pitch), "--stdout"]
            command = ["espeak-ng", *options, sentence]
            out = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
            with wave.open(io.BytesIO(out)) as file:
                rate = file.getframerate()
                # To a pipe it cannot write the length, and gives far more than there is.
                samples = np.frombuffer(file.readframes(len(out) // 2), np.int16)
        return _resampled(samples.astype(np.float32) / 32768, rate)


class _Library:
    """The shared library that the package espeakng-loader carries, called through ctypes."""

    _SYNCHRONOUS, _UTF8, _RATE, _PITCH, _CHARACTERS = 2, 1, 1, 3, 1
    _CALLBACK = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
    )

    def __init__(self) -> None:
        folder = files_of("espeakng-loader==0.2.4", "espeakng_loader/") / "espeakng_loader"
        name = {"win32": "espeak-ng.dll", "darwin": "libespeak-ng.dylib"}.get(
            sys.platform, "libespeak-ng.so"
        )
        try:
            self._espeak = ctypes.CDLL(str(folder / name))
        except OSError as error:
            raise SystemExit(
                f"eSpeak NG cannot be loaded ({error}); install it, as by "
                "`apt-get install espeak-ng`, and try again"
            ) from error
        self._rate = self._espeak.espeak_Initialize(self._SYNCHRONOUS, 0, str(folder).encode(), 0)
        if self._rate <= 0:
            raise SystemExit("eSpeak NG cannot read its data; install it, and try again")
        self._parts: list[npt.NDArray[np.int16]] = []
        self._callback = self._CALLBACK(self._heard)  # kept alive here: C holds only its address
        self._espeak.espeak_SetSynthCallback(self._callback)
        self._espeak.espeak_SetVoiceByName(b"en")

    def _heard(self, samples: object, count: int, _: object) -> int:
        if samples and count > 0:
            self._parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, sentence: str, speed: int, pitch: int) -> tuple[npt.NDArray[np.int16], int]:
        self._parts.clear()
        self._espeak.espeak_SetParameter(self._RATE, speed, 0)
        self._espeak.espeak_SetParameter(self._PITCH, pitch, 0)
        text = sentence.encode() + b"\0"
        size = ctypes.c_size_t(len(text))
        begin, end = 0, 0
        self._espeak.espeak_Synth(text, size, begin, self._CHARACTERS, end, self._UTF8, None, None)
        return np.concatenate(self._parts), self._rate


def _resampled(samples: npt.NDArray[np.floating], rate: int) -> Audio:
    """At `RATE`, by cutting the spectrum there."""
    count = len(samples) * RATE // rate
    spectrum = np.fft.rfft(samples)[: count // 2 + 1]
    return (np.fft.irfft(spectrum, count) * (count / len(samples))).astype(np.float32)


def conversation(speaker: Speaker, seed: int = 0) -> tuple[Audio, list[tuple[float, float]]]:
    """All sentences with silence of different lengths between them, faint noise over everything;
    and from when to when, in seconds, somebody speaks."""
    rng = np.random.default_rng(seed)
    parts: list[Audio] = []
    spoken: list[tuple[float, float]] = []
    length = 0
    for number, sentence in enumerate(SENTENCES):
        silence = np.zeros(int(RATE * rng.uniform(0.8, 2.0)), np.float32)
        speech = _trimmed(speaker.say(sentence, pitch=35 + 30 * (number % 2)))
        start = length + len(silence)
        length = start + len(speech)
        spoken.append((start / RATE, length / RATE))
        parts += [silence, speech]
    audio = np.concatenate([*parts, np.zeros(RATE, np.float32)])
    return audio + rng.normal(0, 0.002, len(audio)).astype(np.float32), spoken


def _trimmed(speech: Audio) -> Audio:
    loud = np.flatnonzero(np.abs(speech) > 0.01)
    return speech[loud[0] : loud[-1] + 1]
