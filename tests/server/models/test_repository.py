"""Where models are found, and what is said of paths that hold none."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from headrace.server.errors import ConfigurationError, LoadFailed
from headrace.server.models.options import ModelOptions, VersionPolicy
from headrace.server.models.repository import Catalogue, ModelSource


def touch(root: pathlib.Path, *paths: str) -> pathlib.Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def refused(*paths: pathlib.Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        Catalogue(paths)
    return str(caught.value)


def test_a_file(tmp_path: pathlib.Path) -> None:
    path = touch(tmp_path, "net.onnx") / "net.onnx"
    source = Catalogue([path]).sources()["net"]
    assert source.files(source.options()) == {1: path}
    assert source.options() == ModelOptions()


@pytest.mark.parametrize("entry", ["1/model.onnx", "config.pbtxt", "model.toml", "model.onnx"])
def test_a_models_folder(tmp_path: pathlib.Path, entry: str) -> None:
    folder = touch(tmp_path, f"net/{entry}") / "net"
    assert Catalogue([folder]).sources() == {"net": ModelSource("net", folder)}


def test_the_working_directory_has_a_name(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(touch(tmp_path, "net/1/model.onnx") / "net")
    assert list(Catalogue([pathlib.Path()]).sources()) == ["net"]


def test_a_repository(tmp_path: pathlib.Path) -> None:
    touch(tmp_path, "b/1/model.onnx", "a/config.pbtxt", "broken/readme", ".git/1/x", "notes.txt")
    assert list(Catalogue([tmp_path]).sources()) == ["a", "b", "broken"]


def test_models_of_a_repository_may_come_and_go(tmp_path: pathlib.Path) -> None:
    catalogue = Catalogue([touch(tmp_path, "a/1/model.onnx")])
    touch(tmp_path, "b/1/model.onnx")
    assert list(catalogue.sources()) == ["a", "b"]
    (tmp_path / "a").rename(tmp_path / ".a")
    assert list(catalogue.sources()) == ["b"]


def test_several_paths(tmp_path: pathlib.Path) -> None:
    touch(tmp_path, "repository/a/1/model.onnx", "b/1/model.onnx", "c.onnx")
    paths = [tmp_path / "repository", tmp_path / "b", tmp_path / "c.onnx"]
    assert sorted(Catalogue(paths).sources()) == ["a", "b", "c"]


def test_a_name_may_be_given(tmp_path: pathlib.Path) -> None:
    touch(tmp_path, "net/1/model.onnx", "net.onnx")
    paths = [pathlib.Path(f"one={tmp_path}/net"), pathlib.Path(f"two={tmp_path}/net.onnx")]
    sources = Catalogue(paths).sources()
    assert {name: source.path.name for name, source in sources.items()} == {
        "one": "net",
        "two": "net.onnx",
    }


def test_a_path_with_an_equals_sign_is_a_path(tmp_path: pathlib.Path) -> None:
    folder = touch(tmp_path, "a=b/1/model.onnx") / "a=b"
    assert list(Catalogue([folder]).sources()) == ["a=b"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("one={}/r", "MODEL: one={}/r: expected one model after the name (an .onnx file or a model "
         "folder), got a folder that holds net"),
        ("one={}/gone", "MODEL: one={}/gone: expected one model after the name (an .onnx file or a "
         "model folder), got nothing there"),
        ("one={}/note.txt", "MODEL: one={}/note.txt: expected one model after the name (an .onnx "
         "file or a model folder), got another file"),
        ("={}/r/net", "MODEL: expected NAME=PATH with a name without '/', got ={}/r/net"),
        ("a/b={}/r/net", "MODEL: expected NAME=PATH with a name without '/', got a/b={}/r/net"),
    ],
)  # fmt: skip
def test_a_name_for_what_is_not_one_model(tmp_path: pathlib.Path, given: str, said: str) -> None:
    touch(tmp_path, "r/net/1/model.onnx", "note.txt")
    assert refused(pathlib.Path(given.format(tmp_path))) == said.format(tmp_path)


@pytest.mark.parametrize(
    ("first", "second"),
    [("x/net.onnx", "y/net.onnx"), ("x/net.onnx", "net"), ("x/net.onnx", "r"), ("net", "r")],
)
def test_a_name_is_taken_once(tmp_path: pathlib.Path, first: str, second: str) -> None:
    touch(tmp_path, "x/net.onnx", "y/net.onnx", "net/1/model.onnx", "r/net/1/model.onnx")
    said = "MODEL: more than one model is called net"
    assert refused(tmp_path / first, tmp_path / second) == said
    assert refused(tmp_path / second, tmp_path / first) == said


def test_a_path_that_is_not_there(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "gone"
    assert refused(path) == (
        "MODEL: expected the path of an .onnx file, a model folder or a repository, got "
        f"{path}: no such file or folder"
    )


def test_a_file_that_is_no_model(tmp_path: pathlib.Path) -> None:
    path = touch(tmp_path, "net.pt") / "net.pt"
    assert refused(path) == f"MODEL: expected an .onnx file or a folder, got {path}"


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ("2/model.onnx", ""),
        ("2/notes/a", ""),
        ("notes/a", ""),
        ("old/1/model.onnx", "old"),
        ("7/1/model.onnx", "7"),
    ],
)
def test_models_within_a_model_are_told_of_and_its_versions_are_none(
    tmp_path: pathlib.Path, other: str, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    Catalogue([touch(tmp_path, "net/1/model.onnx", f"net/{other}") / "net"])
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == [told] * bool(
        told
    )


def test_a_folder_without_models_is_described(tmp_path: pathlib.Path) -> None:
    assert refused(tmp_path).endswith(": it holds nothing")
    touch(tmp_path, *"fedcba")
    assert refused(tmp_path).endswith(
        "is neither a model folder (<version>/model.onnx) nor a repository of them: "
        "it holds a, b, c, d, e, ..."
    )


def versions(folder: pathlib.Path, **options: Any) -> list[int]:
    return sorted(ModelSource("net", folder).files(ModelOptions(**options)))


def test_versions_are_folders_whose_names_are_numbers_from_1(tmp_path: pathlib.Path) -> None:
    touch(
        tmp_path,
        *(f"{name}/model.onnx" for name in ("1", "12", "0", "00", "-1", "1.5", "v2", "latest")),
        "5",
    )
    assert versions(tmp_path, versions=VersionPolicy(latest=None)) == [1, 12]
    assert versions(tmp_path) == [12]


def test_a_version_that_is_chosen_has_its_file(tmp_path: pathlib.Path) -> None:
    touch(tmp_path, "1/model.onnx", "2/other.onnx")
    with pytest.raises(LoadFailed, match=r"version 2: expected model.onnx in .*/2, got other.onnx"):
        versions(tmp_path)
    assert versions(tmp_path, filename="other.onnx") == [2]
    assert versions(tmp_path, versions=VersionPolicy(specific=(1,))) == [1]


def test_a_model_without_versions_is_version_1(tmp_path: pathlib.Path) -> None:
    touch(tmp_path, "model.onnx", "2/readme")
    assert ModelSource("net", tmp_path).files(ModelOptions()) == {1: tmp_path / "model.onnx"}


@pytest.mark.parametrize(
    ("entry", "got"),
    [("0/model.onnx", "0"), ("v1/model.onnx", "v1"), ("1/net.onnx", "1; in 1/ net.onnx")],
)
def test_a_folder_without_a_version_says_what_was_expected(
    tmp_path: pathlib.Path, entry: str, got: str
) -> None:
    folder = touch(tmp_path, f"net/{entry}") / "net"
    with pytest.raises(LoadFailed) as caught:
        versions(folder)
    assert str(caught.value) == (
        f"expected <version>/model.onnx in net, with a version that is a number from 1, got {got}"
    )


def test_a_folder_that_is_gone(tmp_path: pathlib.Path) -> None:
    with pytest.raises(LoadFailed, match="no such model folder any more"):
        versions(tmp_path / "gone")


def test_a_repository_that_is_gone_has_no_models(tmp_path: pathlib.Path) -> None:
    touch(tmp_path, "r/a/1/model.onnx")
    catalogue = Catalogue([tmp_path / "r"])
    (tmp_path / "r").rename(tmp_path / "moved")
    assert catalogue.sources() == {}
