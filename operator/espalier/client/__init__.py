"""The Python client of the gateway: sample a model, train it, read a run."""

from espalier.api.objective import Correction, Kl, Objective
from espalier.api.wire.declared import RateSchedule
from espalier.api.wire.gradients import (
    BackwardRequest,
    DatumTensors,
    ForwardBackwardRequest,
    ForwardBackwardResult,
    ForwardRequest,
    ForwardResult,
)
from espalier.api.wire.step import OptimStepRequest, OptimStepResult
from espalier.api.wire.trajectory import TrajectoryPayload, TrajectorySample
from espalier.client.answers import CheckpointResponse, CommittedStep, RunView
from espalier.client.call import Call, Progress
from espalier.client.completion import Completion
from espalier.client.errors import (
    CallPendingError,
    ConfigurationError,
    CutOffError,
    DeadlineError,
    EarlierCallFailedError,
    ForbiddenError,
    GatewayError,
    GradientsLostError,
    HeadPinnedError,
    InvalidRequestError,
    KeyReusedError,
    LogprobsMisalignedError,
    MalformedAnswerError,
    NoActiveRunError,
    NoGradientsError,
    NotFoundError,
    RefusedError,
    StaleTermError,
    UnauthorizedError,
    UntrainableError,
)
from espalier.client.gateway import GatewayClient
from espalier.client.json_http import Patience, Token
from espalier.client.rollout import Rollout
from espalier.client.sampling import Sampling
from espalier.client.ticket import Ticket
from espalier.client.training_client import BuiltinLoss, TrainingClient

__all__ = [
    "BackwardRequest",
    "BuiltinLoss",
    "Call",
    "CallPendingError",
    "CheckpointResponse",
    "CommittedStep",
    "Completion",
    "ConfigurationError",
    "Correction",
    "CutOffError",
    "DatumTensors",
    "DeadlineError",
    "EarlierCallFailedError",
    "ForbiddenError",
    "ForwardBackwardRequest",
    "ForwardBackwardResult",
    "ForwardRequest",
    "ForwardResult",
    "GatewayClient",
    "GatewayError",
    "GradientsLostError",
    "HeadPinnedError",
    "InvalidRequestError",
    "KeyReusedError",
    "Kl",
    "LogprobsMisalignedError",
    "MalformedAnswerError",
    "NoActiveRunError",
    "NoGradientsError",
    "NotFoundError",
    "Objective",
    "OptimStepRequest",
    "OptimStepResult",
    "Patience",
    "Progress",
    "RateSchedule",
    "RefusedError",
    "Rollout",
    "RunView",
    "Sampling",
    "StaleTermError",
    "Ticket",
    "Token",
    "TrainingClient",
    "TrajectoryPayload",
    "TrajectorySample",
    "UnauthorizedError",
    "UntrainableError",
]
