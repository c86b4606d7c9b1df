"""Checks every request before anything is parsed: plain headers and a bounded body.

Pods and users are hostile. 61 KB of gzip were a gigabyte once inflated, so nothing is inflated but
one body of Tinker's client, within a limit; a body has the limit of its route, announced or not;
and a header is text that can be passed on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web

from espalier.api.wire.headers import IDEMPOTENCY_KEY, TERM
from espalier.core.idempotency import read_key, read_term
from espalier.gateway.access.byte_budget import ByteBudget, Hold
from espalier.gateway.problems import RefusalError

MAX_COMPLETION_BYTES = 4 * 2**20
MAX_REPORT_BYTES = 2**20
MAX_SMALL_BYTES = 64 * 2**10

# Tinker's client compresses the one body that carries tensors; it is inflated within a limit.
TENSORS, ZSTD = "/api/v1/forward_backward", "zstd"
MAX_TENSORS_BYTES = 32 * 2**20
MAX_INFLATED_BYTES = 64 * 2**20
MAX_SAMPLE_BYTES = 4 * 2**20
# A future of a sample carries its prompt; those of others are shorter.
MAX_FUTURE_BYTES, MAX_OTHER_FUTURE_BYTES = 6 * 2**20, 2**18
API_KEY = "X-API-Key"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_CREDENTIALS = (hdrs.AUTHORIZATION, API_KEY)
# Headers that are read or passed on. A request that repeats one of them is ambiguous.
_READ = (
    *_CREDENTIALS,
    hdrs.CONTENT_TYPE,
    hdrs.CONTENT_ENCODING,
    IDEMPOTENCY_KEY,
    TERM,
    "Trace-Id",
    "X-Request-Id",
)
# Passed on as they come or dropped unread, so that their length costs no memory here. A trainer has
# a limit of its own (ESPALIER_MAX_BODY_BYTES).
_UNREAD = ("/train/", "/v3/")

BODY_LIMIT: web.RequestKey[int] = web.RequestKey("body_limit", int)
HELD: web.RequestKey[Hold] = web.RequestKey("held", Hold)
# Bytes of bodies that one caller may hold.
MOST_OF_ONE: web.RequestKey[int] = web.RequestKey("most_of_one", int)


class Admission:
    """The middleware.

    Args:
        bodies: the budget for the bodies of requests.
        percent: of it that one caller may hold.
    """

    def __init__(self, bodies: ByteBudget, percent: int = 100) -> None:
        self._bodies = bodies
        self._most_of_one = bodies.capacity * percent // 100

    @web.middleware
    async def admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuses a request that breaks a limit, and in the end gives back the bytes it took."""
        _check_headers(request)
        _check_length(request)
        hold = request[HELD] = self._bodies.hold()
        request[MOST_OF_ONE] = self._most_of_one
        try:
            return await handler(request)
        finally:
            hold.release()


def too_large(limit: int) -> RefusalError:
    """413 with the limit."""
    size = f"{limit // 2**20} MiB" if limit >= 2**20 else f"{limit // 2**10} KiB"
    return RefusalError(
        413, "BodyTooLarge", f"the body is over {size}", "Send less at once: shorter or fewer texts"
    )


def _check_headers(request: web.Request) -> None:
    for name in _READ:
        values = request.headers.getall(name, ())
        if len(values) > 1:
            raise _malformed(name, "comes more than once", "Send it once")
        if values and not (values[0].isascii() and values[0].isprintable()):
            if name in _CREDENTIALS:
                raise RefusalError(
                    401,
                    "TokenMalformed",
                    f"{name} holds characters that no token and no key has",
                    f"Send Authorization: Bearer <token>, or {API_KEY}: <key>",
                )
            raise _malformed(name, "is not printable ASCII", "Send it without these characters")
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity").strip().lower()
    inflates = request.path.endswith(TENSORS) and encoding == ZSTD
    if encoding != "identity" and not inflates:
        raise RefusalError(
            415,
            "ContentEncodingNotTaken",
            f"Content-Encoding {encoding[:32]} is not taken: no body is inflated here",
            "Send the body as it is, without Content-Encoding",
        )
    key, term = request.headers.get(IDEMPOTENCY_KEY), request.headers.get(TERM)
    if key is not None and read_key(key) is None:
        raise _malformed(
            IDEMPOTENCY_KEY,
            "is not <session>/<seq> with a seq below 2^63",
            "Send one such as 4f1c/12",
        )
    if term is not None and read_term(term) is None:
        raise _malformed(TERM, "is not a number below 2^63", "Send the term of the head")


def _check_length(request: web.Request) -> None:
    resource = request.match_info.route.resource
    limit_body(request, _limit(resource.canonical if resource is not None else ""))


def limit_body(request: web.Request, limit: int) -> None:
    """Lets so many bytes of the body be read, 0: none; 413 if more are announced."""
    request[BODY_LIMIT] = limit
    if limit and (request.content_length or 0) > limit:
        raise too_large(limit)


def _limit(route: str) -> int:
    """Bytes that may be read of a body on a route; 0 where none is read."""
    if any(part in route for part in _UNREAD):
        return 0
    if route.endswith("/completions"):
        return MAX_COMPLETION_BYTES
    if "/api/v1/" in route:
        return _OF_TINKER.get(route.rpartition("/")[2], MAX_SMALL_BYTES)
    return MAX_REPORT_BYTES if route.startswith("/v2/trace/") else MAX_SMALL_BYTES


_OF_TINKER = {
    "forward_backward": MAX_TENSORS_BYTES,
    "asample": MAX_SAMPLE_BYTES,
    "retrieve_future": MAX_FUTURE_BYTES,
    "telemetry": MAX_REPORT_BYTES,
}


def _malformed(header: str, problem: str, remedy: str) -> RefusalError:
    return RefusalError(400, "HeaderMalformed", f"{header} {problem}", remedy)
