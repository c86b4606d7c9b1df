"""Sends the files of an adapter, for clients that download weights."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from aiohttp import web

from espalier.tinker.commands import ADAPTER_FILES, FILES
from espalier.trainer.engine.engine import Engine
from espalier.trainer.problems import CommandError
from espalier.trainer.volume.manifests import DigestError

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class FileRoutes:
    """Routes over the volume of an engine."""

    def __init__(self, engine: Callable[[], Engine]) -> None:
        self._engine = engine

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Adds the route."""
        router.add_get(f"{FILES}/{{digest}}/{{name}}", self._send)

    async def _send(self, request: web.Request) -> web.StreamResponse:
        """One of PEFT's two files of a checkpoint; nothing else of it leaves the volume."""
        digest, name = request.match_info["digest"], request.match_info["name"]
        if name not in ADAPTER_FILES or not _DIGEST.fullmatch(digest):
            raise web.HTTPNotFound
        store = self._engine().state.store
        try:
            stored = await asyncio.to_thread(store.open, "checkpoint", digest)
        except DigestError as error:
            raise CommandError(404, "CheckpointUnreadable", str(error), "") from error
        return web.FileResponse(stored.path / name)
