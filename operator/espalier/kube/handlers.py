"""The handlers of kopf: how it starts, how it logs in, and where its events go.

``on.event`` alone is used, which writes nothing to any object: no finalizer and no annotation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain, repeat
from typing import Any

import aiohttp
import kopf

from espalier.kube.objects import Body, kind_of, label_selector

# Takes a kind, an event's type (ADDED, MODIFIED or DELETED; None of a listed object), the object.
OnEvent = Callable[[str, str | None, Body], None]
# Seconds between the attempts of a request that is refused or fails; the last one for ever.
RETRY_SECONDS = (1, 1, 2, 3, 5, 8, 13)


class _WithoutEnd:
    """Waits that never run out. kopf's own do, and then kopf ends.

    So the other namespaces are served on while one of them is gone, and all are again once an API
    server that answered with errors has recovered.
    """

    def __iter__(self) -> Iterator[float]:
        return chain(RETRY_SECONDS, repeat(RETRY_SECONDS[-1]))


class _NoDiffBase(kopf.DiffBaseStorage):  # type: ignore[misc]
    """Builds no diff base: only handlers of changes need it, and it takes a third of the time."""

    def build(self, **_: Any) -> Body:
        return {}

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        pass


def registry(
    server: str,
    session: Callable[[], aiohttp.ClientSession],
    kinds: Mapping[str, Mapping[str, str]],
    on_event: OnEvent,
) -> Any:
    """The handlers; ``kinds`` has the labels that the objects of each kind must carry."""
    handlers = kopf.OperatorRegistry()

    @kopf.on.startup(registry=handlers)  # type: ignore[untyped-decorator]
    async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.persistence.diffbase_storage = _NoDiffBase()
        settings.posting.enabled = False
        settings.scanning.disabled = True
        settings.queueing.idle_timeout = 0.1
        settings.networking.connect_timeout = settings.watching.connect_timeout = 10
        settings.networking.request_timeout = 30
        settings.networking.error_backoffs = _WithoutEnd()
        settings.watching.server_timeout = 300
        settings.watching.client_timeout = 330
        settings.watching.chunk_size = 500
        # Kubernetes ends a pod that hangs. kopf's timeout would interrupt our own shutdown.
        settings.process.ultimate_exiting_timeout = None
        for kind, labels in ((kind_of(name), labels) for name, labels in kinds.items()):
            if labels:
                selector = (kind.group, kind.version, kind.plural)
                settings.watching.label_selectors[selector] = label_selector(labels)

    @kopf.on.login(registry=handlers)  # type: ignore[untyped-decorator]
    async def login(**_: Any) -> kopf.AiohttpSession:
        return kopf.AiohttpSession(server=server, aiohttp_session=session())

    async def take(event: Any, param: str, **_: Any) -> None:
        on_event(param, event["type"], event["object"])

    for name in kinds:
        kind = kind_of(name)
        where = {"group": kind.group, "version": kind.version, "plural": kind.plural}
        kopf.on.event(**where, id=name, param=name, registry=handlers)(take)
    return handlers
