"""The door of the trainer's service: who may call, which bodies are taken, and refusals."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web

from espalier import identity
from espalier.api.wire.problem import Problem
from espalier.trainer import prometheus
from espalier.trainer.http.idle_time import Calls
from espalier.trainer.http.requests import term_of
from espalier.trainer.problems import CommandError

logger = logging.getLogger(__name__)

OPEN_ROUTES = ("/healthz", "/readyz")
OPERATOR_ROUTES = ("/assign", "/commits", "/usage")
METRICS = "/metrics"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_CALLER = web.RequestKey("caller", identity.Caller)


class Door:
    """What every request passes; ``calls`` counts those of others than the operator."""

    def __init__(
        self, keys: identity.TrustedKeys, audience: str, max_body_bytes: int, calls: Calls
    ) -> None:
        self._keys = keys
        self._audience = audience
        self._max_body_bytes = max_body_bytes
        self._calls = calls

    @web.middleware
    async def authenticate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Lets in whom the route is for."""
        if request.path in OPEN_ROUTES:
            return await handler(request)
        header = request.headers.get("Authorization")
        try:
            if request.path == METRICS:
                identity.verify_scraper(self._keys, header)
                return await handler(request)
            caller = identity.verify(self._keys, header, self._audience)
        except identity.IdentityError as error:
            raise CommandError(401, "Unauthenticated", str(error), "go through the gateway") from (
                error
            )
        if request.path in OPERATOR_ROUTES and caller.subject != "operator":
            raise CommandError(
                403,
                "Forbidden",
                f"{request.path} is for the operator",
                "edit the resources instead",
            )
        request[_CALLER] = caller
        if caller.subject == "operator":
            return await handler(request)
        with self._calls.one():
            return await handler(request)

    @web.middleware
    async def answer_problems(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Tells a caller what went wrong, in the form of the wire."""
        try:
            return await handler(request)
        except CommandError as error:
            return _refusal(error.status, error.problem)
        except web.HTTPRequestEntityTooLarge:
            return _refusal(413, self._too_large(request))
        except web.HTTPException as error:
            return _refusal(
                error.status, Problem(reason=error.reason.replace(" ", ""), detail=request.path)
            )
        except Exception as error:
            logger.exception("%s %s failed", request.method, request.path)
            return _refusal(
                500,
                Problem(
                    reason="Internal",
                    detail=f"{type(error).__name__}: {error}; nothing was applied",
                    remedy="see the trainer's log",
                ),
            )

    async def body(self, request: web.Request) -> bytes:
        """The body as it was sent; 413 before reading it if its announced length is too large."""
        encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity")
        if encoding.lower() != "identity":
            raise CommandError(
                415,
                "ContentEncodingNotTaken",
                f"Content-Encoding {encoding[:32]!r} is not taken: no body is inflated here",
                "send the body as it is, without Content-Encoding",
            )
        if (request.content_length or 0) > self._max_body_bytes:
            raise web.HTTPRequestEntityTooLarge(self._max_body_bytes, request.content_length or 0)
        return await request.read()

    def _too_large(self, request: web.Request) -> Problem:
        return Problem(
            reason="BodyTooLarge",
            detail=f"body: {request.content_length or 'more'} bytes exceed the limit of "
            f"{self._max_body_bytes}; nothing was applied",
            remedy="send the batch as several calls of whole groups, whose gradients add exactly, "
            "or raise ESPALIER_MAX_BODY_BYTES of the trainer",
        )


def named_term(request: web.Request) -> int | None:
    """The term that a request names, or its token; None for any."""
    named = term_of(request)
    return (request[_CALLER].term or None) if named is None else named


def _refusal(status: int, problem: Problem) -> web.Response:
    prometheus.REFUSALS.labels(problem.reason).inc()
    return answer_problem(status, problem)


def answer_problem(status: int, problem: Problem) -> web.Response:
    """A problem as an answer."""
    headers = {"Retry-After": "2"} if status in (503, 507) else {}
    return web.Response(
        status=status,
        text=problem.model_dump_json(),
        content_type="application/json",
        headers=headers,
    )
