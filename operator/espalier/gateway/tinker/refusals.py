"""Refusals as Tinker's client takes them.

It sends a request again for minutes at 409 and 5xx, polls without a pause at a 5xx of a future, and
raises any other 4xx at once. So what passes is a 429, which it backs off from, and what does not
pass is never a 409. It shows ``detail``.

What somebody holds until they let it go is a 402: at that the client logs the detail and sends the
same command again every 5 s, for as long as client/config says, so its numbers have no gap.
"""

from __future__ import annotations

from http import HTTPStatus

from aiohttp import web

from espalier.gateway.problems import RETRY_AFTER_SECONDS, RefusalError

# Reasons of a 409 that ends by somebody's edit.
HELD = frozenset({"HeadPinned", "LogprobsMisaligned", "RunSuspended"})
PREFIXES = ("/api/v1/", "/tinker/api/v1/")


def is_tinker(path: str) -> bool:
    """Whether a path is of Tinker's API."""
    return path.startswith(PREFIXES)


def passes(refusal: RefusalError) -> bool:
    """Whether the same request may be taken later."""
    return (
        refusal.reason in HELD
        or refusal.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        or refusal.status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.REQUEST_TIMEOUT)
    )


def respond(refusal: RefusalError) -> web.Response:
    """The refusal as a response of Tinker's API."""
    status, headers = refusal.status, {}
    detail = refusal.message
    if refusal.reason in HELD:
        status = HTTPStatus.PAYMENT_REQUIRED
        detail = f"training is held, and goes on when that ends (this is no bill): {detail}"
    elif status >= HTTPStatus.INTERNAL_SERVER_ERROR or refusal.retry_after is not None:
        status = HTTPStatus.TOO_MANY_REQUESTS
        headers["Retry-After"] = str(refusal.retry_after or RETRY_AFTER_SECONDS)
    elif status == HTTPStatus.CONFLICT:
        status = HTTPStatus.UNPROCESSABLE_ENTITY
    body = {"detail": detail, "reason": refusal.reason, "remedy": refusal.remedy}
    return web.json_response(body, status=status, headers=headers)


def unknown(what: str, text: str) -> RefusalError:
    """404 for an id or a path that names nothing."""
    return RefusalError(
        404,
        "NotFound",
        f"{what} {text[:200]!r} names nothing here",
        "Use one that this gateway has given, or create it anew",
    )
