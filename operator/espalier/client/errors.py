"""What can go wrong at the gateway, as exceptions."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from espalier.api.wire.problem import Problem

# vLLM's words, and all that its answer says of the cause.
TOO_LONG = "maximum context length"


class GatewayError(Exception):
    """Base of everything that the client raises about the gateway."""


class DeadlineError(GatewayError):
    """The call was retried until its deadline. ``reason`` names what it waited for last."""

    def __init__(self, call: str, seconds: float, reason: str, detail: str) -> None:
        super().__init__(f"{call} gave up after {seconds:.0f} s, last reason {reason}: {detail}")
        self.reason = reason
        self.detail = detail


class MalformedAnswerError(GatewayError):
    """The gateway answered 200 with something that is not the agreed type."""


class ConfigurationError(GatewayError):
    """The client was not told where the gateway is, or who asks."""


class CallPendingError(GatewayError, TimeoutError):
    """A call has no result yet; it goes on, and ``result`` may be asked for again."""

    def __init__(self, key: str, seconds: float, reason: str) -> None:
        waits = f", it waits for {reason}" if reason else ""
        super().__init__(
            f"call {key} has no result after {seconds:.0f} s{waits}: it goes on, ask for it again"
        )


class EarlierCallFailedError(GatewayError):
    """The call was not sent: one submitted before it failed, which is this error's cause."""

    def __init__(self, key: str) -> None:
        super().__init__(
            f"not sent, because call {key} before it failed (the cause of this error): "
            "mend that one, then submit this again"
        )
        self.key = key


class UntrainableError(GatewayError):
    """A rollout that cannot be trained on; the message says which and why."""


class RefusedError(GatewayError):
    """The gateway or the trainer refused the call; ``problem`` says why."""

    def __init__(self, status: int, problem: Problem) -> None:
        super().__init__(f"{status} {problem.reason}: {problem.text}")
        self.status = status
        self.problem = problem


class InvalidRequestError(RefusedError):
    """400, 413, 415 or 422: the request itself is wrong; sending it again cannot help."""

    @property
    def is_too_long(self) -> bool:
        """Whether prompt and completion exceed the model's context."""
        return TOO_LONG in self.problem.detail


class UnauthorizedError(RefusedError):
    """401: no valid token."""


class ForbiddenError(RefusedError):
    """403: the token's user may not do this."""


class NotFoundError(RefusedError):
    """404: no such model, checkpoint or run; the remedy names the nearest."""


class StaleTermError(RefusedError):
    """409: the head moved; what was sampled or accumulated under the old term is void."""


class HeadPinnedError(RefusedError):
    """409: the head is pinned and holds training."""


class LogprobsMisalignedError(RefusedError):
    """409: the run is held because trainer and sampler disagree (``logprobs.onMisaligned``)."""


class NoActiveRunError(RefusedError):
    """409: no TrainingRun trains the model now."""


class NoGradientsError(RefusedError):
    """409: an optimizer step without accumulated gradients."""


class GradientsLostError(RefusedError):
    """409: the trainer started again and could not restore what was accumulated; zero_grad."""


class KeyReusedError(RefusedError):
    """422: the idempotency key was used with another body."""


class CutOffError(RefusedError):
    """504: the answer of a completion was cut off several times while it was being computed."""


_BY_REASON: dict[str, type[RefusedError]] = {
    "StaleTerm": StaleTermError,
    "HeadPinned": HeadPinnedError,
    "LogprobsMisaligned": LogprobsMisalignedError,
    "NoActiveRun": NoActiveRunError,
    "NoGradients": NoGradientsError,
    "GradientsLost": GradientsLostError,
    "KeyReused": KeyReusedError,
}
_BY_STATUS: dict[int, type[RefusedError]] = {
    400: InvalidRequestError,
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    413: InvalidRequestError,
    415: InvalidRequestError,
    422: InvalidRequestError,
}


def refusal(status: int, body: bytes) -> RefusedError:
    """The exception for an error answer: by its reason, else by its status."""
    problem = read_problem(status, body)
    kind = _BY_REASON.get(problem.reason) or _BY_STATUS.get(status, RefusedError)
    return kind(status, problem)


def read_problem(status: int, body: bytes) -> Problem:
    """A ``Problem`` from its own form, from OpenAI's error form, or from the status alone."""
    try:
        content = from_json(body)
        if isinstance(content, dict) and isinstance(content.get("error"), dict):
            return _from_openai(status, content["error"])
        return Problem.model_validate(content)
    except (ValueError, ValidationError):
        text = body[:300].decode(errors="replace").strip()
        return Problem(detail=text or "the answer has no body", reason=f"Http{status}")


def _from_openai(status: int, error: dict[str, Any]) -> Problem:
    code = error.get("code")
    # The gateway gives a reason; vLLM repeats the status, and its message names the field.
    refused = "InvalidRequest" if status in (400, 422) else f"Http{status}"
    reason = code if isinstance(code, str) and code else refused
    return Problem(detail=str(error.get("message", "")), reason=reason)
