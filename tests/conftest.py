"""What holds for every test."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Generator, Iterator

import pytest
from hypothesis import settings

# No test asserts a wall-clock time: hypothesis does, of each example, unless told not to.
settings.register_profile("headrace", deadline=None)
settings.load_profile("headrace")

# Turns of the event loop that a task which was told to end may take to do so; and then seconds, for
# one that a thread of a library's own has to end first.
_TURNS = 100
_PATIENCE = 5.0
# A device and a right are nothing that could be installed.
NOT_INSTALLED = ("gpu", "privileged")
# Where everything else is there, as in CI: `SKIP_NOTHING=1 python -m pytest`.
SKIP_NOTHING = os.environ.get("SKIP_NOTHING", "") not in ("", "0")


def _unskipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Makes a failure of a skip: what the test lacks should have been there."""
    if SKIP_NOTHING and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = (
            f"{reason}\nSKIP_NOTHING is set, as .ci/run does: what tests need is installed by pip "
            "and npm (make check) and by tests/tools.sh."
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if not any(map(item.get_closest_marker, NOT_INSTALLED)):
        _unskipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Of a file that is skipped as a whole."""
    report = yield
    _unskipped(report)
    return report


@pytest.fixture(autouse=True)
def no_task_is_left_behind(request: pytest.FixtureRequest) -> None:
    """A task that outlives its test works on for nobody, and hides what it was waiting for."""
    function = getattr(request, "function", None)
    if inspect.iscoroutinefunction(function):
        request.getfixturevalue("_watched_tasks")


@pytest.fixture
async def _watched_tasks() -> AsyncIterator[None]:
    """Set up before all other fixtures of the test, so its end comes after theirs."""
    before = asyncio.all_tasks()
    yield
    end = asyncio.get_running_loop().time() + _PATIENCE
    turn = 0
    while left := asyncio.all_tasks() - before - {asyncio.current_task()}:
        if turn > _TURNS and asyncio.get_running_loop().time() > end:
            break
        turn += 1
        await asyncio.sleep(0 if turn < _TURNS else 0.01)
    else:
        return
    names = sorted(str(task.get_coro()) for task in left)
    pytest.fail(f"the test left {len(left)} tasks behind: {', '.join(names[:5])}")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Servers started by tests keep their plans apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
