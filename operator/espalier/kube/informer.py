"""Keeps a Cache equal to the API server: kopf watches, comparisons find the deletes it missed.

kopf runs in a thread with an event loop of its own, as its documentation advises: when it ends, it
cancels every task of its loop, and in the main thread it takes the signals.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

import aiohttp
import kopf
from yarl import URL

from espalier.kube import handlers, queue_metrics
from espalier.kube.cache import Cache
from espalier.kube.cluster import Cluster
from espalier.kube.comparison import Comparison, Scope
from espalier.kube.objects import Body, kind_of, last_change, without_managers

logger = logging.getLogger(__name__)

# kopf gives its handlers 2 s, and its other tasks 5 s.
END_SECONDS = 10.0


class InformerError(Exception):
    """The cache could not be made equal to the API server."""


class Connection(Cluster, Protocol):
    """A cluster that can be watched."""

    @property
    def server(self) -> str:
        """URL of the API server."""

    def watch_session(self, *traces: aiohttp.TraceConfig) -> aiohttp.ClientSession:
        """An authenticated session of its own."""


@dataclass(frozen=True)
class InformerSettings:
    """What to watch: namespaces (all when empty); per kind, the labels its objects must carry."""

    namespaces: tuple[str, ...]
    kinds: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    compare_seconds: float = 600.0
    ready_seconds: float = 60.0


async def run(
    settings: InformerSettings,
    cache: Cache,
    stop: asyncio.Event,
    ready: asyncio.Event,
    connection: Connection,
) -> None:
    """Keep ``cache`` equal to the API server until ``stop``; ``ready`` is set once all is synced.

    Raises InformerError if a kind is not synced in time, and whatever error ends kopf: the process
    should then be restarted.
    """
    scopes = [
        Scope(kind, where) for kind in settings.kinds for where in settings.namespaces or [None]
    ]
    comparisons = {s: Comparison(s, settings.kinds[s.kind], cache, connection) for s in scopes}
    parts = [
        stop.wait(),
        _watch(settings, cache, connection, comparisons),
        synced(comparisons, cache, ready, settings.ready_seconds),
        *(comparison.run(settings.compare_seconds) for comparison in comparisons.values()),
    ]
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def synced(
    comparisons: Mapping[Scope, Comparison], cache: Cache, ready: asyncio.Event, seconds: float
) -> None:
    """Set ``ready`` once each scope was compared, then wait until cancelled; else InformerError."""
    try:
        async with asyncio.timeout(seconds):
            for comparison in comparisons.values():
                await comparison.done.wait()
    except TimeoutError:
        missing = sorted(str(scope) for scope, c in comparisons.items() if not c.done.is_set())
        raise InformerError(
            f"not in sync within {seconds:.0f} s: {', '.join(missing)}. Are the CRDs installed, "
            "and may this service account list and watch them?"
        ) from None
    for scope in comparisons:
        cache.mark_synced(scope.kind)
    ready.set()
    await asyncio.Event().wait()


async def _watch(
    settings: InformerSettings,
    cache: Cache,
    connection: Connection,
    comparisons: Mapping[Scope, Comparison],
) -> None:
    """Run kopf in its thread until it fails or this is cancelled; it has then ended."""
    loop = asyncio.get_running_loop()
    root = URL(connection.server).path.rstrip("/")
    by_path = {root + kind_of(s.kind).path(s.namespace): c for s, c in comparisons.items()}

    def on_event(kind: str, type_: str | None, body: Body) -> None:
        _count(kind, type_, body)
        # The comparison takes in what is listed, from a younger list.
        if type_ is not None:
            take = cache.forget if type_ == "DELETED" else cache.put
            loop.call_soon_threadsafe(take, kind, without_managers(body))

    async def on_answer(_: object, __: object, request: aiohttp.TraceRequestEndParams) -> None:
        """The first page of a list has the version that kopf will watch from."""
        comparison = by_path.get(request.url.path)
        first = not {"watch", "continue"} & request.url.query.keys()
        if comparison is not None and first and request.response.ok:
            loop.call_soon_threadsafe(comparison.listed)

    def session() -> aiohttp.ClientSession:
        trace = aiohttp.TraceConfig()
        trace.on_request_end.append(on_answer)
        return connection.watch_session(trace)

    stop = threading.Event()
    operator = kopf.operator(
        registry=handlers.registry(connection.server, session, settings.kinds, on_event),
        settings=kopf.OperatorSettings(),
        standalone=True,
        clusterwide=not settings.namespaces,
        namespaces=settings.namespaces,
        stop_flag=stop,
    )
    thread = asyncio.ensure_future(asyncio.to_thread(asyncio.run, operator))
    try:
        await asyncio.shield(thread)
    finally:
        stop.set()
        _, running = await asyncio.wait({thread}, timeout=END_SECONDS)
        if running:
            logger.warning("kopf did not end within %.0f s", END_SECONDS)


def _count(kind: str, type_: str | None, body: Body) -> None:
    queue_metrics.WATCH_EVENTS.labels(kind=kind, type=type_ or "LISTED").inc()
    # A deletion is no write: the last one may be of long ago.
    if type_ not in (None, "DELETED") and (happened := last_change(body)) is not None:
        age = (datetime.now(UTC) - happened).total_seconds()
        queue_metrics.EVENT_AGE.labels(kind=kind).observe(max(0.0, age))
