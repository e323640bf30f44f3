"""Where models lie: a file, a folder, or a repository of folders.

The layout is Triton's: `<repository>/<model>/<version>/model.onnx`, the configuration beside the
versions.
"""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from headrace.server.errors import ConfigurationError, LoadFailed
from headrace.server.models.model_toml import from_toml
from headrace.server.models.options import ModelOptions
from headrace.server.models.triton_config import from_pbtxt
from headrace.server.models.trust import check_external_data, check_links

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where one model comes from: a single `.onnx` file, or a folder of versions.

    root: what its files may not leave; None where links may lead anywhere.
    """

    name: str
    path: pathlib.Path
    root: pathlib.Path | None = field(default=None, compare=False)

    def check(self) -> None:
        """Raises LoadFailed for links that lead out of the root. Before anything else is read."""
        if self.root is not None and self.path.is_dir():
            check_links(self.path, self.root)

    def check_model(self, file: pathlib.Path) -> None:
        """Raises LoadFailed when `file`, of one version, has tensors where it may not."""
        check_external_data(file, self.root)

    def options(self) -> ModelOptions:
        """The configuration as it is on disk now. Raises LoadFailed."""
        return ModelOptions() if self.path.is_file() else read_options(self.path)

    def files(self, options: ModelOptions) -> dict[int, pathlib.Path]:
        """The file of each version that the version policy chooses.

        Raises LoadFailed when there is none, and when one has no such file: who has put a version
        there is to hear that it cannot be served, rather than that another one is.
        """
        if self.path.is_file():
            return {1: self.path}
        if not self.path.is_dir():
            raise LoadFailed(f"{self.path}: no such model folder any more")
        versions = self._versions(options)
        if not any(file.is_file() for file in versions.values()):
            newest = max((n for n in versions if (self.path / str(n)).is_dir()), default=None)
            there = f"; in {newest}/ {_contents(self.path / str(newest))}" if newest else ""
            raise LoadFailed(
                f"expected <version>/{options.filename} in {self.path.name}, with a version that "
                f"is a number from 1, got {_contents(self.path)}{there}"
            )
        chosen = options.versions.choose(list(versions))
        if not chosen:
            raise LoadFailed(f"no version satisfies version_policy: {sorted(versions)} exist")
        for version in chosen:
            if not versions[version].is_file():
                folder = versions[version].parent
                raise LoadFailed(
                    f"version {version}: expected {options.filename} in {self.path.name}/"
                    f"{folder.name}, got {_contents(folder)}"
                )
        return {version: versions[version] for version in chosen}

    def _versions(self, options: ModelOptions) -> dict[int, pathlib.Path]:
        """Where the file of each version should be."""
        versions = {
            int(folder.name): folder / options.filename
            for folder in self.path.iterdir()
            if folder.is_dir() and folder.name.isdecimal() and int(folder.name) > 0
        }
        alone = self.path / options.filename
        if alone.is_file() and not any(file.is_file() for file in versions.values()):
            return {1: alone}
        return versions


@dataclass(frozen=True, slots=True)
class Repository:
    """A folder whose sub-folders are models. They may come and go, and so may the folder."""

    path: pathlib.Path
    follow_links: bool = False

    def sources(self) -> dict[str, ModelSource]:
        if not self.path.is_dir():
            return {}
        root = None if self.follow_links else self.path
        return {
            folder.name: ModelSource(folder.name, folder, root)
            for folder in sorted(self.path.iterdir())
            if folder.is_dir() and not folder.name.startswith(".")
        }


class Catalogue:
    """Everything that can be loaded, from all the paths the user named."""

    def __init__(self, paths: Sequence[pathlib.Path], *, follow_links: bool = False) -> None:
        """`paths`: each a file, a folder, or NAME=PATH, which calls one model NAME. `follow_links`:
        also out of what was named. Raises ConfigurationError for a path that holds no model, or
        two models of one name."""
        self._follow_links = follow_links
        self._fixed: dict[str, ModelSource] = {}
        self._repositories: list[Repository] = []
        for path in paths:
            self._add(path)
        names = [*self._fixed, *(n for r in self._repositories for n in r.sources())]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigurationError(f"MODEL: more than one model is called {', '.join(twice)}")

    def sources(self) -> dict[str, ModelSource]:
        """What is there now, by name."""
        found = dict(self._fixed)
        for repository in self._repositories:
            found.update(repository.sources())
        return found

    def _add(self, path: pathlib.Path) -> None:
        if path.is_file():
            if path.suffix != ".onnx":
                raise ConfigurationError(f"MODEL: expected an .onnx file or a folder, got {path}")
            self._fix(path.stem, path, path.resolve().parent)
        elif not path.exists() and "=" in str(path):
            self._add_named(*str(path).split("=", 1))
        elif not path.is_dir():
            raise ConfigurationError(
                f"MODEL: expected the path of an .onnx file, a model folder or a repository, got "
                f"{path}: no such file or folder"
            )
        elif _is_model(path):
            _warn_of_hidden_models(path)
            self._fix(path.resolve().name, path, path)
        elif any(folder.is_dir() for folder in path.iterdir()):
            self._repositories.append(Repository(path, self._follow_links))
        else:
            raise ConfigurationError(
                f"MODEL: {path} is neither a model folder (<version>/model.onnx) nor a repository "
                f"of them: it holds {_contents(path)}"
            )

    def _add_named(self, name: str, place: str) -> None:
        path = pathlib.Path(place)
        if not name or "/" in name:
            raise ConfigurationError(
                f"MODEL: expected NAME=PATH with a name without '/', got {name}={place}"
            )
        if path.is_dir() and _is_model(path):
            self._fix(name, path, path)
        elif path.is_file() and path.suffix == ".onnx":
            self._fix(name, path, path.resolve().parent)
        else:
            raise ConfigurationError(
                f"MODEL: {name}={place}: expected one model after the name (an .onnx file or a "
                f"model folder), got {_what_is(path)}"
            )

    def _fix(self, name: str, path: pathlib.Path, root: pathlib.Path) -> None:
        if name in self._fixed:
            raise ConfigurationError(f"MODEL: more than one model is called {name}")
        self._fixed[name] = ModelSource(name, path, None if self._follow_links else root)


def _is_model(path: pathlib.Path) -> bool:
    """Whether `path` is one model's folder, rather than a repository of them."""
    if any((path / name).is_file() for name in ("config.pbtxt", "model.toml", "model.onnx")):
        return True
    return any(f.is_dir() and f.name.isdecimal() for f in path.iterdir())


def _warn_of_hidden_models(path: pathlib.Path) -> None:
    hidden = [f.name for f in sorted(path.iterdir()) if f.is_dir() and _is_hidden(f)]
    if hidden:
        names = ", ".join(hidden)
        _log.warning("%s is served as one model; the models in it are not: %s", path, names)


def _is_hidden(folder: pathlib.Path) -> bool:
    """Whether `folder`, in a model's, is a model rather than one of its versions."""
    if folder.name.isdecimal():
        return any(f.is_dir() and f.name.isdecimal() for f in folder.iterdir())
    return _is_model(folder)


def _what_is(path: pathlib.Path) -> str:
    if path.is_dir():
        return f"a folder that holds {_contents(path)}"
    return "another file" if path.exists() else "nothing there"


def _contents(path: pathlib.Path) -> str:
    names = sorted(entry.name for entry in path.iterdir())
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return shown or "nothing"


def read_options(folder: pathlib.Path) -> ModelOptions:
    """The configuration beside a model's versions; all defaults when there is none.

    Raises LoadFailed naming the file and the key.
    """
    pbtxt, toml = folder / "config.pbtxt", folder / "model.toml"
    if pbtxt.exists() and toml.exists():
        raise LoadFailed(f"{folder.name} has both config.pbtxt and model.toml: keep one")
    if pbtxt.exists():
        return from_pbtxt(pbtxt)
    return from_toml(toml) if toml.exists() else ModelOptions()
