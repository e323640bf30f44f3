"""What the server says of its own work, by the protocol's ModelStatistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import grpc

from headrace.bench.results import Batches
from headrace.bench.spec import Target
from headrace.bench.transports.channel import OPTIONS
from headrace.inference.v2 import grpc_service_pb2 as pb
from headrace.inference.v2.grpc_service_pb2_grpc import GRPCInferenceServiceStub

_PATIENCE = 10.0


class Statistics:
    """The counters of `models` at a gRPC target, asked beside what else goes on; no other target
    has any."""

    def __init__(self, target: Target, models: Iterable[str]) -> None:
        self._tells = target.protocol != "http"
        self._channel = grpc.insecure_channel(target.address, options=list(OPTIONS.items()))
        self._stub = GRPCInferenceServiceStub(self._channel)
        self._models = sorted(set(models))
        self._thread = ThreadPoolExecutor(1)
        self._asked: list[Future[list[pb.ModelStatistics] | None]] = []

    def ask(self) -> None:
        """Asks for the counters as they are now; does not wait."""
        if self._tells:
            self._asked.append(self._thread.submit(ask, self._stub, self._models))

    def batches(self) -> Batches | None:
        """What happened between the first and the last time it was asked."""
        told = [future.result() for future in self._asked]
        return between(told[0], told[-1]) if told else None

    def close(self) -> None:
        """Ends the connection."""
        self._thread.shutdown()
        self._channel.close()


def ask(stub: GRPCInferenceServiceStub, models: Iterable[str]) -> list[pb.ModelStatistics] | None:
    """The counters so far of every version of `models`; None where the server has none to tell."""
    try:
        return [
            version
            for model in models
            for version in stub.ModelStatistics(
                pb.ModelStatisticsRequest(name=model), timeout=_PATIENCE
            ).model_stats
        ]
    except grpc.RpcError:
        return None


def between(
    before: Sequence[pb.ModelStatistics] | None, after: Sequence[pb.ModelStatistics] | None
) -> Batches | None:
    """What happened from `before` to `after`; None where nothing was told. A version that has come
    since counts from zero."""
    if before is None or after is None:
        return None
    earlier = {(version.name, version.version): version for version in before}
    sizes: Counter[int] = Counter()
    counts: Counter[str] = Counter()
    for version in after:
        _add(sizes, counts, version, 1)
        if (known := earlier.get((version.name, version.version))) is not None:
            _add(sizes, counts, known, -1)
    return Batches(
        sizes={size: count for size, count in sorted(sizes.items()) if count > 0},
        queue_ms=_mean(counts["queue_ns"], counts["queue"]),
        compute_ms=_mean(counts["compute_ns"], counts["compute"]),
    )


def _add(sizes: Counter[int], counts: Counter[str], version: pb.ModelStatistics, sign: int) -> None:
    for batch in version.batch_stats:
        sizes[batch.batch_size] += sign * batch.compute_infer.count
    times = version.inference_stats
    counts["queue"] += sign * times.queue.count
    counts["queue_ns"] += sign * times.queue.ns
    counts["compute"] += sign * times.compute_infer.count
    for part in (times.compute_input, times.compute_infer, times.compute_output):
        counts["compute_ns"] += sign * part.ns


def _mean(nanoseconds: int, count: int) -> float | None:
    return nanoseconds / count / 1e6 if count > 0 else None
