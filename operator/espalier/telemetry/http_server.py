"""Spans of the requests that an aiohttp server answers."""

from __future__ import annotations

import re
from collections.abc import Collection
from http import HTTPStatus

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from espalier.telemetry import spans

TRACEPARENT = "traceparent"
X_REQUEST_ID = "X-Request-Id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def request_id(text: str) -> str:
    """A request id that somebody sent; empty if it is none."""
    return text if _REQUEST_ID.fullmatch(text) else ""


def middlewares(*, quiet: Collection[str] = (), only_carried_on: bool = False) -> list[Middleware]:
    """The middleware to put first; none where no spans are recorded.

    Args:
        quiet: paths without spans.
        only_carried_on: whether a request that brings no trace begins none: polls and probes.
    """
    if not spans.recording():
        return []

    @web.middleware
    async def spanned(request: web.Request, handler: Handler) -> web.StreamResponse:
        silent = only_carried_on and TRACEPARENT not in request.headers
        if silent or request.path in quiet:
            return await handler(request)
        method = request.method if request.method in hdrs.METH_ALL else "_OTHER"
        resource = request.match_info.route.resource
        # Not the path: that of a link to weights is worth a token.
        route = resource.canonical if resource is not None else ""
        about: dict[str, str | int] = {"http.request.method": method, "http.route": route}
        if given := request_id(request.headers.get(X_REQUEST_ID, "")):
            about[spans.REQUEST_ID] = given
        name = f"{method} {route}".rstrip()
        with spans.span(name, about, kind="server", caller=request.headers):
            response = await handler(request)
            answered(response.status)
            return response

    return [spanned]


def answered(status: int) -> None:
    """Notes the status of an answer; from 500 it is a failure."""
    spans.note({"http.response.status_code": status})
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        spans.failed(str(status))
