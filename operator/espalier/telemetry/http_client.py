"""Spans of the requests that an aiohttp client sends, and the trace in their headers."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

import aiohttp

from espalier.telemetry import spans


def middlewares() -> Sequence[aiohttp.ClientMiddlewareType]:
    """For a session; none where no spans are recorded.

    A request outside of a trace has no span. A span ends with the head of the answer.
    """
    return (_spanned,) if spans.recording() else ()


async def _spanned(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    url = request.url
    about: dict[str, str | int] = {
        "http.request.method": request.method,
        "server.address": url.host or "",
        "server.port": url.port or 0,
        "url.path": url.path,
    }
    with spans.part(request.method, about, kind="client"):
        spans.carry_on(request.headers)
        response = await handler(request)
        spans.note({"http.response.status_code": response.status})
        if response.status >= HTTPStatus.BAD_REQUEST:
            spans.failed(str(response.status))
        return response
