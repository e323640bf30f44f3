"""`headrace serve` whose models fail on demand: `python faulty.py serve ...`.

Every session is wrapped before an executor gets it. A request whose `x` holds one of the values
below makes its run raise, find no memory, or hang, until another request lets go of all that hang.
Nothing in the server knows of this.
"""

from __future__ import annotations

import pathlib
import sys
import threading
from typing import Any

RAISE, NO_MEMORY, HANG, LET_GO = -1001.0, -1002.0, -1003.0, -1004.0
FAULTS = {RAISE, NO_MEMORY, HANG, LET_GO}

_let_go = threading.Event()


class Faulty:
    """An ONNX Runtime session that does what its input says."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, outputs: Any, feeds: Any, options: Any = None) -> Any:
        global _let_go  # each event lets go of those that hang when it is set, and of no others
        for fault in FAULTS.intersection(feeds["x"].ravel().tolist()):
            if fault == RAISE:
                raise RuntimeError("a fault that was asked for")
            if fault == NO_MEMORY:
                raise MemoryError("std::bad_alloc")
            if fault == HANG:
                _let_go.wait()
            else:
                _let_go, before = threading.Event(), _let_go
                before.set()
        return self._session.run(outputs, feeds, options)


def main() -> int:
    from headrace.server.cli import main as serve
    from headrace.server.executors import session
    from headrace.server.models import planner, served

    def open_session(path: pathlib.Path, options: session.SessionOptions) -> Any:
        return Faulty(session.open_session(path, options))

    for module in (served, planner):
        setattr(module, "open_session", open_session)  # noqa: B010 (it is not theirs to export)
    # A model that may hang would not be taken for steady: its operators would show it.
    setattr(served, "is_steady", lambda *_: False)  # noqa: B010
    return serve()


if __name__ == "__main__":
    sys.exit(main())
