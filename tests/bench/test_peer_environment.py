"""What the peers' folders say, and when an environment is another one."""

import ast
import importlib.metadata
from pathlib import Path

import pytest

from headrace.bench import peer_environment
from headrace.bench.adaptors import ADAPTORS
from headrace.bench.peer import available
from headrace.bench.peer_environment import Peer, PeerUnavailable, environment, key, pinned, read

PEERS = [
    "bentoml",
    "echo",
    "headrace",
    "kserve",
    "litserve",
    "mlserver",
    "mosec",
    "pytriton",
    "triton",
]
MINIMAL = {
    "about": "a peer",
    "package": "peer",
    "requirements": ["peer==1.0"],
    "protocol": "grpc",
    "ready": "model",
    "differs": [],
    "configurations": {"default": {"words": "as it comes"}, "tuned": {"words": "tuned"}},
}


def test_every_peer_of_the_list_is_there() -> None:
    assert available() == PEERS


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_is_complete(name: str) -> None:
    peer = read(name)
    program = peer_environment.folder() / name / "serve.py"
    assert program.is_file()
    for configuration in peer.configurations.values():
        adaptor = configuration.adaptor or peer.adaptor
        assert adaptor in ADAPTORS if peer.protocol == "http" else adaptor == ""
    if peer.requirements:
        assert peer.differs, "what differs is for the report to say"
        assert any(each.startswith(f"{peer.package}==") for each in peer.requirements)
        assert "onnxruntime" in peer.requirements, "the version is ours, so no pin of its own"
        for configuration in peer.configurations.values():
            assert "threads" in configuration.settings


@pytest.mark.parametrize("path", sorted(peer_environment.folder().rglob("*.py")), ids=str)
def test_a_peers_program_does_not_import_us(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not [name for name in names if name.partition(".")[0] == "headrace"]


def test_an_unknown_peer_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"'nobody': unknown; there are bentoml, echo, headrace"):
        read("nobody")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"configurations": {"default": {"words": "x"}}}, "tuned missing"),
        ({"protocol": "http"}, "an HTTP peer names one"),
        ({"adaptor": "oip"}, "a gRPC peer has none"),
        ({"ready": "health"}, "ready"),
        ({"require": []}, "require"),
    ],
)
def test_a_wrong_peer_file_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Peer.model_validate(MINIMAL | changes)


def test_the_file_is_named_in_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_environment, "folder", lambda: tmp_path)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "peer.toml").write_text("about = ")
    with pytest.raises(ValueError, match=r"odd/peer\.toml"):
        read("odd")


def test_a_bare_onnxruntime_is_pinned_to_ours() -> None:
    ours = importlib.metadata.version("onnxruntime")
    assert pinned(("peer==1", "onnxruntime")) == ("peer==1", f"onnxruntime=={ours}")
    assert pinned(("onnxruntime==1.20.0",)) == ("onnxruntime==1.20.0",)


def test_the_key_changes_with_what_is_asked_for_and_with_nothing_else() -> None:
    base = key(("a==1", "b"), "3.11.7")
    assert base == key(("b", "a==1"), "3.11.7")
    assert len({base, key(("a==2", "b"), "3.11.7"), key(("a==1", "b"), "3.12.1")}) == 3


def test_no_requirements_are_our_own_environment() -> None:
    found = environment("headrace", read("headrace"))
    assert found.packages["onnxruntime"] == importlib.metadata.version("onnxruntime")


def test_a_peer_without_its_python_says_which_it_needs() -> None:
    peer = Peer.model_validate(MINIMAL | {"python": ["2.0", "2.1"]})
    with pytest.raises(PeerUnavailable, match=r"needs Python 2\.0 or 2\.1"):
        environment("peer", peer)


def test_a_failed_installation_gives_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_environment, "CACHE", tmp_path / "peers")
    nowhere = f"peer @ file://{tmp_path}/there-is-none.whl"
    peer = Peer.model_validate(MINIMAL | {"requirements": [nowhere]})
    with pytest.raises(PeerUnavailable, match=r"could not be installed(.|\n)*there-is-none"):
        environment("peer", peer)
    assert not list(tmp_path.rglob("installed.json"))  # the next time tries again
