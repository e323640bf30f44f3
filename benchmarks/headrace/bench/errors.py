"""What ends a load test before it has a result."""

from __future__ import annotations


class BenchError(Exception):
    """The test could not be made. The message names what was wrong: address, model, status."""
