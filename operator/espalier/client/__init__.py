"""The Python client of the gateway: sample a model, train it, read a run."""

from espalier.client.completion import Completion
from espalier.client.errors import (
    DeadlineError,
    ForbiddenError,
    GatewayError,
    HeadPinnedError,
    InvalidRequestError,
    KeyReusedError,
    MalformedAnswerError,
    NoActiveRunError,
    NoGradientsError,
    NotFoundError,
    RefusedError,
    StaleEpochError,
    UnauthorizedError,
)
from espalier.client.training import Committed, RunView, TrainingClient
from espalier.client.transport import Patience, Token

__all__ = [
    "Committed",
    "Completion",
    "DeadlineError",
    "ForbiddenError",
    "GatewayError",
    "HeadPinnedError",
    "InvalidRequestError",
    "KeyReusedError",
    "MalformedAnswerError",
    "NoActiveRunError",
    "NoGradientsError",
    "NotFoundError",
    "Patience",
    "RefusedError",
    "RunView",
    "StaleEpochError",
    "Token",
    "TrainingClient",
    "UnauthorizedError",
]
