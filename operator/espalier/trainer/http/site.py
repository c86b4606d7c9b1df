"""The trainer's port, where requests that are no HTTP are counted among the refusals."""

from __future__ import annotations

import asyncio

from aiohttp import web
from typing_extensions import override

from espalier.malformed_http import HTTP_MALFORMED, handlers
from espalier.trainer import prometheus


class Site(web.BaseSite):
    """Serves a runner at an address."""

    def __init__(self, runner: web.AppRunner, host: str, port: int) -> None:
        super().__init__(runner)
        self._host = host
        self._port = port

    @property
    @override
    def name(self) -> str:
        """Its address as a URL."""
        return f"http://{self._host}:{self._port}"

    @override
    async def start(self) -> None:
        """Accepts from now on."""
        await super().start()
        server = self._runner.server
        assert server is not None, "the runner is set up"
        made = handlers(server, prometheus.REFUSALS.labels(HTTP_MALFORMED).inc)
        self._server = await asyncio.get_running_loop().create_server(
            made, self._host, self._port, backlog=self._backlog
        )
