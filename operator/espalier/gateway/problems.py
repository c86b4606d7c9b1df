"""Refusals: one type inside the gateway, two forms on the wire.

Completion routes answer as OpenAI's API does, so that its SDKs raise the right class; train and
run routes answer with ``wire.Problem``, whose ``detail`` HUD's client shows.
"""

from __future__ import annotations

from aiohttp import web

from espalier.api.wire.problem import Problem
from espalier.gateway import prometheus
from espalier.untrusted import UnreadableError, read_model

RETRY_AFTER_SECONDS = 2
# The status of a request whose client went away.
CLIENT_GONE = 499

# OpenAI's error types, by status.
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}


class RefusalError(Exception):
    """A request that the gateway itself answers with an error.

    Args:
        status: HTTP status, 400 or above.
        reason: CamelCase word for programs.
        detail: what is wrong, for people.
        remedy: what to do about it; may be empty.
        retry_after: seconds for ``Retry-After``, None to send no such header.
        from_pod: a pod may have chosen the reason.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        detail: str,
        remedy: str = "",
        *,
        retry_after: int | None = None,
        from_pod: bool = False,
    ) -> None:
        super().__init__(f"{reason}: {detail}")
        self.status = status
        self.reason = reason
        self.detail = detail
        self.remedy = remedy
        self.retry_after = retry_after
        self.from_pod = from_pod
        self.is_counted = False

    @property
    def problem(self) -> Problem:
        """The refusal as it is sent."""
        return Problem(detail=self.detail, reason=self.reason, remedy=self.remedy)

    @property
    def message(self) -> str:
        """Cause and remedy as one text."""
        return self.problem.text


def not_ready(
    reason: str, detail: str, remedy: str = "", *, from_pod: bool = False
) -> RefusalError:
    """503 with Retry-After: the request may be sent again as it is."""
    wait = RETRY_AFTER_SECONDS
    return RefusalError(503, reason, detail, remedy, retry_after=wait, from_pod=from_pod)


# What a caller may do about a quota of its own.
RAISE_QUOTAS = "Send less at once or later, or have gateway.quotas of the chart raised"


def over(
    reason: str, detail: str, remedy: str, *, retry_after: int = RETRY_AFTER_SECONDS
) -> RefusalError:
    """429 of a caller who takes more than its share; counted, whatever becomes of it."""
    return counted(RefusalError(429, reason, detail, remedy, retry_after=retry_after))


def counted(refusal: RefusalError) -> RefusalError:
    """The refusal, which counts once."""
    if not refusal.is_counted:
        refusal.is_counted = True
        reason = refusal.reason
        if refusal.from_pod:
            reason = prometheus.POD_REASONS.label(reason)
        prometheus.REFUSED.labels(reason).inc()
    return refusal


def openai_body(refusal: RefusalError) -> dict[str, object]:
    """``{"error": {"message", "type", "param", "code"}}``."""
    return {
        "error": {
            "message": refusal.message,
            "type": _TYPES.get(refusal.status, "api_error"),
            "param": None,
            "code": refusal.reason,
        }
    }


def with_remedy(body: bytes) -> bytes:
    """A ``wire.Problem`` whose detail ends in its remedy; any other body as it is."""
    try:
        problem = read_model(Problem, body)
    except UnreadableError:
        return body
    if not problem.remedy:
        return body
    return problem.model_copy(update={"detail": problem.text}).model_dump_json().encode()


def respond(refusal: RefusalError, *, openai: bool) -> web.Response:
    """The refusal as a response in the form of its route."""
    headers = {}
    if refusal.retry_after is not None:
        headers["Retry-After"] = str(refusal.retry_after)
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if openai:
        return web.json_response(openai_body(refusal), status=refusal.status, headers=headers)
    return web.json_response(refusal.problem.model_dump(), status=refusal.status, headers=headers)
