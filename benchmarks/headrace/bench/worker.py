"""One load process: sends its share of the load, and reports what became of it.

The event loop is asyncio's own with select(2), whose timeouts are of microseconds; epoll's, and so
uvloop's, are of milliseconds, which is the size of what is measured. Nothing is computed here that
can wait: rows are handed to the parent a little and often, so that no hand-over is felt.

All times are of the monotonic clock, which is one clock for all processes of a machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import selectors
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

from headrace.bench.calls import Calls, Kind
from headrace.bench.loads import (
    ClosedDriver,
    Driver,
    OpenDriver,
    Share,
    arrivals,
    closed_sequence,
)
from headrace.bench.sensors import SensorDriver
from headrace.bench.spec import ClosedLoad, Load, SensorLoad, Target
from headrace.bench.transports import Transport
from headrace.bench.transports.choose import transport as chosen
from headrace.bench.transports.sensor import SensorTransport, Stream

_REPORT_EVERY = 0.1
_IDLE_CHECK = 0.005
_PR_SET_TIMERSLACK = 29  # prctl(2)


@dataclass(frozen=True)
class Sensors:
    """A sensor load, the streams of the job's requests, and by which seed sessions draw theirs."""

    load: SensorLoad
    streams: tuple[Stream, ...]
    seed: int


@dataclass(frozen=True)
class Assignment:
    """What a load process is for. `kinds` and `weights` are those of the job's requests, in its
    order; a sensor load has `sensors` in place of `kinds`."""

    target: Target
    kinds: tuple[Kind, ...]
    weights: tuple[float, ...]
    share: Share
    sensors: Sensors | None = None


@dataclass(frozen=True, slots=True)
class Begin:
    """Asks for `load` from the time `at`, for at most `seconds`. Where the same closed or sensor
    load is running already, it goes on, and draws its requests anew. With a `grace` the load ends
    after `seconds`, and the process with an `Ended` at most `grace` seconds later."""

    load: Load
    at: float
    seconds: float
    seed: int
    grace: float | None = None


@dataclass(frozen=True, slots=True)
class Drain:
    """Asks to send nothing more, and for a `Drained` once all is answered or `grace` has passed."""

    grace: float


@dataclass(frozen=True, slots=True)
class Ready:
    """The transport is open; `name` is its name."""

    name: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The process cannot go on."""

    message: str


@dataclass(frozen=True, slots=True)
class Drained:
    """Nothing is under way."""


@dataclass(frozen=True, slots=True)
class Notes:
    """All rows up to the time `until` that were not reported yet, and their table of statuses."""

    until: float
    rows: bytes
    statuses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """The last word. `cpu_seconds` are this process's own over the measured stretch."""

    cpu_seconds: float


Command = Begin | Drain
Report = Ready | Failed | Drained | Notes | Ended


class Worker:
    """A load process without the process: on any event loop, with any transport. `report` is called
    with what is to be told; `cpu` gives the CPU seconds used so far."""

    def __init__(
        self,
        assignment: Assignment,
        transport: Transport,
        report: Callable[[Report], None],
        cpu: Callable[[], float] = time.process_time,
    ) -> None:
        self._assignment = assignment
        self._transport = transport
        self._report = report
        self._cpu = cpu
        self._cpu_seconds = 0.0
        self._loop = asyncio.get_running_loop()
        self._calls = Calls(self._loop, transport)
        self._load: Load | None = None
        self._driver: Driver | None = None

    async def open(self) -> None:
        """Connects, and opens the sessions of a sensor load. Raises ConnectionError."""
        await self._transport.open()
        sensors = self._assignment.sensors
        if sensors is not None:
            if not isinstance(self._transport, SensorTransport):
                raise TypeError(f"{self._transport.name} carries no sensor streams")
            driver = SensorDriver(self._loop, self._calls, sensors.load, self._assignment.share)
            weights = self._assignment.weights
            await driver.open(self._transport, sensors.streams, weights, sensors.seed)
            self._driver = driver

    async def run(self, commands: asyncio.Queue[Command]) -> None:
        """Follows `commands` until a `Begin` with a grace has been carried out."""
        reporting = self._loop.create_task(self._report_often())
        try:
            ended = False
            while not ended:
                command = await commands.get()
                if isinstance(command, Drain):
                    await self._drain(command)
                else:
                    await self._begin(command)
                    ended = command.grace is not None
        finally:
            reporting.cancel()
            await asyncio.wait([reporting])
        self._calls.give_up()
        self._report_rows()
        self._report(Ended(self._cpu_seconds))

    async def _begin(self, command: Begin) -> None:
        share, weights = self._assignment.share, self._assignment.weights
        if isinstance(self._driver, ClosedDriver) and command.load == self._load:
            sequence = closed_sequence(weights, command.seed, share)
            self._loop.call_at(command.at, self._driver.renew, sequence)
        elif not isinstance(self._driver, SensorDriver):
            if self._driver is not None:
                self._driver.stop(command.at)
            self._driver = self._drive(command)
            self._driver.start(command.at)
        elif self._load is None:
            self._driver.start(command.at)
        self._load = command.load
        if command.grace is not None and self._driver is not None:
            await self._to_the_end(command, self._driver, command.grace)

    def _drive(self, command: Begin) -> Driver:
        given, load = self._assignment, command.load
        if isinstance(load, SensorLoad):
            raise TypeError("a sensor load is part of the assignment")
        if isinstance(load, ClosedLoad):
            sequence = closed_sequence(given.weights, command.seed, given.share)
            return ClosedDriver(self._loop, self._calls, given.kinds, load, sequence, given.share)
        due = arrivals(load, command.seconds, command.seed, given.weights, given.share)
        return OpenDriver(self._loop, self._calls, given.kinds, due)

    async def _to_the_end(self, command: Begin, driver: Driver, grace: float) -> None:
        end = command.at + command.seconds
        driver.stop(end)
        await self._sleep_until(command.at)
        cpu = self._cpu()
        await self._sleep_until(end)
        self._cpu_seconds = self._cpu() - cpu
        await self._idle(driver, end + grace)
        driver.abandon()

    async def _drain(self, command: Drain) -> None:
        now = self._loop.time()
        if self._driver is not None:
            self._driver.stop(now)
            await self._idle(self._driver, now + command.grace)
            self._driver = None
        self._report(Drained())

    async def _idle(self, driver: Driver, until: float) -> None:
        """Waits until nothing is under way or still to be sent, at most until `until`."""
        while (self._calls.in_flight or driver.busy()) and self._loop.time() < until:  # noqa: ASYNC110 - cheap
            await asyncio.sleep(_IDLE_CHECK)

    async def _sleep_until(self, at: float) -> None:
        await asyncio.sleep(max(0.0, at - self._loop.time()))

    async def _report_often(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_EVERY)
            self._report_rows()

    def _report_rows(self) -> None:
        until = self._loop.time()
        self._report(Notes(until, self._calls.take(), tuple(self._calls.statuses)))


def main(connection: Connection, assignment: Assignment) -> None:
    """The process. It ends after its last word, or when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    _exact_timers()
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    try:
        with asyncio.Runner(loop_factory=lambda: loop) as runner, contextlib.suppress(EOFError):
            runner.run(_serve(connection, assignment))
    except ConnectionError as error:
        _last_word(connection, Failed(str(error)))
    except Exception:  # noqa: BLE001 - whatever it was, the parent has to hear of it
        _last_word(connection, Failed(traceback.format_exc()))


def _exact_timers() -> None:
    """Linux wakes a process up to 50 µs late, to save power, unless it asks for better."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)


def _last_word(connection: Connection, word: Report) -> None:
    with contextlib.suppress(OSError):  # nobody listens
        connection.send(word)


async def _serve(connection: Connection, assignment: Assignment) -> None:
    transport = chosen(assignment.target)
    worker = Worker(assignment, transport, connection.send)
    await worker.open()
    commands: asyncio.Queue[Command] = asyncio.Queue()
    gone = asyncio.Event()

    def hear() -> None:
        try:
            commands.put_nowait(connection.recv())
        except (EOFError, OSError):
            loop.remove_reader(connection.fileno())
            gone.set()

    loop = asyncio.get_running_loop()
    loop.add_reader(connection.fileno(), hear)
    connection.send(Ready(transport.name))
    # What is there by now stays: the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    work = loop.create_task(worker.run(commands))
    leaving = loop.create_task(gone.wait())
    try:
        await asyncio.wait([work, leaving], return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
    finally:
        loop.remove_reader(connection.fileno())
        for task in (work, leaving):
            task.cancel()
        await asyncio.wait([work, leaving])
        await transport.close()
