"""Which models are served, and how they come and go while requests run."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pathlib
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from functools import partial

from headrace.server.errors import (
    LoadFailed,
    ModelNotFound,
    ModelUnavailable,
    ServerError,
)
from headrace.server.models import served
from headrace.server.models.options import ModelOptions
from headrace.server.models.repository import Catalogue, ModelSource
from headrace.server.models.served import Host, ServedModel
from headrace.server.models.triton_config import from_json

_log = logging.getLogger(__name__)

READY, LOADING, UNLOADING, UNAVAILABLE = "READY", "LOADING", "UNLOADING", "UNAVAILABLE"


@dataclass(slots=True)
class Entry:
    """One version's line in the repository's index."""

    name: str
    version: str
    state: str
    reason: str = ""
    model: ServedModel | None = None


class ModelListener:
    """Told when a model starts or stops to serve. Override what you need."""

    async def set_model(self, name: str, ready: bool) -> None:
        """`ready`: whether any version of `name` serves now."""

    async def set_server(self, able: bool) -> None:
        """`able`: whether any model has an executor left; those whose runs hang are given up."""


class Registry:
    """Models by name and version. Everything but loading itself happens on the event loop."""

    def __init__(self, catalogue: Catalogue, host: Host) -> None:
        self._catalogue = catalogue
        self._host = host
        self._entries: dict[str, dict[str, Entry]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._loading: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._telling: set[asyncio.Task[None]] = set()
        self._alive: set[ServedModel] = set()
        self.listener = ModelListener()

    def get(self, name: str, version: str = "") -> ServedModel:
        """The version asked for, or the highest that serves.

        Raises ModelNotFound for a name or version nobody knows, ModelUnavailable for one that is
        known and does not serve now.
        """
        versions = self._entries.get(name)
        if versions is None:
            raise self._absent(name)
        if version:
            entry = versions.get(version)
            if entry is None:
                known = ", ".join(versions) or "none"
                raise ModelNotFound(f"model '{name}' has no version '{version}', it has {known}")
        elif len(versions) == 1:
            (entry,) = versions.values()
        else:
            entry = max(versions.values(), key=lambda e: (e.model is not None, int(e.version or 0)))
        if entry.model is None:
            why = f": {entry.reason}" if entry.reason else ""
            raise ModelUnavailable(f"model '{name}' is {entry.state}{why}")
        return entry.model

    def _absent(self, name: str) -> ServerError:
        if name in self._catalogue.sources():
            return ModelUnavailable(f"model '{name}' is in the repository but is not loaded")
        served_names = ", ".join(sorted(self._entries)) or "none"
        return ModelNotFound(f"no model is called '{name}'; the server has {served_names}")

    def check_ready(self, name: str, version: str = "") -> None:
        """Raises what `get` does, and ModelUnavailable where no executor of it is left."""
        model = self.get(name, version)
        if not model.able:
            raise ModelUnavailable(f"model '{model.spec.name}' has no executor left")

    @property
    def able(self) -> bool:
        """Whether any of the models that serve has an executor left; or none serves at all."""
        models = self.ready_models()
        return not models or any(model.able for model in models)

    def ready_models(self) -> list[ServedModel]:
        """Every version that serves."""
        return [entry.model for entry in self._all() if entry.model is not None]

    def versions(self, name: str) -> list[str]:
        """The versions of `name` that serve, ascending."""
        entries = self._entries.get(name, {}).values()
        return sorted((e.version for e in entries if e.model is not None), key=int)

    def index(self) -> list[Entry]:
        """Every version known, and every model of the repository that was never loaded."""
        known = list(self._all())
        names = {entry.name for entry in known}
        absent = [
            Entry(name, "", UNAVAILABLE, "not loaded")
            for name in self._catalogue.sources()
            if name not in names
        ]
        return sorted([*known, *absent], key=lambda entry: (entry.name, entry.version))

    def _all(self) -> Iterable[Entry]:
        return (entry for versions in self._entries.values() for entry in versions.values())

    async def load_all(self) -> None:
        """Loads everything in the catalogue. What fails is listed with its reason."""
        for name in self._catalogue.sources():
            with contextlib.suppress(LoadFailed):  # logged, and listed with its reason
                await self.load(name)

    async def load(self, name: str, config: str | None = None) -> None:
        """Loads or reloads `name` from disk; `config` (ModelConfig as JSON) replaces its own.

        The old versions serve until the new ones do; what they accepted is answered. Raises
        ModelNotFound, LoadFailed; after a failed reload the old versions serve on. A caller who
        leaves does not stop it half-way.
        """
        await self._finish(self._load(name, config), self._loading)

    async def _load(self, name: str, config: str | None) -> None:
        source = self._catalogue.sources().get(name)
        if source is None:
            raise ModelNotFound(f"the repository has no model '{name}'")
        async with self._locks.setdefault(name, asyncio.Lock()):
            try:
                source.check()
                options = from_json(config, name) if config else source.options()
                files = source.files(options)
            except Exception as error:
                failure = _as_load_failed(error)
                await self._note_failure(name, "", failure)
                raise failure from error
            _warn_not_honoured(name, options)
            versions = {str(version): file for version, file in files.items()}
            fresh = await self._load_versions(source, versions, options)
            await self._replace(name, fresh)

    def _finish(
        self, work: Coroutine[None, None, None], tasks: set[asyncio.Task[None]]
    ) -> asyncio.Future[None]:
        """Runs `work` to its end, whether or not somebody waits for it."""
        task = asyncio.get_running_loop().create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return asyncio.shield(task)

    async def _load_versions(
        self, source: ModelSource, files: dict[str, pathlib.Path], options: ModelOptions
    ) -> dict[str, Entry]:
        name = source.name
        fresh: dict[str, Entry] = {}
        current = self._entries.setdefault(name, {})
        for version, path in files.items():
            if version not in current or current[version].model is None:
                current[version] = Entry(name, version, LOADING)
            try:
                await asyncio.to_thread(source.check_model, path)
                model = await served.load(name, version, path, options, self._host)
            except Exception as error:
                failure = _as_load_failed(error)
                await self._note_failure(name, version, failure)
                for entry in fresh.values():
                    self._retire(entry)
                raise failure from error
            self._alive.add(model)
            model.changed = partial(self._executors_changed, name)
            fresh[version] = Entry(name, version, READY, model=model)
        return fresh

    async def _note_failure(self, name: str, version: str, error: LoadFailed) -> None:
        _log.error("model %s was not loaded: %s", f"{name} {version}".strip(), error)
        current = self._entries.setdefault(name, {})
        loading = [v for v, entry in current.items() if entry.state == LOADING]
        if any(entry.model is not None for entry in current.values()):
            for other in loading:  # the old versions serve on
                del current[other]
            if version and version not in current:
                current[version] = Entry(name, version, UNAVAILABLE, str(error))
            return
        reason = f"version {version} failed to load"
        failed = {other: Entry(name, other, UNAVAILABLE, reason) for other in loading}
        failed[version] = Entry(name, version, UNAVAILABLE, str(error))
        self._entries[name] = failed  # what is remembered of an earlier load is past
        await self.listener.set_model(name, False)

    async def _replace(self, name: str, fresh: dict[str, Entry]) -> None:
        old = self._entries.get(name, {})
        self._entries[name] = fresh
        for entry in fresh.values():
            _log_loaded(entry)
        await self.listener.set_model(name, True)
        await self.listener.set_server(self.able)
        for entry in old.values():
            self._retire(entry)

    async def unload(self, name: str) -> None:
        """Stops to serve `name` and returns when all it accepted is answered.

        Raises ModelNotFound when it is not loaded. A caller who leaves does not stop it half-way.
        """
        await self._finish(self._unload(name), self._closing)

    async def _unload(self, name: str) -> None:
        async with self._locks.setdefault(name, asyncio.Lock()):
            entries = self._entries.get(name)
            if entries is None:
                raise self._absent(name)
            await self.listener.set_model(name, False)
            models = []
            for entry in entries.values():
                entry.state, entry.reason = UNLOADING, ""
                if entry.model is not None:
                    models.append(entry.model)
                    entry.model = None
            await self.listener.set_server(self.able)
            for model in models:
                await self._close(model)
            for entry in entries.values():
                entry.state, entry.reason = UNAVAILABLE, "unloaded"
        _log.info("model %s was unloaded", name)

    def _executors_changed(self, name: str) -> None:
        """An executor of a version of `name` was given up, or replaced."""
        versions = [entry.model for entry in self._entries[name].values()]
        ready = any(model is not None and model.able for model in versions)
        self._finish(self.listener.set_model(name, ready), self._telling)
        self._finish(self.listener.set_server(self.able), self._telling)

    def _retire(self, entry: Entry) -> None:
        """Closes an entry's model in the background: it answers what it has accepted."""
        if entry.model is None:
            return
        self._finish(self._close(entry.model), self._closing)
        entry.model = None

    async def _close(self, model: ServedModel) -> None:
        await model.close()
        self._alive.discard(model)

    async def drain(self) -> None:
        """Returns when everything that was accepted is answered. Takes no more work."""
        await asyncio.gather(*(self._close(model) for model in self._alive))

    def abort(self) -> None:
        """Ends what still waits, and stops what runs, with an error."""
        for model in self._alive:
            model.runner.abort()


def _as_load_failed(error: Exception) -> LoadFailed:
    """Whatever goes wrong with one model's files is that model's failure, never the server's."""
    if isinstance(error, LoadFailed):
        return LoadFailed(*error.args)
    return LoadFailed(f"{type(error).__name__}: {error}")


def _warn_not_honoured(name: str, options: ModelOptions) -> None:
    if options.not_honoured:
        keys = ", ".join(options.not_honoured)
        _log.warning("model %s: its configuration sets what has no effect here: %s", name, keys)


def _log_loaded(entry: Entry) -> None:
    model = entry.model
    assert model is not None
    spec, plan = model.spec, model.plan
    how = (
        f"batches of up to {spec.max_batch_size}"
        if spec.batched
        else f"unbatched, because {spec.unbatched_because}"
    )
    if model.padding.padding is not None:
        how += f", unequal lengths padded by {model.padding.padding.mode.value}"
    elif model.padding.reason:
        how += f", unequal lengths kept apart, because {model.padding.reason}"
    _log.info(
        "model %s version %s serves with %s, %s",
        spec.name,
        spec.version,
        plan.in_words,
        how,
    )
