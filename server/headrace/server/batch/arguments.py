"""The flags of `headrace batch`. They need no package but the standard library."""

from __future__ import annotations

import argparse
import pathlib


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        type=pathlib.Path,
        metavar="MODEL",
        help="an .onnx file, a model folder, or a repository of models",
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        type=pathlib.Path,
        metavar="INPUT",
        help="Parquet, NPY, NPZ, CSV or image files, or folders of them",
    )
    parser.add_argument(
        "--output", type=pathlib.Path, required=True, metavar="FOLDER", help="where answers go"
    )
    _add_mapping(parser)
    _add_running(parser)


def _add_mapping(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        dest="model_name",
        default="",
        metavar="NAME",
        help="which model, where MODEL holds several",
    )
    parser.add_argument(
        "--input",
        dest="columns",
        action="append",
        default=[],
        metavar="NAME=COLUMN[,...]",
        help="the column that feeds an input (default: the one of its name); several numbers make "
        "a vector",
    )
    parser.add_argument(
        "--outputs", action="append", default=[], metavar="NAME[,...]", help="(default: all)"
    )
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="COLUMN[,...]",
        help="columns to copy beside the outputs",
    )
    parser.add_argument(
        "--image-mean",
        type=_numbers,
        default=(0.0,),
        metavar="N[,...]",
        help="subtracted from pixels (0 to 1), one number or one for each channel (default 0)",
    )
    parser.add_argument(
        "--image-std",
        type=_positive_numbers,
        default=(1.0,),
        metavar="N[,...]",
        help="pixels are then divided by it (default 1)",
    )


def _add_running(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format", choices=("parquet", "npz"), default="parquet", help="(default parquet)"
    )
    parser.add_argument(
        "--rows-per-part",
        type=_count,
        default=4096,
        metavar="N",
        help="rows in a file of the output: what a kill makes to be done again (default 4096)",
    )
    parser.add_argument(
        "--on-error",
        choices=("fail", "skip"),
        default="fail",
        help="of a row that cannot be computed: end there, or report it and go on (default fail)",
    )
    parser.add_argument("--provider", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--operator-libraries",
        type=pathlib.Path,
        action="append",
        default=[],
        metavar="PATH",
        help="as of headrace serve; may be repeated",
    )
    parser.add_argument(
        "--cache-dir", default="auto", metavar="FOLDER", help="as of headrace serve (default auto)"
    )
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="in this process, or by workers of a Ray cluster (default local)",
    )
    parser.add_argument(
        "--ray-address", metavar="ADDRESS", help="(default: RAY_ADDRESS, or a cluster of its own)"
    )
    parser.add_argument(
        "--ray-workers", type=_count, metavar="N", help="(default: one for each node)"
    )
    parser.add_argument(
        "--ray-cpus",
        type=_count,
        metavar="N",
        help="processors that a worker reserves (default: all of a node but one)",
    )


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return number


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split(",")))


def _positive_numbers(text: str) -> tuple[float, ...]:
    numbers = _numbers(text)
    if min(numbers) <= 0:
        raise argparse.ArgumentTypeError(f"expected numbers above 0, got {text}")
    return numbers
