"""How the batching policy does against the best hand-tuned rules, in a discrete-event simulation.

It drives the policy's own code, as the server runs it, with a clock moved by hand; executors are
tables of costs with noise. The rivals are fixed rules whose knobs are chosen with hindsight for
each workload. Nothing but the seed decides the numbers: two runs of one version print the same.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console

from simulation.report import markdown, terminal, verdicts, write
from simulation.sections import SECTIONS, Section

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scheduling.md"


def simulate(section: Section, quick: bool, console: Console) -> str:
    """Runs one section and prints its table. Returns it as Markdown."""
    began = time.monotonic()
    rows = []
    with console.status(f"{section.letter}. {section.title}") as status:
        for row in section.rows(quick):
            rows.append(row)
            status.update(f"{section.letter}. {section.title}: {len(rows)} workloads")
    console.print(terminal(section, rows))
    for line in verdicts(section, rows):
        console.print(line)
    console.print(f"in {time.monotonic() - began:.0f} s\n")
    return markdown(section, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    letters = [section.letter for section in SECTIONS]
    parser.add_argument("--section", nargs="+", choices=letters, default=letters)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter workloads")
    parser.add_argument("--markdown", action="store_true", help=f"write the tables to {PAGE.name}")
    options = parser.parse_args()
    if options.markdown and (options.quick or options.section != letters):
        parser.error("--markdown needs a full run: the page holds one run's tables")
    console = Console()
    chosen = [section for section in SECTIONS if section.letter in options.section]
    parts = [simulate(section, options.quick, console) for section in chosen]
    if options.markdown:
        write(PAGE, parts)


if __name__ == "__main__":
    main()
