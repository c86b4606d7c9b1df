"""Keeps a Cache equal to the API server: kopf watches, comparisons find the deletes it missed.

kopf runs in a thread with an event loop of its own, as its documentation advises: when it ends, it
cancels every task of its loop, and in the main thread it takes the signals. What it asks in vain it
asks again without end, so that the namespaces that are there are served while one is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

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
    """Run kopf in its thread until it fails or this is cancelled; it has ended, or is left."""
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
    watching = _Thread(
        registry=handlers.registry(connection.server, session, settings.kinds, on_event),
        settings=kopf.OperatorSettings(),
        standalone=True,
        clusterwide=not settings.namespaces,
        namespaces=settings.namespaces,
        stop_flag=stop,
    )
    watching.start()
    try:
        await watching.failed
    finally:
        stop.set()
        try:
            async with asyncio.timeout(END_SECONDS):
                await watching.over.wait()
        except TimeoutError:
            logger.warning("kopf did not end within %.0f s", END_SECONDS)


class _Thread(threading.Thread):
    """kopf in a loop of its own; a daemon, so that the process ends also where kopf does not.

    ``failed`` gets the error of the first of kopf's tasks that ends; ``over`` is set once all have
    ended. The first is not enough to end kopf 1.45: it cancels the other tasks and waits for them,
    but a watch may mistake its cancellation for that of a task it waits for, and begins anew.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(name="kopf", daemon=True)
        self._arguments = arguments
        self._loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[None] = self._loop.create_future()
        self.over = asyncio.Event()

    def run(self) -> None:
        """Watch until the stop flag is set, or a task has failed and the others have ended."""
        try:
            asyncio.run(self._operate())
        except Exception as error:
            self._tell(self._fail, error)
        finally:
            self._tell(self.over.set)

    async def _operate(self) -> None:
        tasks = await kopf.spawn_tasks(**self._arguments)
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if not task.cancelled():
                self._tell(self._fail, task.exception() or InformerError("kopf has ended"))
        await kopf.run_tasks(tasks)

    def _fail(self, error: BaseException) -> None:
        if not self.failed.done():
            self.failed.set_exception(error)

    def _tell(self, what: Callable[..., object], *arguments: object) -> None:
        # A process that ends does not wait for kopf, and has no loop any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(what, *arguments)


def _count(kind: str, type_: str | None, body: Body) -> None:
    queue_metrics.WATCH_EVENTS.labels(kind=kind, type=type_ or "LISTED").inc()
    # A deletion is no write: the last one may be of long ago.
    if type_ not in (None, "DELETED") and (happened := last_change(body)) is not None:
        age = (datetime.now(UTC) - happened).total_seconds()
        queue_metrics.EVENT_AGE.labels(kind=kind).observe(max(0.0, age))
