"""The table [quality], in either configuration, held against the model's contract."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import pytest

from headrace.inference.v2 import model_config_pb2 as config_pb
from headrace.server.errors import LoadFailed
from headrace.server.models.repository import read_options
from headrace.server.models.triton_config import from_config
from headrace.server.quality.options import QualityOptions
from server import graphs
from server.conftest import Load

TABLE = 'task = "classification"\nsample = 0.5\nclasses = ["a", "b", "c"]\ndrift = false\n'
READ = QualityOptions(task="classification", sample=0.5, classes=("a", "b", "c"), drift=False)


def test_it_is_off_unless_it_is_there(tmp_path: pathlib.Path) -> None:
    assert read_options(tmp_path).quality is None
    (tmp_path / "model.toml").write_text("max_batch_size = 4\n")
    assert read_options(tmp_path).quality is None


def test_both_configurations_have_it(tmp_path: pathlib.Path) -> None:
    (tmp_path / "model.toml").write_text(f"instances = 1\n[quality]\n{TABLE}")
    assert read_options(tmp_path).quality == READ
    config = config_pb.ModelConfig()
    config.parameters["headrace_quality"].string_value = TABLE
    options = from_config(config, "m")
    assert (options.quality, options.not_honoured) == (READ, ())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sample = 0", "quality.sample"),
        ("window = 9", "quality.window"),
        ("answers_bytes = 2_000_000_000", "quality.answers_bytes"),
        ('task = "guessing"', "quality.task"),
        ("wndow = 10", "quality.wndow"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: pathlib.Path, line: str, said: str) -> None:
    (tmp_path / "model.toml").write_text(f"[quality]\n{line}\n")
    with pytest.raises(LoadFailed, match=f"model.toml: {said}"):
        read_options(tmp_path)
    config = config_pb.ModelConfig()
    config.parameters["headrace_quality"].string_value = line
    with pytest.raises(LoadFailed, match=r"parameters\.headrace_quality: " + said[8:]):
        from_config(config, "m")


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        (graphs.two_by_two(), {"output": "sum"}, r"quality\.output: expected one of 'total', 'd"),
        (graphs.identity(("n", 1), "BOOL"), {"task": "regression"}, r"quality\.task: .*BOOL"),
        (graphs.identity(), {"axis": 2}, r"quality\.axis: expected one of 1 to 1, or -1 to -1,"),
        (graphs.identity(), {"axis": 0}, r"quality\.axis: .* got 0"),
    ],
)
async def test_what_the_model_does_not_give(
    load: Load, model: Any, options: dict[str, Any], said: str
) -> None:
    given = QualityOptions(**{"task": "classification", "drift": False, **options})
    with pytest.raises(LoadFailed, match=said):
        await load(model, quality=given)


async def test_without_scipy_drift_is_refused_and_says_what_to_install(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "scipy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(LoadFailed, match=r"quality\.drift: needs SciPy.*headrace\[drift\]"):
        await load(graphs.identity(), quality=QualityOptions())
