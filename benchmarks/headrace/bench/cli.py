"""The command line of `headrace bench`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from headrace.bench.commands import measuring, reading
from headrace.bench.commands.jobs import UsageError
from headrace.bench.errors import BenchError

EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

_EXAMPLES = """examples:
  headrace bench load 127.0.0.1:8001 -m magika -c 1,8,32       three closed loops
  headrace bench load 127.0.0.1:8001 -m magika -r 500 --deadline 50ms --html page.html
  headrace bench search 127.0.0.1:8001 -m magika --p99 50ms    the highest rate that keeps to it
  headrace bench curve 127.0.0.1:8001 -m magika                latency up to saturation and beyond
  headrace bench versus new=127.0.0.1:8001 old=127.0.0.1:9001 -m magika -c 16
  headrace bench scenario tiny --short                         starts the servers itself
  headrace bench compare before.json after.json

Latency counts from the moment at which a request was due, also where it was sent late. Only answers
that were OK have one; errors are counted by their status. `headrace bench COMMAND --help` tells the
options of each."""

_COMMANDS: dict[str, tuple[str, str, Callable[[argparse.ArgumentParser], None],
                           Callable[[argparse.Namespace], int]]] = {
    "load": (
        "put a load on a server and report",
        """examples:
  headrace bench load 127.0.0.1:8001 -m ocr --shape x:1,3,48,320 -c 16 -d 30s
  headrace bench load 127.0.0.1:8001 -m ocr --inputs images/ -r 200 --burstiness 4
  headrace bench load 127.0.0.1:8001 -m ocr --steps 100x30s,300x30s --ramp
  headrace bench load 127.0.0.1:8001 --request 'model = "a", weight = 3' --request 'model = "b"'
  headrace bench load 127.0.0.1:8001 -m vad --sessions 50 --sample-rate 16k --chunk 800 \\
      --window 512""",
        measuring.add_load_command,
        measuring.run_load,
    ),
    "search": (
        "find the highest rate at which p99 stays under an objective",
        """example:
  headrace bench search 127.0.0.1:8001 -m ocr --shape x:1,3,48,320 --p99 100ms --errors 0.1%""",
        measuring.add_search_command,
        measuring.run_search,
    ),
    "curve": (
        "find saturation, then the latency from 10% to 110% of it",
        """examples:
  headrace bench curve 127.0.0.1:8001 -m magika --html curve.html
  headrace bench curve ours=127.0.0.1:8001 theirs=127.0.0.1:9001 -m magika --shares 50%,80%,100%""",
        measuring.add_curve_command,
        measuring.run_curve,
    ),
    "goodput": (
        "count what is answered within its deadline, at given rates",
        """example:
  headrace bench goodput 127.0.0.1:8001 -m magika --deadline 100ms --rates 500,1000,3000""",
        measuring.add_goodput_command,
        measuring.run_goodput,
    ),
    "versus": (
        "compare servers that take turns in one run: ratios, and whether they are real",
        """example:
  headrace bench versus new=127.0.0.1:8001 old=127.0.0.1:9001 -m magika -c 1,16 -d 5s --turns 10""",
        measuring.add_versus_command,
        measuring.run_versus,
    ),
    "scenario": (
        "run scenarios that come with a model, against other servers",
        "",
        measuring.add_scenario_command,
        measuring.run_scenario,
    ),
    "compare": (
        "compare two reports that were kept as JSON",
        "",
        reading.add_compare_command,
        reading.run_compare,
    ),
    "report": (
        "show a report that was kept as JSON, or make a page of it",
        "",
        reading.add_report_command,
        reading.run_report,
    ),
    "best": (
        "one table of several reports: each server's best configuration in each scenario",
        "",
        reading.add_best_command,
        reading.run_best,
    ),
    "schema": (
        "print the JSON schema of reports",
        "",
        reading.add_schema_command,
        reading.run_schema,
    ),
}  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Runs one command. Returns 0, 2 for bad usage, 1 for a failure."""
    parser = _parser()
    given = parser.parse_args(arguments)
    given.words = tuple(arguments)
    try:
        return int(given.run(given))
    except UsageError as error:
        print(f"{given.parser.prog}: {error}", file=sys.stderr)
        return EXIT_USAGE
    except BenchError as error:
        print(f"{given.parser.prog}: {error}", file=sys.stderr)
        return EXIT_FAILURE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="headrace bench",
        description="Load tests of any server of the Open Inference Protocol.",
        epilog=_EXAMPLES,
        formatter_class=raw,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (words, epilog, add, run) in _COMMANDS.items():
        if name == "scenario":
            epilog = reading.scenarios()
        described = f"{words[0].upper()}{words[1:]}."
        # argparse takes a percent sign in help for a format, but not in a description.
        command = commands.add_parser(
            name,
            help=words.replace("%", "%%"),
            description=described,
            epilog=epilog,
            formatter_class=raw,
        )
        add(command)
        command.set_defaults(run=run, parser=command)
    return parser
