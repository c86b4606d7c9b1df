"""Keeps a Cache equal to the API server: kopf watches, a comparison heals what it misses.

kopf is used for ``on.event`` alone, which writes nothing to any object. Its lists are left empty:
whenever one of its watches begins after a list, and every ten minutes, the cache is compared with a
list of our own, which also finds what was deleted before.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import aiohttp
import kopf
from kopf._core.reactor.inventory import ResourceMemories

from espalier.kube import queue_metrics
from espalier.kube.cache import Cache
from espalier.kube.cluster import Cluster
from espalier.kube.comparison import Comparison, Scope
from espalier.kube.echoes import News
from espalier.kube.objects import Body, kind_of, label_selector, last_change, without_managers

# A name that no object can have.
_NOTHING = "metadata.name=-"
COMPARE_SECONDS = 600.0
READY_SECONDS = 60.0


class Connection(Cluster, Protocol):
    """A cluster that can be watched."""

    @property
    def server(self) -> str:
        """URL of the API server."""

    def watch_session(
        self,
        *traces: aiohttp.TraceConfig,
        middlewares: Sequence[aiohttp.ClientMiddlewareType] = (),
    ) -> aiohttp.ClientSession:
        """An authenticated session of its own."""


@dataclass(frozen=True)
class InformerSettings:
    """What to watch: namespaces (all when empty); per kind, the labels its objects must carry."""

    namespaces: tuple[str, ...]
    kinds: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    compare_seconds: float = COMPARE_SECONDS
    ready_seconds: float = READY_SECONDS

    def scopes(self) -> frozenset[Scope]:
        """Every watch that these settings ask for."""
        return frozenset(
            Scope(kind, namespace)
            for kind in self.kinds
            for namespace in self.namespaces or (None,)
        )


async def run(
    settings: InformerSettings,
    cache: Cache,
    stop: asyncio.Event,
    ready: asyncio.Event,
    connection: Connection,
) -> None:
    """Keep ``cache`` equal to the API server until ``stop``; ``ready`` is set once all is synced.

    In the main thread SIGINT and SIGTERM set ``stop`` from here on. Raises InformerError if a kind
    is not synced in time, and whatever error ends kopf: the process should then be restarted.
    """
    comparison = Comparison(settings.scopes(), settings.kinds, cache, connection)
    heal = asyncio.create_task(
        comparison.run(ready, settings.compare_seconds, settings.ready_seconds)
    )
    watch = asyncio.create_task(_watch(settings, cache, stop, connection, comparison))
    try:
        done, _ = await asyncio.wait({heal, watch}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in (heal, watch):
            task.cancel()
        await asyncio.gather(heal, watch, return_exceptions=True)


async def _watch(
    settings: InformerSettings,
    cache: Cache,
    stop: asyncio.Event,
    connection: Connection,
    comparison: Comparison,
) -> None:
    tasks = await kopf.spawn_tasks(
        registry=_registry(settings.kinds, cache, connection, comparison),
        settings=_kopf_settings(settings.kinds),
        memories=_NoMemories(),
        standalone=True,
        clusterwide=not settings.namespaces,
        namespaces=settings.namespaces,
        stop_flag=stop,
    )
    if threading.current_thread() is threading.main_thread():
        # kopf has taken the signals to stop itself alone; the whole process must stop, in order.
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
    await kopf.run_tasks(tasks, ignored=_EveryTask())


class _EveryTask(Collection[Any]):
    """Every task: kopf would otherwise cancel all tasks of this loop that began after it."""

    def __contains__(self, task: object) -> bool:
        return True

    def __iter__(self) -> Iterator[Any]:
        return iter(asyncio.all_tasks())

    def __len__(self) -> int:
        return len(asyncio.all_tasks())


class _NoDiffBase(kopf.DiffBaseStorage):  # type: ignore[misc]
    """on.event needs no differences; building them is the larger part of kopf's time per event."""

    def build(self, **_: Any) -> Body:
        return {}

    def fetch(self, **_: Any) -> Body:
        return {}

    def store(self, **_: Any) -> None:
        pass


class _NoProgress(kopf.ProgressStorage):  # type: ignore[misc]
    """on.event makes no progress that would have to be kept."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        pass

    def purge(self, **_: Any) -> None:
        pass

    def touch(self, **_: Any) -> None:
        pass

    def clear(self, *, essence: Any) -> Any:
        return essence


class _NoMemories(ResourceMemories):  # type: ignore[misc]
    """on.event has nothing to remember; kopf would keep some 3 KB of every object for good."""

    async def recall(self, raw_body: Any, **options: Any) -> Any:
        return await super().recall(raw_body, **(options | {"ephemeral": True}))


def _kopf_settings(kinds: Mapping[str, Mapping[str, str]]) -> Any:
    settings = kopf.OperatorSettings()
    settings.persistence.diffbase_storage = _NoDiffBase()
    settings.persistence.progress_storage = _NoProgress()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.queueing.idle_timeout = 0.1
    settings.networking.connect_timeout = 10
    settings.networking.request_timeout = 30
    settings.watching.connect_timeout = 10
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.chunk_size = 500
    # Kubernetes ends a pod that hangs; kopf ending the process would cut our own shutdown short.
    settings.process.ultimate_exiting_timeout = None
    for name, labels in kinds.items():
        if labels:
            kind = kind_of(name)
            selector = (kind.group, kind.version, kind.plural)
            settings.watching.label_selectors[selector] = label_selector(labels)
    return settings


def _registry(
    kinds: Collection[str], cache: Cache, connection: Connection, comparison: Comparison
) -> Any:
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)  # type: ignore[untyped-decorator]
    async def login(**_: Any) -> Any:
        session = connection.watch_session(
            _trace(comparison), middlewares=(_lean(comparison.scopes, cache),)
        )
        return kopf.AiohttpSession(server=connection.server, aiohttp_session=session)

    for name in kinds:
        _register(registry, name, cache)
    return registry


def _register(registry: Any, name: str, cache: Cache) -> None:
    kind = kind_of(name)

    @kopf.on.event(  # type: ignore[untyped-decorator]
        group=kind.group, version=kind.version, plural=kind.plural, id=name, registry=registry
    )
    async def remember(event: Any, **_: Any) -> None:
        queue_metrics.WATCH_EVENTS.labels(kind=name, type=event["type"] or "LISTED").inc()
        if event["type"] and (happened := last_change(event["object"])) is not None:
            age = (datetime.now(UTC) - happened).total_seconds()
            queue_metrics.EVENT_AGE.labels(kind=name).observe(max(0.0, age))
        body = without_managers(event["object"])
        if event["type"] == "DELETED":
            cache.forget(name, body)
        else:
            cache.put(name, body)


def _trace(comparison: Comparison) -> aiohttp.TraceConfig:
    """Tells the comparison which of its collections kopf lists and watches."""
    collections = {kind_of(s.kind).path(s.namespace): s for s in comparison.scopes}

    async def on_start(_: object, __: object, request: aiohttp.TraceRequestStartParams) -> None:
        scope = collections.get(request.url.path)
        if scope is None:
            return
        if "watch" in request.url.query:
            comparison.watching(scope)
        else:
            comparison.listing(scope)

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(on_start)
    return trace


def _lean(scopes: Collection[Scope], cache: Cache) -> aiohttp.ClientMiddlewareType:
    """Has kopf's lists return no object, only the version from which it then watches; and its
    watches nothing that the cache holds already.

    The comparison lists all that there is once the watch has begun. That kopf does so too would
    double the work of a start, and of the API server.
    """
    collections = {kind_of(s.kind).path(s.namespace): s for s in scopes}

    async def lean(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        scope = collections.get(request.url.path)
        if scope is None:
            return await handler(request)
        if "watch" not in request.url.query:
            request.url = request.url.update_query(fieldSelector=_NOTHING)
            return await handler(request)
        response = await handler(request)
        if response.ok:
            response.content = News(response.content, scope.kind, cache)  # type: ignore[assignment]
        return response

    return lean
