"""`headrace bench` as a user runs it, against the real server."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator

import pytest

from headrace.bench.results import Report
from support import models, server


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[server.RunningServer]:
    folder = tmp_path_factory.mktemp("bench")
    models.write(folder / "models", "double", models.scaled(2))
    with server.serving(folder / "log", folder / "models") as up:
        yield up


def bench(*arguments: str | pathlib.Path) -> tuple[int, str, str]:
    done = server.run("bench", *arguments)
    return done.returncode, done.stdout, done.stderr


def test_a_load_is_measured_kept_and_drawn(
    running: server.RunningServer, tmp_path: pathlib.Path
) -> None:
    kept, page = tmp_path / "report.json", tmp_path / "page.html"
    options = ("-m", "double", "-c", "1,4", "-d", "2s", "--warm-up", "500ms", "--seed", "7")
    code, out, err = bench("load", f"us={running.grpc}", *options, "--json", kept, "--html", page)
    assert code == 0, err
    assert "load on us" in out
    assert "4 callers" in out
    assert page.read_text().startswith("<!")
    report = Report.model_validate_json(kept.read_bytes())
    assert report.command[:4] == ("headrace", "bench", "load", f"us={running.grpc}")
    assert report.seed == 7
    (target,) = report.targets
    assert target["pid"] == running.process.pid
    (section,) = report.sections
    for measurement in section.measurements:
        assert measurement.ok > 0
        assert measurement.errors == {}
        assert measurement.latency is not None
        assert measurement.latency.count == measurement.ok
        assert measurement.server is not None
        assert measurement.server.cpu_seconds > 0
    assert bench("compare", kept, kept)[0] == 0
    assert bench("report", kept)[1] == out


def test_requests_of_two_kinds_from_a_function(
    running: server.RunningServer, tmp_path: pathlib.Path
) -> None:
    made, kept = tmp_path / "made.py", tmp_path / "report.json"
    made.write_text(
        "import numpy as np\n"
        "def row(rng):\n"
        "    return {'x': rng.standard_normal((1, 2)).astype(np.float32)}\n"
    )
    kinds = (f'model = "double", inputs = "{made}:row"', 'model = "double", shapes.x = [2, 2]')
    requests = [word for kind in kinds for word in ("--request", kind)]
    load = ("-r", "200", "--burstiness", "2", "-d", "500ms", "--warm-up", "0", "-q")
    code, _, err = bench("load", running.grpc, *requests, *load, "--json", kept)
    assert code == 0, err
    (measurement,) = json.loads(kept.read_text())["sections"][0]["measurements"]
    assert measurement["ok"] == measurement["sent"] > 0
    assert measurement["load"]["arrivals"] == "gamma"


def test_two_sides_take_turns(running: server.RunningServer, tmp_path: pathlib.Path) -> None:
    kept = tmp_path / "report.json"
    sides = (f"a={running.grpc}", f"b={running.grpc}")
    options = ("-m", "double", "-d", "100ms", "--warm-up", "0", "--turns", "2", "-q")
    code, _, err = bench("versus", *sides, *options, "--json", kept)
    assert code == 0, err
    (section,) = Report.model_validate_json(kept.read_bytes()).sections
    assert [m.target for m in section.measurements] == ["a", "b", "b", "a"]
    assert any("too few" in note for note in section.notes)


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        (("-m", "nope"), 1, "no model is called 'nope'"),
        (("-m", "double", "--shape", "y:1,2"), 1, "a shape is given for y, its inputs are x"),
        (("-m", "double", "--json", "/nowhere/at/all.json"), 1, "/nowhere/at/all.json"),
        (("-m", "double", "-d", "forever"), 2, "expected a number, got 'forever'"),
        ((), 2, "expected a model"),
    ],
)
def test_what_is_wrong_is_said_before_measuring(
    running: server.RunningServer, options: tuple[str, ...], code: int, named: str
) -> None:
    ended, out, err = bench("load", running.grpc, *options)
    assert (ended, out) == (code, "")
    assert named in err
    assert "Traceback" not in err


def test_nobody_at_the_address_is_a_failure() -> None:
    code, _, err = bench("load", "127.0.0.1:1", "-m", "double", "-d", "100ms")
    assert code == 1
    assert "127.0.0.1:1" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("question", ["versus", "curve"])
def test_a_second_side_that_is_not_there_is_told_before_the_first_is_measured(
    running: server.RunningServer, question: str
) -> None:
    code, out, err = bench(
        question, f"a={running.grpc}", "b=127.0.0.1:1", "-m", "double", "-d", "99s"
    )
    assert (code, out) == (1, "")
    assert "127.0.0.1:1" in err
