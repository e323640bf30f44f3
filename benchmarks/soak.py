"""Load and faults, with figures: nobody is forgotten, nobody gets a wrong answer, memory stays.

`headrace serve` runs in a process of its own, with executors that fail on demand; callers here know
the right answers and count how each of their requests ends. First the server's saturation is
measured; every load is a part of it. Callers have one processor and the server the others, where
there are two at least. Times are the callers'.

Exits with 1 if a request was lost or answered wrong, an answer was late and not counted, a server
did not end with 0, or one grew by more than 32 MiB while its model was loaded anew again and again;
and, in its long form, if three times the saturation cost more of the goodput than `--tolerance`.
"""

from __future__ import annotations

import argparse
import asyncio
import pathlib
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from rich.console import Console

from soaking import faults
from soaking.callers import Callers, End, Tally, after, calling
from soaking.counters import late_answers
from soaking.lateness import compare
from soaking.report import Row, markdown, terminal
from soaking.serving import (
    Server,
    jumping_clock,
    part_from_callers,
    serving,
    steps_for,
    write_repository,
)

# A core then does about eighty rows a second, as it does of the OCR recogniser. Of a much lighter
# model, three times what can be answered is more than the front can refuse on the side.
ROW_SECONDS = 0.05
CALLERS = 32
# On a machine that others keep busy a row takes many times as long, and what was a fair deadline is
# none: a quarter of a second is the time of about so many rows where nothing else runs.
ROWS_IN_TIME = 20
# Bytes that a server may hold more after it has loaded a model anew, however often.
GROWTH = 32 << 20


@dataclass(frozen=True)
class Plan:
    """unit: seconds of most scenarios. calm: units at 70%. reloads, many: how often the model is
    loaded anew. hang: the server's `hang_seconds`. deadline: of requests that have one, seconds,
    where the server has the time of `ROWS_IN_TIME` rows in it; else they have that time."""

    unit: float
    calm: int
    reloads: int
    many: int
    hang: float
    deadline: float = 0.25


@dataclass(frozen=True)
class Side:
    """What is tested. row_seconds: of the model, on one thread. flags: further ones of `headrace
    serve`. cpus: the server's processors, None for all."""

    row_seconds: float = ROW_SECONDS
    flags: tuple[str, ...] = ()
    cpus: set[int] | None = None


SHORT = Plan(unit=0.4, calm=1, reloads=2, many=3, hang=0.3)


def long(minutes: float) -> Plan:
    """Reloads take about as long as a sixth of half an hour, whatever is asked for."""
    return Plan(max(2.0, (60 * minutes - 300) / 17), calm=6, reloads=50, many=200, hang=2.0)


class Soak:
    """The scenarios on one server, and what came of them."""

    def __init__(self, plan: Plan, server: Server, callers: Callers, console: Console) -> None:
        self.plan = plan
        self.server = server
        self.callers = callers
        self.rate = 0.0
        self.deadline = plan.deadline
        self.goodput: dict[float, float] = {}  # by load, answers in time each second
        self.rows: list[Row] = []
        self._console = console

    async def saturate(self) -> None:
        """Finds out what the server can do; later loads are shares of that."""
        await self.callers.saturate(Tally(), CALLERS, self.plan.unit)  # costs are learned
        tally, before = Tally(), self.server.resident()
        self.rate = await self.callers.saturate(tally, CALLERS, 2 * self.plan.unit)
        self.deadline = max(self.plan.deadline, ROWS_IN_TIME / self.rate)
        note = f"{self.rate:.0f} answers/s for {CALLERS} callers, no deadlines"
        recovery = await self.callers.recovered()
        self._add(Row("saturation", tally, before, self.server.resident(), recovery, note))

    async def load(self, share: float, units: int) -> None:
        """Open load of `share` of saturation, with deadlines."""
        tally, before = Tally(), self.server.resident()
        seconds, deadline = units * self.plan.unit, self.deadline
        counted = await late_answers(self.server)
        began = time.monotonic()
        await self.callers.offer(tally, share * self.rate, after(seconds), deadline)
        took = max(seconds, time.monotonic() - began - deadline)
        pairs = zip(await late_answers(self.server), counted, strict=True)
        late, answered = (now - then for now, then in pairs)
        uncounted = max(0, answered - late - tally[End.RIGHT])
        self.goodput[share] = tally[End.RIGHT] / took
        note = (
            f"goodput {tally[End.RIGHT] / took:.0f}/s; {late} late answers counted by the server, "
            f"{uncounted} on their way at the deadline"
        )
        recovery = await self.callers.recovered()
        name = f"{share:.0%} of saturation"
        self._add(Row(name, tally, before, self.server.resident(), recovery, note))

    async def lateness(self) -> None:
        """Whatever is answered late is counted."""
        tally, before = Tally(), self.server.resident()
        rate = 1.5 * self.rate
        seen = await compare(self.callers, tally, self.server, rate, self.plan.unit)
        recovery = await self.callers.recovered()
        row = Row("late answers", tally, before, self.server.resident(), recovery, str(seen))
        row.complaint = seen.complaint
        self._add(row)

    async def fault(
        self,
        name: str,
        act: Callable[[Tally], Awaitable[str]],
        deadline: float | None = None,
        share: float = 0.5,
    ) -> None:
        """`act` beside a load of half the saturation."""
        tally, before = Tally(), self.server.resident()
        rate = share * self.rate
        note = await faults.beside(self.callers, tally, rate, act(tally), deadline)
        recovery = await self.callers.recovered()
        self._add(Row(name, tally, before, self.server.resident(), recovery, note))

    async def sigterm(self) -> None:
        """The last one: the server is stopped under load."""
        tally, before = Tally(), self.server.resident()

        async def stop() -> str:
            await asyncio.sleep(self.plan.unit / 2)
            self.callers.stopping = True
            began = time.monotonic()
            code = await asyncio.to_thread(self.server.stop)
            return f"ended with {code} after {time.monotonic() - began:.1f} s"

        note = await faults.beside(self.callers, tally, 0.7 * self.rate, stop())
        self._add(Row("SIGTERM", tally, before, 0, None, note))

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        self._console.print(f"{row.name}: {row.note}", highlight=False)


async def first_server(plan: Plan, soak: Soak) -> None:
    """Everything that one server can live through; and at last its end."""
    callers, unit, address = soak.callers, plan.unit, soak.server.grpc
    await soak.saturate()
    await soak.load(0.7, plan.calm)
    await soak.load(1.0, 2)
    await soak.load(3.0, 2)
    await soak.lateness()
    await soak.fault("callers vanish", lambda t: faults.vanish(callers, t, unit, address))
    await soak.fault("slow readers", lambda t: faults.read_slowly(callers, t, unit, address))
    await soak.fault("executor raises", lambda t: faults.raise_errors(callers, t, unit))
    await soak.fault("out of memory", lambda t: faults.run_out_of_memory(callers, t, unit))
    await soak.fault("executors hang", lambda t: faults.hang(callers, t, unit))
    for times in (plan.reloads, plan.many):
        reloads = faults.reload(callers, soak.server, times)
        await soak.fault(f"{times} reloads", partial(_already, reloads))
    await soak.sigterm()


async def run(
    plan: Plan, side: Side, folder: pathlib.Path, console: Console
) -> tuple[Soak, list[int | None]]:
    """What came of it, with all rows, and what each server ended with."""
    models = folder / "models"
    write_repository(models, steps_for(side.row_seconds))
    flags = (f"--hang-seconds={plan.hang}", *side.flags)
    with serving(models, folder / "log", *flags, cpus=side.cpus) as server:
        async with calling(server.grpc) as callers:
            soak = Soak(plan, server, callers, console)
            await first_server(plan, soak)
    codes, full = [server.process.returncode], pathlib.Path("/dev/full")
    with (
        jumping_clock(folder) as (environment, clock),
        serving(
            models, full, *flags, "--access-log=true", environment=environment, cpus=side.cpus
        ) as server,
    ):
        async with calling(server.grpc) as callers:
            second = Soak(plan, server, callers, console)
            second.rate, second.rows = soak.rate, soak.rows
            await callers.saturate(Tally(), CALLERS, plan.unit / 2)
            await second.fault("no room for logs", lambda _: _wait(plan.unit))
            if environment:
                jumps = faults.move_the_clock(clock, plan.unit)
                await second.fault("clock jumps", lambda _: jumps, soak.deadline)
            else:
                console.print("clock jumps: left out, there is no C compiler here")
        codes.append(await asyncio.to_thread(server.stop))
    return soak, codes


async def _already(what: Awaitable[str], _: Tally) -> str:
    return await what


async def _wait(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "standard error is /dev/full, with a line for each call"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="about (default 30)")
    parser.add_argument("--short", action="store_true", help="under 20 seconds: does it work?")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.1,
        help="share of the goodput at saturation that three times as much load may cost (default "
        "0.1); not looked at with --short",
    )
    parser.add_argument(
        "--row-ms",
        type=float,
        default=1e3 * ROW_SECONDS,
        help=f"what one row takes on one thread, milliseconds (default {1e3 * ROW_SECONDS:.0f}); "
        "with few, it is the front that is overloaded",
    )
    parser.add_argument("--rpc-engine", default="auto", help="of the server (default auto)")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    options = parser.parse_args()
    plan = SHORT if options.short else long(options.minutes)
    console = Console(width=None if sys.stdout.isatty() else 200)
    flags = (f"--rpc-engine={options.rpc_engine}",)
    side = Side(options.row_ms / 1e3, flags, part_from_callers())
    with tempfile.TemporaryDirectory() as folder:
        soak, codes = asyncio.run(run(plan, side, pathlib.Path(folder), console))
    rows = soak.rows
    if options.markdown:
        print(markdown(rows))
    else:
        console.print(terminal(rows), highlight=False)
    kept = soak.goodput[3.0] / max(soak.goodput[1.0], 1e-9)
    told = f"three times the saturation left {kept:.0%} of the goodput"
    console.print(told, highlight=False)
    wrong = complaints(rows, codes)
    if not options.short and kept < 1 - options.tolerance:
        wrong.append(f"{told}, expected {1 - options.tolerance:.0%} at least")
    for complaint in wrong:
        console.print(complaint, highlight=False)
    return 1 if wrong else 0


def complaints(rows: list[Row], codes: list[int | None]) -> list[str]:
    """What was not as it must be, on any machine."""
    found = [f"{row.name}: {row.complaint}" for row in rows if row.complaint]
    if not all(row.sound for row in rows):
        found.append("requests were lost or answered wrong")
    grown = [r for r in rows if r.name.endswith("reloads") and r.after - r.before > GROWTH]
    found += [f"{row.name}: the server grew by more than {GROWTH >> 20} MiB" for row in grown]
    if any(codes):
        found.append(f"expected every server to end with 0, got {', '.join(map(str, codes))}")
    return found


if __name__ == "__main__":
    sys.exit(main())
