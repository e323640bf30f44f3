"""Peers as processes: a fake one that spawns a child, and ourselves, which is a peer as well."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from headrace.bench import peer as peers
from headrace.bench import peer_environment
from headrace.bench.peer import PeerUnavailable, serve
from headrace.bench.peer_check import WrongAnswer, ask, check, reference
from headrace.bench.peer_process import free_ports, members, stop_group
from support import models

# An HTTP server whose answer is the request's body, with a child, and one that has left the group.
FAKE = """
import argparse, http.server, json, os, signal, subprocess, sys
parser = argparse.ArgumentParser()
for name in ("--model", "--name", "--host", "--folder", "--settings"):
    parser.add_argument(name)
parser.add_argument("--port", type=int)
given = parser.parse_args()
settings = json.loads(given.settings)
if settings.get("stubborn"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if settings.get("broken"):
    sys.exit("no licence found")
if "once" in settings and not os.path.exists(settings["once"]):
    open(settings["once"], "w").close()
    sys.exit("the port is taken")
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
children = [subprocess.Popen(sleep), subprocess.Popen(sleep, start_new_session=True)]

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(b"")
    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers["content-length"])))
    def answer(self, body):
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer((given.host, given.port), Handler).serve_forever()
"""
TOML = """
about = "a server of this test"
package = "numpy"
requirements = []
protocol = "http"
adaptor = "mosec"
ready = "/"
start_seconds = 60
differs = ["it computes nothing"]
[configurations.default]
words = "as it comes"
[configurations.tuned]
words = "tuned"
settings = { instances = "cpus" }
"""


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    path = tmp_path / "identity.onnx"
    models.save(models.identity("FP32", ("batch", 16)), path)
    return path


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "peers"
    (folder / "fake").mkdir(parents=True)
    (folder / "fake" / "peer.toml").write_text(TOML)
    (folder / "fake" / "serve.py").write_text(FAKE)
    (folder / "shared").symlink_to(peer_environment.folder() / "shared")
    monkeypatch.setattr(peer_environment, "folder", lambda: folder)
    monkeypatch.setattr(peer_environment, "CACHE", tmp_path / "cache")
    return "fake"


def test_ports_are_free_and_differ() -> None:
    assert len(set(free_ports(20))) == 20


def test_a_peer_is_served_and_nothing_of_it_is_left(fake: str, identity: Path) -> None:
    inputs = {"x": np.ones((1, 4), np.float32)}
    with serve(fake, identity, model_name="m") as target:
        assert target.pid is not None
        family = [psutil.Process(target.pid)]
        family += family[0].children(recursive=True)
        assert len(family) == 3
        assert target.name == "fake"
        assert target.about["words"] == "as it comes"
        assert target.about["differs"] == ["it computes nothing"]
        assert target.about["version"] == np.__version__
        assert target.about["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 16]}]
        check(target, "m", inputs, inputs)
        with pytest.raises(WrongAnswer, match=r"fake: output 'x'"):
            check(target, "m", inputs, {"x": np.zeros((1, 4), np.float32)})
    assert not members(target.pid)
    assert not [each for each in family if each.is_running()]
    with pytest.raises(WrongAnswer, match="no answer"):
        ask(target, "m", inputs)


def test_a_peer_that_ignores_sigterm_is_killed(
    fake: str, identity: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "STOP_SECONDS", 0.2)
    stubborn = {"stubborn": True}
    with serve(fake, identity, model_name="m", settings=stubborn) as target:
        assert target.pid is not None
    assert not members(target.pid)


def test_the_group_is_stopped_when_the_load_test_fails(fake: str, identity: Path) -> None:
    served = serve(fake, identity, "tuned", name="a name", model_name="m")
    target = served.__enter__()
    assert target.name == "a name"
    assert target.about["settings"]["instances"] == len(os.sched_getaffinity(0))
    assert served.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None) is False
    assert target.pid is not None
    assert not members(target.pid)


def test_a_peer_that_does_not_start_says_why(fake: str, identity: Path) -> None:
    with (
        pytest.raises(PeerUnavailable, match=r"exited with 1(.|\n)*no licence found"),
        serve(fake, identity, model_name="m", settings={"broken": True}),
    ):
        pytest.fail("it was served")


def test_a_peer_that_fails_once_is_started_again(fake: str, identity: Path, tmp_path: Path) -> None:
    once = {"once": str(tmp_path / "started")}
    with serve(fake, identity, model_name="m", settings=once) as target:
        assert target.about["starts"] == 2


def test_a_file_that_is_no_model_is_refused_before_the_start(fake: str, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"nothing")
    with (
        pytest.raises(PeerUnavailable, match=r"cannot read .*m\.onnx"),
        serve(fake, tmp_path / "m.onnx", model_name="m"),
    ):
        pytest.fail("it was served")


def test_an_unknown_configuration_is_refused(fake: str, identity: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"'fastest' is none of default, tuned"),
        serve(fake, identity, "fastest", model_name="m"),
    ):
        pytest.fail("it was served")


def test_children_outlive_no_leader_that_has_gone_first() -> None:
    """A leader that dies leaves its group behind: it is still found, and ended."""
    program = (
        "import subprocess, sys; "
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    )
    leader = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    leader.wait()
    assert len(members(leader.pid)) == 1
    stop_group(leader, grace=10.0)
    assert not members(leader.pid)


@pytest.mark.parametrize("configuration", ["default", "tuned"])
def test_headrace_is_a_peer_that_answers_as_onnx_runtime_does(
    configuration: str, identity: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_environment, "CACHE", tmp_path / "cache")
    inputs = {"x": np.arange(16, dtype=np.float32).reshape(1, 16)}
    with serve("headrace", identity, configuration, model_name="tiny") as target:
        expected = reference(identity, inputs)
        assert np.array_equal(expected["y"], inputs["x"])
        check(target, "tiny", inputs, expected)
        assert target.about["onnxruntime"]


def test_a_reference_for_a_file_that_is_no_model_says_so(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"nothing")
    with pytest.raises(RuntimeError, match=r"no reference answer"):
        reference(tmp_path / "m.onnx", {"x": np.zeros(1)})
