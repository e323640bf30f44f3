"""The command line of `headrace bench`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Runs one command. Returns 0, 2 for bad usage, 1 for a failure."""
    parser = argparse.ArgumentParser(prog="headrace bench", description="Load tests of servers.")
    parser.parse_args(arguments)
    return 0
