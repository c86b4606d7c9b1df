"""Counts what aiohttp's parser refuses as no HTTP: no middleware sees that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from aiohttp import web

# The reason that it is counted by.
HTTP_MALFORMED = "HttpMalformed"


class _Handler(web.RequestHandler):
    """aiohttp's handler of a connection, which calls ``count`` for each such request."""

    __slots__ = ("_count",)

    def __init__(self, server: web.Server, count: Callable[[], object], **options: Any) -> None:
        super().__init__(server, **options)
        self._count = count

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            self._count()
        return super().handle_error(request, status, exc, message)


def handlers(server: web.Server, count: Callable[[], object]) -> Callable[[], web.RequestHandler]:
    """Makes the handler of each new connection, as the server of a runner makes its own."""
    loop = asyncio.get_running_loop()
    return lambda: _Handler(server, count, loop=loop, **server._kwargs)
