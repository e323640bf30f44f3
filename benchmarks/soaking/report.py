"""What came of each scenario, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from soaking.callers import End, Tally

_COLUMNS = (
    "scenario", "sent", *(end.value for end in End), "RSS before, after, MiB", "recovery s", "",
)  # fmt: skip


@dataclass
class Row:
    """One scenario. before, after: bytes that the server held. recovery: seconds from the end of it
    until a lone request was answered right; None where the server was meant to end. complaint: what
    else was not as it should be."""

    name: str
    tally: Tally
    before: int
    after: int
    recovery: float | None
    note: str = ""
    complaint: str = ""

    @property
    def sound(self) -> bool:
        """Whether nobody was forgotten, and nobody given a wrong answer."""
        return not self.tally[End.LOST] and not self.tally[End.WRONG]

    def cells(self) -> list[str]:
        held = f"{self.before / 2**20:.0f}, {self.after / 2**20:.0f}"
        recovery = "" if self.recovery is None else f"{self.recovery:.2f}"
        counts = [str(self.tally[end]) for end in End]
        return [self.name, str(self.tally.total()), *counts, held, recovery, self.note]


def terminal(rows: Sequence[Row]) -> Table:
    table = Table()
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in ("scenario", "") else "right")
    for row in rows:
        table.add_row(*row.cells(), style="" if row.sound else "bold red")
    return table


def markdown(rows: Sequence[Row]) -> str:
    lines = [_COLUMNS, tuple("---" for _ in _COLUMNS), *(tuple(row.cells()) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
