"""Whether a server answers rightly: compared once with ONNX Runtime's own answer, before it is
measured."""

from __future__ import annotations

import http.client
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from headrace.bench import peer_environment as environments
from headrace.bench.adaptors import find
from headrace.bench.spec import Target
from headrace.client import Client, HeadraceError

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]

ANSWER_SECONDS = 60.0


class WrongAnswer(Exception):
    """A server whose answer is not the model's. The message names the tensor."""


def reference(model: Path, inputs: Tensors) -> dict[str, Array]:
    """The outputs of `model` (an .onnx file), computed by ONNX Runtime in a process of its own: the
    load generator itself never loads it. Raises RuntimeError, with that process' words, where it is
    not installed or fails."""
    program = environments.folder() / "shared" / "reference.py"
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "inputs.npz"), Path(folder, "outputs.npz")
        np.savez(given, allow_pickle=False, **dict(inputs))
        command = [sys.executable, str(program), str(model), str(given), str(found)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS)
        if done.returncode != 0:
            raise RuntimeError(f"{model}: no reference answer\n{done.stderr.strip()[-1000:]}")
        with np.load(found) as outputs:
            return {str(n): outputs[f"output_{i}"] for i, n in enumerate(outputs["names"])}


def ask(target: Target, model_name: str, inputs: Tensors) -> dict[str, Array]:
    """The server's answer to one request. Raises WrongAnswer for an error or an answer that cannot
    be read."""
    try:
        if target.protocol == "http":
            return _ask_http(target, model_name, inputs)
        with Client(target.address) as client:
            return dict(client.infer(model_name, dict(inputs), deadline=ANSWER_SECONDS))
    except (HeadraceError, OSError, http.client.HTTPException, ValueError, KeyError) as error:
        raise WrongAnswer(f"{target.name}: no answer: {error}") from error


def check(
    target: Target,
    model_name: str,
    inputs: Tensors,
    expected: Tensors,
    *,
    relative: float = 1e-3,
    absolute: float = 1e-4,
) -> None:
    """Sends `inputs` once. Raises WrongAnswer unless every output is `expected`'s within the
    tolerances (numpy.isclose), which allow for another order of summation, not for another
    model."""
    answer = ask(target, model_name, inputs)
    for name, right in expected.items():
        if name not in answer:
            got = ", ".join(answer)
            raise WrongAnswer(f"{target.name}: output {name!r} is missing; got {got or 'none'}")
        found = answer[name]
        if found.shape != right.shape:
            raise WrongAnswer(
                f"{target.name}: output {name!r}: expected shape {right.shape}, got {found.shape}"
            )
        close = np.isclose(found, right, rtol=relative, atol=absolute, equal_nan=True)
        if not close.all():
            worst = np.abs(found - right).max()
            raise WrongAnswer(
                f"{target.name}: output {name!r}: {(~close).sum()} of {close.size} values differ, "
                f"by up to {worst:g}"
            )


def _ask_http(target: Target, model_name: str, inputs: Tensors) -> dict[str, Array]:
    adaptor = find(target.adaptor or "oip")
    request = adaptor.prepare(model_name, inputs)
    url = urlsplit(target.address)
    if url.hostname is None:
        raise ValueError(f"address: expected a URL such as http://127.0.0.1:8000, got {url.path!r}")
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=ANSWER_SECONDS)
    try:
        connection.request("POST", url.path + request.path, request.body, dict(request.headers))
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise ValueError(f"HTTP {response.status}: {body[:300].decode(errors='replace')}")
    return adaptor.read(body, {key.lower(): value for key, value in response.getheaders()})
