"""Command lines and the jobs they mean."""

from __future__ import annotations

import argparse
import os
import pathlib
import socket

import pytest

from headrace.bench.commands.jobs import UsageError, jobs, open_load
from headrace.bench.commands.listener import listener
from headrace.bench.commands.measuring import add_load_command, add_search_command
from headrace.bench.spec import (
    BurstLoad,
    ClosedLoad,
    Job,
    OpenLoad,
    RequestSpec,
    SensorLoad,
    SteppedLoad,
    Target,
    TraceLoad,
)


def parsed(line: str, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_load_command(parser)
    return parser.parse_args([*line.split(), *more])


def asked(line: str, *more: str) -> list[Job]:
    given = parsed(line, *more)
    return jobs(given, given.target)


def one(line: str, *more: str) -> Job:
    (job,) = asked(line, *more)
    return job


def test_the_least_is_an_address_and_a_model() -> None:
    target = Target(name="host.example:8001", address="host.example:8001")
    expected = Job(target=target, load=ClosedLoad(), requests=(RequestSpec(model="m"),))
    assert one("host.example:8001 -m m") == expected


def test_everything_can_be_said() -> None:
    job = one(
        "b=host.example:1 -m m --model-version 2 --inputs a.npy --shape x:1,3 --shape y:2"
        " --deadline 50ms --parameter priority=1 --think 10ms -c 4 -d 3s --warm-up 1s"
        " --processes 2 --seed 5 --protocol grpc-stream --transport lean --pid 7"
    )
    assert job == Job(
        target=Target(
            name="b",
            address="host.example:1",
            protocol="grpc-stream",
            transport="lean",
            pid=7,
        ),
        load=ClosedLoad(callers=4, think=0.01),
        requests=(
            RequestSpec(
                model="m",
                version="2",
                inputs="a.npy",
                shapes={"x": (1, 3), "y": (2,)},
                deadline=0.05,
                parameters={"priority": 1},
            ),
        ),
        duration=3,
        warm_up=1,
        processes=2,
        seed=5,
    )


@pytest.mark.parametrize(
    ("line", "load"),
    [
        ("-r 100", OpenLoad(rate=100)),
        ("-r 100 --arrivals constant", OpenLoad(rate=100, arrivals="constant")),
        ("-r 100 --burstiness 4", OpenLoad(rate=100, arrivals="gamma", burstiness=4)),
        ("--burst 20 --period 2s", BurstLoad(count=20, period=2)),
        (
            "--sessions 3 --sample-rate 16k --chunk 160 --window 512 --hop 256",
            SensorLoad(sessions=3, sample_rate=16000, chunk=160, window=512, hop=256),
        ),
        (
            "--steps 10x5s,20x5s --ramp",
            SteppedLoad.model_validate(
                {"steps": [{"rate": 10, "seconds": 5}, {"rate": 20, "seconds": 5}], "ramp": True}
            ),
        ),
    ],
)
def test_loads(line: str, load: object) -> None:
    assert one(f"a:1 -m m {line}").load == load


def test_several_loads_are_several_jobs() -> None:
    found = [job.load for job in asked("a:1 -m m -c 1,8")]
    assert found == [ClosedLoad(callers=1), ClosedLoad(callers=8)]


def test_steps_and_traces_last_as_long_as_they_say(tmp_path: pathlib.Path) -> None:
    assert one("a:1 -m m --steps 10x5s,20x7s").duration == 12
    assert one("a:1 -m m --steps 10x5s -d 2s").duration == 2
    trace = tmp_path / "trace"
    trace.write_text("5\n8\n")
    job = one("a:1 -m m --trace", str(trace))
    assert job.load == TraceLoad(file=str(trace))
    assert job.duration == pytest.approx(3)


def test_protocols_follow_from_the_rest() -> None:
    assert one("http://a:1 -m m").target.protocol == "http"
    sensor = "--sessions 1 --sample-rate 1 --chunk 1 --window 1"
    assert one(f"a:1 -m m {sensor}").target.protocol == "sensor"


def test_requests_are_mixed() -> None:
    job = one("a:1", "--request", 'model = "a", weight = 3', "--request", 'model = "b"')
    assert [(r.model, r.weight) for r in job.requests] == [("a", 3), ("b", 1)]


def test_a_file_says_it_and_options_override(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text(
        'duration = 4\n[load]\nkind = "open"\nrate = 7\n[[requests]]\nmodel = "a"\nweight = 2\n'
    )
    job = one("a:1 --seed 3 --job", str(file))
    assert (job.duration, job.seed, job.load) == (4, 3, OpenLoad(rate=7))
    assert job.requests == (RequestSpec(model="a", weight=2),)
    assert one("a:1 -c 2 -m b --job", str(file)).load == ClosedLoad(callers=2)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("a:1", "expected a model"),
        ("a:1 --deadline 1s", "expected -m NAME beside deadline"),
        ("a:1 -m m --think 1s -r 5", "--think goes with --concurrency"),
        ("a:1 -m m --period 1s", "--period goes with --burst"),
        ("a:1 -m m -r 5 --arrivals poisson --burstiness 2", "--burstiness goes with"),
        ("a:1 -m m --sessions 1", r"load\.sensor\.sample_rate: Field required"),
        ("a:1 -m m -d 0", "duration: .* greater than 0"),
        ("a:1 -m m --pid some", "--pid: expected a process, auto or none, got 'some'"),
        ("a:1 -m m --trace nowhere", "trace nowhere"),
        ("a:1 --job nowhere.toml", "nowhere.toml"),
        ('a:1 -m m --request model="b"', "put model into it"),
    ],
)
def test_what_makes_no_sense_is_named(line: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        asked(line)


def test_a_question_may_say_its_arrivals() -> None:
    parser = argparse.ArgumentParser()
    add_search_command(parser)
    plain = parser.parse_args(["a:1", "-m", "m", "--p99", "50ms"])
    assert open_load(plain) is None
    bursty = parser.parse_args(["a:1", "-m", "m", "--p99", "50ms", "--burstiness", "2"])
    assert open_load(bursty) == OpenLoad(rate=1, arrivals="gamma", burstiness=2)


def test_who_listens_at_an_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert listener(f"127.0.0.1:{port}") == os.getpid()
        assert listener(f"http://localhost:{port}/v2") == os.getpid()
        assert listener(f"192.0.2.1:{port}") is None
    assert listener(f"127.0.0.1:{port}") is None
    assert listener("unix:/nowhere") is None
