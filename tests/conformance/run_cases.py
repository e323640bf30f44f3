"""Runs one file of cases against a server; a JSON line for each says how it went.

    python run_cases.py cases_tensors 127.0.0.1:8001 127.0.0.1:8002

A process of its own, because tritonclient brings its own copy of the protocol's messages.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import pathlib
import signal
import sys
import traceback

# Seconds. A case that waits for what never comes must not keep the others from their turn.
LONGEST_CASE = 40


def hung(number: int, frame: object) -> None:
    raise TimeoutError(f"after {LONGEST_CASE} s it still waited")


def main(module: str, address: str, http_address: str) -> None:
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
    from conformance.cases import Cases, Env

    cases = importlib.import_module(f"conformance.{module}").case
    assert isinstance(cases, Cases)
    env = Env(address, http_address)
    signal.signal(signal.SIGALRM, hung)
    for name, (function, arguments) in cases.functions.items():
        problem = ""
        signal.alarm(LONGEST_CASE)
        try:
            outcome = function(env, *arguments)
            if inspect.iscoroutine(outcome):
                asyncio.run(outcome)
        except Exception:  # noqa: BLE001 (the report is the point)
            problem = traceback.format_exc()
        signal.alarm(0)
        sys.stdout.write(json.dumps({"case": name, "problem": problem}) + "\n")
        sys.stdout.flush()
    env.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
