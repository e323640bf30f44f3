"""The command line: `headrace serve`, `demo`, `inspect`, `batch`, `top`, `health`
and `bench`."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import logging
import os
import pathlib
import re
import sys
import typing
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version

from headrace.server.batch.arguments import add_arguments
from headrace.server.mistyped import meant

EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0 after a clean stop, 2 for bad usage or configuration, 1 for a
    failure."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] == [
        "bench"
    ]:  # a load test needs no server here, and has a command line of its own
        return _bench(words[1:])
    # Before gRPC is first imported: it would log each handshake that fails, not as JSON, and
    # anybody who reaches the port can make one fail.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    parser = _parser()
    namespace, unknown = parser.parse_known_args(words)
    if unknown:
        namespace.parser.error(_unrecognized(namespace.parser, unknown))
    try:
        return _run_command(namespace)
    except KeyboardInterrupt:  # before the command listens to signals, or a second time
        return EXIT_INTERRUPTED
    finally:
        _let_go_of_errors()


def _unrecognized(parser: argparse.ArgumentParser, unknown: Sequence[str]) -> str:
    known = re.findall(r"--[\w-]+", parser.format_help())
    question = meant(unknown[0].partition("=")[0], known)
    return f"unrecognized arguments: {' '.join(unknown)}{question}"


def _let_go_of_errors() -> None:
    """Python ends with 120, whatever is returned, where standard error cannot be written at the
    end: on a full disk a server that stopped cleanly would pass for one that failed."""
    try:
        sys.stderr.flush()
    except OSError:
        sys.stderr = None


def _bench(arguments: Sequence[str]) -> int:
    try:
        from headrace.bench.cli import main as bench
    except ModuleNotFoundError as error:
        print(
            f"headrace: {error.name} is missing: load tests come with an extra, "
            "pip install 'headrace[bench]'",
            file=sys.stderr,
        )
        return EXIT_FAILURE
    return bench(arguments)


def _require(command: typing.Any) -> None:
    """Raises ModuleNotFoundError where what `command` needs is not installed."""
    if command is _health:  # asked every few seconds: it must not load what serves models
        import headrace.server.health
    elif command is _serve:  # which loads it itself, or starts a process that does
        import headrace.server.config

        if importlib.util.find_spec("onnxruntime") is None:
            raise ModuleNotFoundError(name="onnxruntime")
    else:
        import headrace.server.app  # noqa: F401


def _run_command(namespace: argparse.Namespace) -> int:
    try:
        _require(namespace.run)
    except ModuleNotFoundError as error:
        print(
            f"headrace: {error.name} is missing: the server comes with an extra, "
            "pip install 'headrace[cpu]' or 'headrace[gpu]'",
            file=sys.stderr,
        )
        return EXIT_FAILURE
    return int(namespace.run(namespace))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="headrace", description="Serves ONNX models over gRPC.")
    parser.add_argument("--version", action="version", version=f"headrace {version('headrace')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="serve models until told to stop",
        allow_abbrev=False,
        usage="%(prog)s [SETTING ...] MODEL_OR_REPOSITORY ...   (headrace serve --help lists them)",
    )
    serve.set_defaults(run=_serve, parser=serve)
    serve.add_argument(
        "models",
        nargs="*",
        type=pathlib.Path,
        metavar="MODEL_OR_REPOSITORY",
        help="an .onnx file, a model folder, or a repository of models; NAME=PATH names one model",
    )
    serve.add_argument(
        "--config",
        type=pathlib.Path,
        help="a TOML file with any of these settings (HEADRACE_CONFIG)",
    )
    _add_settings(serve)
    demo = commands.add_parser(
        "demo", help="serve a real model, call it, show what the batcher did"
    )
    demo.set_defaults(run=_demo, parser=demo)
    demo.add_argument("--files", type=int, default=400, help="files to identify (default 400)")
    demo.add_argument("--callers", type=int, default=64, help="concurrent callers (default 64)")
    inspect = commands.add_parser("inspect", help="what a model takes and gives, and if it batches")
    inspect.set_defaults(run=_inspect, parser=inspect)
    inspect.add_argument("model", type=pathlib.Path, metavar="MODEL")
    inspect.add_argument("--provider", choices=("auto", "cpu", "cuda"), default="auto")
    inspect.add_argument(
        "--operator-libraries",
        type=pathlib.Path,
        action="append",
        default=[],
        metavar="PATH",
        help="as of headrace serve; may be repeated",
    )
    top = commands.add_parser("top", help="what a running server does, refreshed each second")
    top.set_defaults(run=_top, parser=top)
    top.add_argument(
        "address",
        nargs="?",
        default="127.0.0.1:8002",
        metavar="ADDRESS",
        help="host:port of its HTTP port (default 127.0.0.1:8002)",
    )
    top.add_argument("--interval", type=_interval, default=1.0, help="seconds (default 1)")
    top.add_argument("--once", action="store_true", help="print it once, after one interval")
    health = commands.add_parser("health", help="exit code 0 if a server serves, 1 if not")
    health.set_defaults(run=_health, parser=health)
    health.add_argument(
        "address",
        nargs="?",
        default="127.0.0.1:8001",
        metavar="ADDRESS",
        help="host:port of its gRPC port (default 127.0.0.1:8001)",
    )
    health.add_argument(
        "--service", default="", metavar="NAME", help="a model's name (default: the server itself)"
    )
    health.add_argument(
        "--timeout", type=_interval, default=5.0, help="seconds to wait for its answer (default 5)"
    )
    _add_tls(health)
    batch = commands.add_parser("batch", help="compute answers for files of inputs, offline")
    batch.set_defaults(run=_batch, parser=batch)
    add_arguments(batch)
    commands.add_parser(
        "bench", help="load-test any server of the protocol; bench --help tells more"
    )
    return parser


def _add_tls(health: argparse.ArgumentParser) -> None:
    health.add_argument("--tls", action="store_true", help="ask over TLS; implied by what follows")
    health.add_argument(
        "--ca", metavar="FILE", help="PEM file of who signs servers (HEADRACE_HEALTH_CA)"
    )
    health.add_argument(
        "--certificate",
        metavar="FILE",
        help="PEM file of a client certificate (HEADRACE_HEALTH_CERTIFICATE)",
    )
    health.add_argument("--key", metavar="FILE", help="PEM file of its key (HEADRACE_HEALTH_KEY)")
    health.add_argument(
        "--server-name",
        metavar="NAME",
        help="name in the server's certificate, where it is not that of ADDRESS "
        "(HEADRACE_HEALTH_SERVER_NAME)",
    )


def _interval(text: str) -> float:
    with suppress(ValueError):
        if 0.05 <= (seconds := float(text)) <= 3600:
            return seconds
    raise argparse.ArgumentTypeError(f"expected 0.05 to 3600 seconds, got {text!r}")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    try:
        from headrace.server.config import Settings
    except ModuleNotFoundError:  # a client-only installation; main() says what is missing
        return
    for name, field in Settings.model_fields.items():
        if name == "models":
            continue
        default = "" if field.default is None else f" (default {field.default})"
        literal = typing.get_origin(field.annotation) is typing.Literal
        choices = typing.get_args(field.annotation) if literal else None
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            help=f"{field.description}{default}",
            default=argparse.SUPPRESS,
            metavar="|".join(map(str, choices)) if choices else "VALUE",
        )


def _serve(namespace: argparse.Namespace) -> int:
    from headrace.server.config import Settings, load_settings, mistyped
    from headrace.server.errors import ConfigurationError, ServerError
    from headrace.server.telemetry import logs

    flags = {name: getattr(namespace, name) for name in Settings.model_fields if name in namespace}
    if not namespace.models:
        del flags["models"]
    try:
        settings = load_settings(flags, namespace.config)
        logs.configure(settings.log_format, settings.log_level)
        for line in mistyped():
            logging.getLogger(__name__).warning(line)
        if settings.front_processes:
            from headrace.server.fronts.supervisor import serve as supervise

            return asyncio.run(supervise(settings))
        from headrace.server.app import serve

        ended = _run(serve(settings))
    except ConfigurationError as error:
        print(f"headrace serve: {error}", file=sys.stderr)
        return EXIT_USAGE
    except ServerError as error:
        print(f"headrace serve: {error}", file=sys.stderr)
        return EXIT_FAILURE
    if not ended:
        logging.shutdown()
        os._exit(0)
    return 0


def _run(main_task: typing.Coroutine[None, None, bool]) -> bool:
    """Runs on uvloop where it is installed; it is not on Windows."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.run(main_task)
    ended: bool = uvloop.run(main_task)
    return ended


def _demo(namespace: argparse.Namespace) -> int:
    from headrace.server.demo import main as demo

    return demo(files=namespace.files, callers=namespace.callers)


def _inspect(namespace: argparse.Namespace) -> int:
    from headrace.server.inspect import main as inspect

    return inspect(namespace.model, namespace.provider, namespace.operator_libraries)


def _top(namespace: argparse.Namespace) -> int:
    from headrace.server.top import main as top

    return top(namespace.address, namespace.interval, once=namespace.once)


def _health(namespace: argparse.Namespace) -> int:
    from headrace.server.health import main as health

    return health(namespace)


def _batch(namespace: argparse.Namespace) -> int:
    from headrace.server.batch.command import main as batch

    return batch(namespace)


if __name__ == "__main__":
    sys.exit(main())
