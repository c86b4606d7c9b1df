"""Spans of the requests that an ASGI application answers, for traces that callers bring."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from espalier.telemetry import spans
from espalier.telemetry.http_server import TRACEPARENT, X_REQUEST_ID, answered, request_id

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


async def spanned(
    app: Application, scope: Scope, receive: Receive, send: Send, routes: Collection[str]
) -> None:
    """Answers a request in a span of its caller's trace, and has its headers name that span.

    ``routes``: the paths with spans.
    """
    if not spans.recording() or scope["path"] not in routes:
        await app(scope, receive, send)
        return
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    if TRACEPARENT not in headers:
        await app(scope, receive, send)
        return

    async def noted(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answered(message["status"])
        await send(message)

    method, path = scope["method"], scope["path"]
    about: dict[str, str | int] = {"http.request.method": method, "http.route": path}
    if given := request_id(headers.get(X_REQUEST_ID.lower(), "")):
        about[spans.REQUEST_ID] = given
    with spans.span(f"{method} {path}", about, kind="server", caller=headers):
        here: dict[str, str] = {}
        spans.carry_on(here)
        others = [pair for pair in scope["headers"] if pair[0].decode("latin-1") not in here]
        named = [(name.encode(), value.encode()) for name, value in here.items()]
        scope["headers"] = others + named
        await app(scope, receive, noted)
