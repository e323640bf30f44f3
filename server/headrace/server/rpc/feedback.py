"""headrace.feedback.v1: what the right answers were."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

from headrace.feedback.v1 import feedback_pb2 as pb
from headrace.server.errors import InvalidInput, Unsupported
from headrace.server.models.registry import Registry
from headrace.server.models.served import ServedModel
from headrace.server.quality.quality import Quality
from headrace.server.quality.scores import Truth
from headrace.server.rpc.calls import abort, caller_of
from headrace.server.rpc.guard import Context, shown_by
from headrace.server.rpc.handlers import charged, watched
from headrace.server.rpc.limits import InFlight
from headrace.server.security.access import Kind
from headrace.server.security.guard import Guard
from headrace.server.telemetry.watch import Watch

SERVICE = pb.DESCRIPTOR.services_by_name["Feedback"]
_MOST_TRUTHS = 10_000
# A method: a request message, and who sends it, empty where the server does not ask.
_Method = Callable[[Any, str], Awaitable[Any]]


class FeedbackService:
    """Answers Feedback's methods: `handlers` by name, each with the message that it takes."""

    def __init__(self, registry: Registry, watch: Watch, guard: Guard, in_flight: InFlight) -> None:
        self._registry = registry
        self._watch = watch
        self._guard = guard
        self._in_flight = in_flight

    def handlers(self) -> Iterator[tuple[str, Any, Callable[[Any, Context], Awaitable[Any]]]]:
        """Name, message and handler of each method. A message that cannot be parsed may come as the
        InvalidInput that says so."""
        yield "Report", pb.ReportRequest, self._handler("Report", "infer", self.report)
        reset = self._handler("ResetReference", "control", self.reset_reference)
        yield "ResetReference", pb.ResetReferenceRequest, reset

    def _handler(
        self, name: str, kind: Kind, method: _Method
    ) -> Callable[[Any, Context], Awaitable[Any]]:
        full = f"{SERVICE.full_name}/{name}"

        async def handler(request: Any, context: Context) -> Any:
            try:
                async with watched(self._watch, full, context):
                    broken = isinstance(request, InvalidInput)
                    model = None if broken else request.model
                    identity = self._guard.check(kind, model, partial(shown_by, context))
                    if broken:
                        raise request
                    # Reports wait for one another: many can be here at once.
                    with charged(self._in_flight, identity or caller_of(context), request):
                        return await method(request, identity)
            except Exception as error:  # noqa: BLE001 (the table knows what each error means)
                await abort(context, error)

        return handler

    async def report(self, request: pb.ReportRequest, identity: str) -> pb.ReportResponse:
        """Raises ModelNotFound, ModelUnavailable, InvalidInput, Unsupported."""
        watched_ = self._watched(request.model, request.version)
        left = _truths(request)
        for quality in watched_:
            if left:
                left = await quality.report(identity, left)
        watched_[0].unknown += len(left)
        return pb.ReportResponse(unknown_request_ids=[truth.request_id for truth in left])

    async def reset_reference(
        self, request: pb.ResetReferenceRequest, _: str
    ) -> pb.ResetReferenceResponse:
        """Raises ModelNotFound, ModelUnavailable, Unsupported."""
        for quality in self._watched(request.model, request.version):
            await quality.reset_reference()
        return pb.ResetReferenceResponse()

    def _watched(self, name: str, version: str) -> list[Quality]:
        """The quality of the versions meant, the newest first."""
        found = [model.quality for model in self._models(name, version)]
        watched_ = [quality for quality in found if quality is not None]
        if not watched_:
            raise Unsupported(
                f"model '{name}': nobody watches how good its answers are; its configuration has "
                "no table [quality]"
            )
        return watched_

    def _models(self, name: str, version: str) -> list[ServedModel]:
        newest = self._registry.get(name, version)
        if version:
            return [newest]
        versions = reversed(self._registry.versions(name))
        return [self._registry.get(name, each) for each in versions]


def _truths(request: pb.ReportRequest) -> list[Truth]:
    if len(request.truths) > _MOST_TRUTHS:
        raise InvalidInput(
            f"truths: expected at most {_MOST_TRUTHS}, got {len(request.truths)}: send several"
        )
    return [_truth(f"truths[{place}]", truth) for place, truth in enumerate(request.truths)]


def _truth(where: str, message: pb.Truth) -> Truth:
    if not message.request_id:
        raise InvalidInput(f"{where}.request_id: expected the id of an inference request, got none")
    kind = message.WhichOneof("truth")
    if kind == "classes":
        return Truth(where, message.request_id, kind, message.classes.indexes)
    if kind == "names":
        return Truth(where, message.request_id, kind, message.names.names)
    if kind == "values":
        return Truth(where, message.request_id, kind, message.values.values)
    raise InvalidInput(f"{where}: expected classes, names or values, got none")
