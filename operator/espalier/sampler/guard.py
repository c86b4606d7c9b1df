"""Guards every route: who may call it, with which body.

vLLM's own ``--api-key`` leaves /invocations, /adapters, /metrics and /tokenize open, and some of
its routes load any path; so only the routes named here exist, and all but the probes need a token.
That for /metrics is Prometheus' own, and opens nothing else.
"""

from __future__ import annotations

import os

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from espalier import identity
from espalier.api.wire.problem import Problem
from espalier.api.wire.rollout_control import KEPT_ROLLOUTS
from espalier.sampler import prometheus, settings

HEALTH = "/healthz"
READY = "/readyz"
SERVE = "/espalier/v1/serve"
PROBES = (HEALTH, READY)
METRICS = "/metrics"
# More than the gateway accepts for a completion (4 MiB), because it writes the JSON again.
MAX_BODY_BYTES = 8 * 2**20
CALLERS: dict[tuple[str, str], tuple[str, ...]] = {
    ("GET", "/v1/models"): ("operator", "gateway"),
    ("POST", "/v1/completions"): ("operator", "gateway"),
    ("POST", "/v1/chat/completions"): ("operator", "gateway"),
    ("GET", KEPT_ROLLOUTS): ("gateway",),
    ("GET", SERVE): ("operator",),
    ("POST", SERVE): ("operator",),
}
ROUTES = frozenset(path for _, path in CALLERS)


class Authentication:
    """ASGI middleware that lets in probes, and callers with a token of this model's audience."""

    def __init__(self, app: ASGIApp, configuration: settings.SamplerSettings | None = None) -> None:
        self._app = app
        self._settings = configuration or settings.SamplerSettings.read(os.environ)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401, 403, 404, 411, 413 or 415."""
        if scope["type"] == "lifespan" or (
            scope["type"] == "http" and scope["method"] == "GET" and scope["path"] in PROBES
        ):
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        refusal = self._refusal(scope)
        if refusal:
            await refusal(scope, receive, send)
            return
        # vLLM would call its own request so, and end all of one name when a client of one is gone.
        scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"x-request-id"]
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        header = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
        keys, route = self._settings.public_keys, (scope["method"], scope["path"])
        try:
            if route == ("GET", METRICS):
                identity.verify_scraper(keys, header)
                return _unfit(Headers(scope=scope), "GET")
            caller = identity.verify(keys, header, self._settings.audience)
        except identity.IdentityError as error:
            return problem_response(
                401,
                Problem(
                    reason="Unauthenticated",
                    detail=str(error),
                    remedy=f"send a token of the operator or gateway for {self._settings.audience}",
                ),
            )
        allowed = CALLERS.get(route)
        if allowed is None:
            return problem_response(
                404,
                Problem(
                    reason="NoSuchRoute",
                    detail=f"{scope['method']} {scope['path']} is not served here",
                    remedy="use " + ", ".join(sorted(ROUTES)),
                ),
            )
        if caller.subject not in allowed:
            return problem_response(
                403,
                Problem(
                    reason="Forbidden",
                    detail=f"{scope['path']} is not for the {caller.subject}",
                    remedy="only the operator controls what a rollout serves",
                ),
            )
        return _unfit(Headers(scope=scope), scope["method"])


def _unfit(headers: Headers, method: str) -> JSONResponse | None:
    """Refuses a body that is compressed, or whose length is not announced and bounded."""
    encoding, length = headers.get("content-encoding", "identity"), headers.get("content-length")
    if encoding.lower() != "identity":
        return problem_response(
            415,
            Problem(
                reason="ContentEncodingNotTaken",
                detail=f"Content-Encoding {encoding[:32]!r} is not taken: no body is inflated here",
                remedy="send the body as it is, without Content-Encoding",
            ),
        )
    if method == "POST" and length is None:
        return problem_response(
            411,
            Problem(
                reason="LengthRequired",
                detail="the body's length is not announced",
                remedy="send Content-Length",
            ),
        )
    # The server has refused a length that is not a number.
    if int(length or 0) > MAX_BODY_BYTES:
        return problem_response(
            413,
            Problem(
                reason="BodyTooLarge",
                detail=f"the body is over {MAX_BODY_BYTES // 2**20} MiB",
                remedy="send less at once: shorter or fewer texts",
            ),
        )
    return None


def problem_response(status: int, problem: Problem) -> JSONResponse:
    """A Problem as an HTTP answer, which is counted."""
    prometheus.REFUSALS.labels(problem.reason).inc()
    return JSONResponse(problem.model_dump(), status_code=status)
