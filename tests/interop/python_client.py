"""The interop cases of clients/interop.md, run by the Python client.

python tests/interop/python_client.py ADDRESS CUT_ADDRESS [CASE...]
python tests/interop/python_client.py --list
"""

from __future__ import annotations

import asyncio
import json
import pathlib
import sys
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from interop import python_calls, python_sensors
from interop.python_cases import Case, Env

# Seconds. A case that waits for what never comes must not keep the others from their turn.
LONGEST = 60
CASES: dict[str, Case] = {**python_calls.case.named, **python_sensors.case.named}


async def problem_of(case: Case, env: Env) -> str:
    """What went wrong; empty where it went well."""
    try:
        async with asyncio.timeout(LONGEST), env.client() as client:
            await case(env, client)
    except Exception:  # noqa: BLE001 (the report is the point)
        return traceback.format_exc()
    return ""


async def main(address: str, cut_address: str, *names: str) -> None:
    env = Env(address, cut_address)
    for name in names or CASES:
        problem = await problem_of(CASES[name], env)
        sys.stdout.write(json.dumps({"case": name, "problem": problem}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1:] == ["--list"]:
        sys.stdout.write("\n".join(CASES) + "\n")
    else:
        asyncio.run(main(*sys.argv[1:]))
