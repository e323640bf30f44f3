"""Libraries of custom operators: refused, unless the operator of the server allows them."""

from __future__ import annotations

import asyncio
import pathlib
import shutil
import subprocess

import pytest

from headrace.server.config import load_settings
from headrace.server.errors import ConfigurationError, LoadFailed
from headrace.server.executors.session import Provider
from headrace.server.models.operators import OperatorLibraries
from headrace.server.models.registry import Registry
from headrace.server.models.repository import Catalogue
from headrace.server.models.served import Host
from server import graphs

# The one function that ONNX Runtime asks of a library. It adds no operator, and leaves a trace.
SOURCE = """
#include <stdio.h>
void *RegisterCustomOps(void *options, const void *api) {
    FILE *trace = fopen("%s", "a");
    fputs("loaded\\n", trace);
    fclose(trace);
    return 0;
}
"""
REFUSED = r"operator_libraries .*: the code of a library .* operator_libraries allows, got '{}'"


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Of libraries: two, one in a folder below, and a link that leads out."""
    folder = tmp_path / "operators"
    (folder / "more").mkdir(parents=True)
    for name in ("good.so", "more/other.so"):
        (folder / name).write_bytes(b"no library")
    (tmp_path / "evil.so").write_bytes(b"no library")
    (folder / "link.so").symlink_to(tmp_path / "evil.so")
    return folder


@pytest.mark.parametrize(
    "name", ["good.so", "more/other.so", "more/../good.so", "{folder}/good.so"]
)
def test_what_lies_in_an_allowed_folder_is_found(folder: pathlib.Path, name: str) -> None:
    name = name.format(folder=folder)
    (found,) = OperatorLibraries([folder]).find([name])
    assert found == (folder / name).resolve()


@pytest.mark.parametrize(
    "name",
    ["evil.so", "../evil.so", "link.so", "more", "", ".", "{outside}/evil.so", "/lib/libc.so.6"],
)
def test_nothing_else_is(folder: pathlib.Path, name: str) -> None:
    name = name.format(outside=folder.parent)
    for allowed in ([folder], [folder / "good.so"], []):
        with pytest.raises(LoadFailed, match=REFUSED.format(name)):
            OperatorLibraries(allowed).find([name])


def test_an_allowed_file_is_found_by_name_and_by_path(folder: pathlib.Path) -> None:
    libraries = OperatorLibraries([folder / "good.so"])
    both = libraries.find(["good.so", str(folder / "good.so")])
    assert both == ((folder / "good.so").resolve(),) * 2
    with pytest.raises(LoadFailed, match=REFUSED.format("more/other.so")):
        libraries.find(["more/other.so"])


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("model.toml", 'operator_libraries = ["{}"]'),
        ("config.pbtxt", 'model_operations {{ op_library_filename: "{}" }}'),
    ],
)
async def test_a_model_has_them_loaded_where_they_are_allowed(
    tmp_path: pathlib.Path, file: str, text: str
) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    trace, source, library = (tmp_path / name for name in ("trace", "ops.c", "ops.so"))
    source.write_text(SOURCE % trace)
    build: list[str | pathlib.Path] = [compiler, "-shared", "-fPIC", "-o", library, source]
    await asyncio.to_thread(subprocess.check_call, build)
    root = tmp_path / "models"
    graphs.save(graphs.plus(1.0), root / "m" / "1" / "model.onnx")
    (root / "m" / file).write_text(text.format("ops.so"))
    # It lies beside the model too, which says nothing.
    shutil.copy(library, root / "m" / "ops.so")

    async def load(*allowed: pathlib.Path) -> None:
        host = Host(Provider.CPU, operators=OperatorLibraries(allowed))
        registry = Registry(Catalogue([root]), host)
        try:
            await registry.load("m")
        finally:
            await registry.drain()

    with pytest.raises(LoadFailed, match=REFUSED.format("ops.so")):
        await load()
    assert not trace.exists()
    await load(library)
    assert "loaded" in trace.read_text()


async def test_what_is_no_library_fails_the_load(
    tmp_path: pathlib.Path, folder: pathlib.Path
) -> None:
    root = tmp_path / "models"
    graphs.save(graphs.plus(1.0), root / "m" / "1" / "model.onnx")
    (root / "m" / "model.toml").write_text('operator_libraries = ["good.so"]')
    host = Host(Provider.CPU, operators=OperatorLibraries([folder]))
    registry = Registry(Catalogue([root]), host)
    with pytest.raises(LoadFailed, match=r"good\.so: is no library of custom operators: "):
        await registry.load("m")
    await registry.drain()


def test_the_setting_names_what_is_there(tmp_path: pathlib.Path, folder: pathlib.Path) -> None:
    model = tmp_path / "m.onnx"
    both = f"{folder}:{folder / 'good.so'}"
    for settings in (
        load_settings({"models": [model], "operator_libraries": both}, None, {}),
        load_settings({"models": [model]}, None, {"HEADRACE_OPERATOR_LIBRARIES": both}),
    ):
        assert settings.operator_libraries == [folder, folder / "good.so"]
    assert load_settings({"models": [model]}, None, {}).operator_libraries is None
    with pytest.raises(ConfigurationError, match="operator_libraries: no such file or folder: /no"):
        load_settings({"models": [model], "operator_libraries": "/none"}, None, {})
