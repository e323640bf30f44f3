"""Which version is served, what is unavailable and why, and what a configuration changes."""

from __future__ import annotations

import logging
import pathlib

import pytest

from headrace.server.errors import LoadFailed, ModelNotFound, ModelUnavailable
from headrace.server.models.registry import Registry
from server.models.repositories import ALL, ask, configure, index, put, spoil, told


async def test_the_latest_version_is_served(registry: Registry, repository: pathlib.Path) -> None:
    put(repository, 2, 2.0)
    put(repository, 10, 10.0)
    await registry.load_all()
    assert await ask(registry) == 10.0
    assert index(registry) == {("m", "10"): ("READY", "")}
    assert registry.versions("m") == ["10"]
    assert told(registry) == [("m", True)]
    with pytest.raises(ModelNotFound, match="model 'm' has no version '2', it has 10"):
        registry.get("m", "2")


async def test_a_version_is_chosen(registry: Registry, repository: pathlib.Path) -> None:
    put(repository, 2, 2.0)
    put(repository, 10, 10.0)
    configure(repository, ALL)
    await registry.load_all()
    assert [await ask(registry, v) for v in ("", "1", "2", "10")] == [10.0, 1.0, 2.0, 10.0]
    assert registry.versions("m") == ["1", "2", "10"]
    assert len(registry.ready_models()) == 3


async def test_what_nobody_knows_is_not_found(registry: Registry) -> None:
    await registry.load_all()
    with pytest.raises(ModelNotFound, match="no model is called 'x'; the server has m"):
        registry.get("x")
    with pytest.raises(ModelNotFound, match="the repository has no model 'x'"):
        await registry.load("x")
    with pytest.raises(ModelNotFound, match="no model is called 'x'"):
        await registry.unload("x")


async def test_what_was_never_loaded_is_unavailable(registry: Registry) -> None:
    assert index(registry) == {("m", ""): ("UNAVAILABLE", "not loaded")}
    with pytest.raises(ModelUnavailable, match="in the repository but is not loaded"):
        registry.get("m")


async def test_a_model_that_fails_is_listed_and_others_serve(
    registry: Registry, repository: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(repository, 1, "broken")
    put(repository, 1, 1.0, "odd")
    configure(repository, "max_bach: 1", "odd")
    await registry.load_all()
    assert await ask(registry) == 1.0
    listed = index(registry)
    assert listed["m", "1"] == ("READY", "")
    state, reason = listed["broken", "1"]
    assert state == "UNAVAILABLE"
    assert reason.startswith("model.onnx: ")
    assert "max_bach" in listed["odd", ""][1]
    with pytest.raises(ModelUnavailable, match=r"model 'broken' is UNAVAILABLE: model\.onnx: "):
        registry.get("broken")
    with pytest.raises(ModelUnavailable, match="max_bach"):
        registry.get("odd")
    assert sorted(told(registry)) == [("broken", False), ("m", True), ("odd", False)]
    assert "model broken 1 was not loaded: model.onnx: " in caplog.text


@pytest.mark.parametrize("content", [b"\xff", b""])
async def test_labels_that_cannot_be_read_fail_only_their_model(
    registry: Registry, repository: pathlib.Path, content: bytes
) -> None:
    put(repository, 1, 1.0, "labelled")
    configure(repository, 'output { name: "y" label_filename: "labels" }', "labelled")
    if content:
        (repository / "labelled" / "labels").write_bytes(content)
    await registry.load_all()
    assert registry.ready_models() == [registry.get("m")]
    state, reason = index(registry)["labelled", "1"]
    assert state == "UNAVAILABLE"
    assert "label" in reason or "decode" in reason


async def test_a_missing_version_says_what_exists(
    registry: Registry, repository: pathlib.Path
) -> None:
    configure(repository, "version_policy { specific { versions: 7 } }")
    with pytest.raises(LoadFailed, match=r"no version satisfies version_policy: \[1\] exist"):
        await registry.load("m")


async def test_all_versions_serve_or_none(registry: Registry, repository: pathlib.Path) -> None:
    spoil(repository, 2)
    put(repository, 3, 3.0)
    configure(repository, ALL)
    with pytest.raises(LoadFailed):
        await registry.load("m")
    listed = index(registry)
    assert {state for state, _ in listed.values()} == {"UNAVAILABLE"}
    assert listed["m", "1"][1] == "version 2 failed to load"
    assert listed["m", "2"][1].startswith("model.onnx: ")
    assert registry.ready_models() == []


async def test_a_failed_reload_leaves_the_old_versions_serving(
    registry: Registry, repository: pathlib.Path
) -> None:
    await registry.load_all()
    before = registry.get("m")
    spoil(repository, 2)
    with pytest.raises(LoadFailed):
        await registry.load("m")
    assert registry.get("m") is before
    listed = index(registry)
    assert listed["m", "1"] == ("READY", "")
    assert listed["m", "2"][0] == "UNAVAILABLE"
    assert listed["m", "2"][1].startswith("model.onnx: ")
    with pytest.raises(ModelUnavailable, match=r"UNAVAILABLE: model\.onnx: "):
        registry.get("m", "2")
    configure(repository, "nonsense")
    with pytest.raises(LoadFailed):
        await registry.load("m")
    assert await ask(registry) == 1.0
    assert told(registry) == [("m", True)]


async def test_a_version_without_its_file_is_not_passed_over(
    registry: Registry, repository: pathlib.Path
) -> None:
    """Who has put it there would take the old one's answers for the new one's."""
    await registry.load_all()
    put(repository, 3, 3.0)
    folder = repository / "m" / "3"
    (folder / "model.onnx").rename(folder / "modl.onnx")
    with pytest.raises(LoadFailed, match=r"version 3: expected model.onnx in m/3, got modl.onnx"):
        await registry.load("m")
    assert await ask(registry) == 1.0
    (folder / "modl.onnx").rename(folder / "model.onnx")
    await registry.load("m")
    assert await ask(registry) == 3.0
    assert index(registry) == {("m", "3"): ("READY", "")}


async def test_a_load_may_bring_its_configuration(registry: Registry) -> None:
    await registry.load("m", '{"max_batch_size": 3}')
    assert registry.get("m").spec.max_batch_size == 3
    with pytest.raises(LoadFailed, match="parameter 'config'"):
        await registry.load("m", "{")
    assert registry.get("m").spec.max_batch_size == 3
    await registry.load("m")
    assert registry.get("m").spec.max_batch_size != 3


async def test_what_is_not_honoured_is_said_once(
    registry: Registry, repository: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(repository, 2, 2.0)
    configure(repository, ALL + "optimization {} model_warmup {}")
    with caplog.at_level(logging.WARNING):
        await registry.load("m")
    (record,) = caplog.records
    assert record.getMessage().endswith("no effect here: model_warmup, optimization")
