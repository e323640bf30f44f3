"""The file of identities, and the guard that asks it."""

from __future__ import annotations

import hashlib
import pathlib

import pytest

from headrace.server.errors import ConfigurationError, PermissionDenied, Unauthenticated
from headrace.server.security.access import ALL_MODELS, Kind, Shown, digest_of, read_identities
from headrace.server.security.guard import Guard, is_loopback
from headrace.server.security.reload import FRESH_SECONDS, Reloaded


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


FILE = f"""
[[identity]]
name = "sensors"
token_sha256 = "{digest("one")}"
models = ["vad-*", "keyword"]
calls = ["infer", "stream"]

[[identity]]
name = "operators"
token_sha256 = "{digest("two").upper()}"
certificate = "ops.example"
calls = ["read", "control"]
"""


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "access.toml").write_text(FILE)
    return tmp_path / "access.toml"


@pytest.fixture
def guard(file: pathlib.Path) -> Guard:
    return Guard(Reloaded([file], lambda: read_identities(file)))


def by_token(token: str) -> Shown:
    return Shown(digest_of(f"Bearer {token}"))


def allowed(guard: Guard, shown: Shown, kind: Kind, model: str | None) -> bool:
    try:
        guard.check(kind, model, lambda: shown)
    except PermissionDenied:
        return False
    return True


@pytest.mark.parametrize(
    ("token", "kind", "model", "expected"),
    [
        ("one", "infer", "vad-8k", True),
        ("one", "stream", "keyword", True),
        ("one", "infer", None, True),
        ("one", "infer", "keyword2", False),
        ("one", "infer", "VAD-8k", False),
        ("one", "infer", "", False),
        ("one", "infer", ALL_MODELS, False),
        ("one", "read", "vad-8k", False),
        ("one", "control", None, False),
        ("two", "read", ALL_MODELS, True),
        ("two", "control", "anything", True),
        ("two", "infer", "vad-8k", False),
    ],
)
def test_what_each_may_do(
    guard: Guard, token: str, kind: Kind, model: str | None, expected: bool
) -> None:
    assert allowed(guard, by_token(token), kind, model) is expected


def test_a_pattern_is_not_all_models(file: pathlib.Path) -> None:
    file.write_text(FILE.replace('["vad-*", "keyword"]', '["?", "[*]"]'))
    identities = read_identities(file)
    guard = Guard(Reloaded([file], lambda: identities))
    assert not allowed(guard, by_token("one"), "infer", ALL_MODELS)


def test_a_refusal_names_the_kind_and_the_model(guard: Guard) -> None:
    with pytest.raises(
        PermissionDenied, match=r"^control of model 'm': not allowed for 'sensors'$"
    ):
        guard.check("control", "m", lambda: by_token("one"))


@pytest.mark.parametrize(
    ("shown", "got"),
    [
        (Shown(), "neither"),
        (by_token("three"), "an unknown token"),
        (Shown(None, ("CN=x", "x")), "an unknown certificate"),
        # An unknown token is not made good by a certificate that is known.
        (Shown(by_token("three").token, ("ops.example",)), "an unknown token"),
    ],
)
def test_whoever_is_not_known_is_told_what_is_missing(guard: Guard, shown: Shown, got: str) -> None:
    with pytest.raises(Unauthenticated, match=f"got {got}$"):
        guard.check("infer", "vad-8k", lambda: shown)


def test_known_by_any_name_in_the_certificate(guard: Guard) -> None:
    shown = Shown(None, ("CN=a", "a", "ops.example"))
    assert guard.check("read", None, lambda: shown) == "operators"


@pytest.mark.parametrize(
    ("header", "token"),
    [("Bearer one", "one"), ("bearer  one ", "one"), ("Bearer", None), ("Basic one", None)],
)
def test_only_bearer_tokens_are_read(header: str, token: str | None) -> None:
    expected = None if token is None else hashlib.sha256(token.encode()).digest()
    assert digest_of(header) == expected
    assert digest_of(None) is None


def test_a_token_that_is_taken_out_of_the_file_is_unknown(file: pathlib.Path) -> None:
    now = [0.0]
    guard = Guard(Reloaded([file], lambda: read_identities(file), lambda: now[0]))
    assert allowed(guard, by_token("one"), "infer", "keyword")
    file.write_text(FILE.replace(digest("one"), digest("other")))
    now[0] += FRESH_SECONDS
    assert allowed(guard, by_token("other"), "infer", "keyword")
    with pytest.raises(Unauthenticated):
        guard.check("infer", "keyword", lambda: by_token("one"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "identity: field required"),
        ("identity = []", "identity: list should have at least 1 item"),
        ("a = [", "is not TOML"),
        (FILE.replace('"infer"', '"infers"'), "identity.0.calls.0: input should be 'infer'"),
        (FILE.replace("name", "nom", 1), "identity.0.nom: extra inputs"),
        (FILE.replace("operators", "Sensors"), "name: expected each"),
        (FILE.replace(digest("one"), digest("two")), "token_sha256: expected each"),
        (FILE.replace(digest("one"), "secret"), "identity.0.token_sha256: string should match"),
        ('[[identity]]\nname = "a"\ncalls = ["read"]', "expected token_sha256, certificate"),
    ],
)
def test_a_wrong_file_is_told_by_key_without_its_secrets(
    file: pathlib.Path, text: str, line: str
) -> None:
    file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        read_identities(file)
    assert f"access_file: {file}" in str(caught.value)
    assert line in str(caught.value)
    assert "secret" not in str(caught.value)


def test_without_a_file_everything_but_control_is_allowed() -> None:
    closed, opened = Guard(control=False), Guard()
    for kind in ("infer", "stream", "read"):
        assert allowed(closed, Shown(), kind, "m")
    assert not allowed(closed, Shown(), "control", "m")
    assert allowed(opened, Shown(), "control", "m")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("server.example", False),
        ("", False),
    ],
)
def test_which_addresses_only_this_machine_reaches(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
