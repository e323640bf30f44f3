"""Freed memory is kept: told by page faults, in processes whose allocator is their own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

ROUNDS, PAGES = 10, 3 * 4096  # of 4 KiB, in three blocks of 16 MiB

PROGRAM = f"""
import resource
from headrace.server.allocator import keep_freed_memory

def blocks():
    return [b"x" * (16 << 20) for _ in range(3)]

kept = keep_freed_memory()
blocks()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    blocks()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(**environment: str) -> tuple[bool, int]:
    """Whether memory was to be kept, and the page faults of all rounds."""
    allocator = ("MALLOC_", "GLIBC_TUNABLES")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(allocator)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is what is set up")
def test_blocks_that_were_freed_are_there_again() -> None:
    kept, faults = run()
    assert kept
    assert faults < PAGES  # of ROUNDS * PAGES, had each round to take its memory anew


def test_what_the_user_has_set_up_stays() -> None:
    kept, faults = run(MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072")
    assert not kept
    if platform.libc_ver()[0] == "glibc":
        assert faults > ROUNDS * PAGES / 2
