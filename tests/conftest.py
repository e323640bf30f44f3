"""What holds for every test."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import settings

# No test asserts a wall-clock time: hypothesis does, of each example, unless told not to.
settings.register_profile("headrace", deadline=None)
settings.load_profile("headrace")

# Turns of the event loop that a task which was told to end may take to do so; and then seconds, for
# one that a thread of a library's own has to end first.
_TURNS = 100
_PATIENCE = 5.0


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
