"""The process that owns models, batcher and executors, behind front processes: `python -m`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from headrace.server.allocator import keep_freed_memory
from headrace.server.app import running, settle_memory
from headrace.server.config import Settings
from headrace.server.fronts.behind import BehindFronts
from headrace.server.fronts.child import Life, run
from headrace.server.rpc import server as rpc
from headrace.server.rpc.control import ControlService
from headrace.server.rpc.guard import trust_fronts
from headrace.server.rpc.service import InferenceService
from headrace.server.rpc.streams import StreamService
from headrace.server.telemetry.watch import Watch


def _build(
    folder: Path,
    inference: InferenceService,
    control: ControlService,
    streams: StreamService,
    health: rpc.Health,
    settings: Settings,
    watch: Watch,
) -> BehindFronts:
    return BehindFronts(
        rpc.grpcio(inference, control, streams, health, settings, watch),
        inference,
        folder,
        identities=settings.access_file is not None,
        traces=watch.tracing is not None,
    )


async def _main(life: Life) -> bool:
    trust_fronts()
    keep_freed_memory()
    folder = Path(life.config["folder"])
    async with running(life.settings, partial(_build, folder)) as (app, addresses):
        settle_memory()
        life.report(http_port=addresses.http_port)
        await life.stopping.wait()
    return not app.stuck


if __name__ == "__main__":
    sys.exit(run(_main))
