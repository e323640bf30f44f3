"""A process that the supervisor has started: what it is told, and what it tells.

Its standard input is its line to life. The first line there is its configuration, as JSON; the line
"stop" tells it to stop in order; the end, that the supervisor has gone, and nobody would start it
again or stop it: then it ends at once. On standard output it says one line of JSON, once it serves.
Signals are the supervisor's affair: whoever stops a service signals all of its processes, and they
would stop in no order.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from headrace.server.config import Settings
from headrace.server.errors import ConfigurationError, ServerError
from headrace.server.telemetry import logs

STOP = "stop"
EXIT_FAILURE, EXIT_USAGE = 1, 2
_LONGEST_LINE = 1 << 20


class Life:
    """settings, config: what this process was started with. stopping: set once it is to stop."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.settings = Settings.model_validate(config["settings"])
        self.stopping = asyncio.Event()

    def report(self, **values: Any) -> None:
        """Tells the supervisor that this process serves."""
        print(json.dumps(values), flush=True)  # noqa: T201 (that is how it is told)


def run(main: Callable[[Life], Awaitable[bool]]) -> int:
    """Runs `main` to its end. Returns the exit code, or ends the process where a thread would not
    let it: `main` returns whether everything has ended."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    try:
        ended = _run(_live(main))
    except ConfigurationError as error:
        print(f"headrace serve: {error}", file=sys.stderr)  # noqa: T201 (as the command line does)
        return EXIT_USAGE
    except ServerError as error:
        print(f"headrace serve: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_FAILURE
    if not ended:
        logging.shutdown()
        os._exit(0)
    return 0


async def _live(main: Callable[[Life], Awaitable[bool]]) -> bool:
    lines = asyncio.StreamReader(_LONGEST_LINE)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    life = Life(json.loads(await lines.readline()))
    logs.configure(life.settings.log_format, life.settings.log_level)
    listening = loop.create_task(_listen(lines, life))
    try:
        return await main(life)
    finally:
        listening.cancel()
        transport.close()


async def _listen(lines: asyncio.StreamReader, life: Life) -> None:
    while line := await lines.readline():
        if line.decode().strip() == STOP:
            life.stopping.set()
    os._exit(EXIT_FAILURE)


def _run(main: Any) -> bool:
    try:
        import uvloop
    except ModuleNotFoundError:
        return bool(asyncio.run(main))
    return bool(uvloop.run(main))
