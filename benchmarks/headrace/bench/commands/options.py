"""The options that say what is sent where, and how."""

from __future__ import annotations

import argparse
from pathlib import Path

from headrace.bench.commands import values


def add_target(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the server")
    group.add_argument(
        "--protocol",
        choices=("grpc", "grpc-stream", "sensor", "http"),
        help="how requests travel: ModelInfer, ModelStreamInfer, sensor streams (Headrace), or "
        "HTTP (default: http for an address with http://, sensor with --sessions, else grpc)",
    )
    group.add_argument(
        "--transport", choices=("auto", "grpcio", "lean"), help="the gRPC client that is used"
    )
    group.add_argument(
        "--adaptor", metavar="NAME", help="over HTTP: the format of requests, as a peer has it"
    )
    group.add_argument(
        "--pid",
        default="auto",
        metavar="PID|auto|none",
        help="the server's process, for its CPU time and memory; auto (default) finds who listens "
        "at an address of this machine",
    )


def add_requests(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the requests")
    group.add_argument("-m", "--model", metavar="NAME", help="the model to ask for")
    group.add_argument("--model-version", metavar="V", help="(default: the server's choice)")
    group.add_argument(
        "--inputs",
        metavar="SOURCE",
        help="random (default, by the model's metadata), a .npy or .npz file, a folder of them, or "
        "a Python function as package.module:function or file.py:function",
    )
    group.add_argument(
        "--shape",
        type=values.shape,
        action="append",
        metavar="NAME:D,D",
        help="of a random input with open dimensions: x:1,3,48,320; once for each input",
    )
    group.add_argument(
        "--deadline",
        type=values.duration,
        metavar="TIME",
        help="of each request, from when it is due: 50ms",
    )
    group.add_argument(
        "--parameter",
        type=values.parameter,
        action="append",
        metavar="NAME=VALUE",
        help="a parameter of each request",
    )
    group.add_argument(
        "--request",
        type=values.request,
        action="append",
        metavar="TOML",
        help="""instead of the above: a kind of request, as 'model = "a", weight = 2'; several """
        "are mixed by weight",
    )


def add_load(parser: argparse.ArgumentParser, *, several: bool) -> None:
    """`several` allows more than one --concurrency or --rate."""
    more = "; several with commas are measured one after the other" if several else ""
    group = parser.add_argument_group("the load (one of the first six; default: one caller)")
    one = group.add_mutually_exclusive_group()
    one.add_argument(
        "-c",
        "--concurrency",
        type=values.several(values.count),
        metavar="N",
        help=f"closed loop: callers that each wait for the answer{more}",
    )
    one.add_argument(
        "-r",
        "--rate",
        type=values.several(values.rate),
        metavar="R",
        help=f"open loop: requests per second, whatever becomes of them{more}",
    )
    one.add_argument(
        "--steps",
        type=values.several(values.step),
        metavar="RxT,RxT",
        help="open loop whose rate changes: 100x30s,200x30s",
    )
    one.add_argument("--trace", metavar="FILE", help="open loop: recorded times, one on each line")
    one.add_argument("--burst", type=values.count, metavar="N", help="requests due at once")
    one.add_argument("--sessions", type=values.count, metavar="N", help="sensor streams")
    group.add_argument("--think", type=values.duration, metavar="TIME", help="with --concurrency")
    add_arrivals(group)
    group.add_argument("--ramp", action="store_true", default=None, help="with --steps: slopes")
    group.add_argument("--speed", type=float, metavar="X", help="with --trace: 2 is twice as fast")
    group.add_argument("--period", type=values.duration, metavar="TIME", help="between bursts")
    for name in ("chunk", "window", "hop"):
        group.add_argument(
            f"--{name}", type=values.count, metavar="SAMPLES", help="with --sessions"
        )
    group.add_argument("--sample-rate", type=values.rate, metavar="HZ", help="with --sessions")


def add_arrivals(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    group.add_argument(
        "--arrivals",
        choices=("poisson", "constant", "gamma"),
        help="the law of an open loop's gaps (default poisson)",
    )
    group.add_argument(
        "--burstiness",
        type=float,
        metavar="B",
        help="squared coefficient of variation of gamma gaps; 1 is Poisson, more comes in bursts",
    )


def add_measuring(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("measuring")
    group.add_argument(
        "-d", "--duration", type=values.duration, metavar="TIME", help="(default 10s)"
    )
    group.add_argument(
        "--warm-up",
        type=values.warm_up,
        metavar="TIME|auto",
        help="before each measurement; auto (default): until the latency is stable",
    )
    group.add_argument("--processes", type=values.count, metavar="N", help="that send (default 1)")
    group.add_argument(
        "--pulse",
        type=values.duration,
        metavar="TIME",
        help="beside the load a small call (ServerLive) so often: how long the front keeps others "
        "waiting",
    )
    group.add_argument("--seed", type=int, metavar="N", help="of all dice (default 0)")
    group.add_argument(
        "--job",
        type=Path,
        metavar="FILE",
        help="a TOML file with the fields of a job; other options override them",
    )
