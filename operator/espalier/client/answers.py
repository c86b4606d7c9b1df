"""What the gateway answers its client, and how it is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from espalier.api.trainingrun import TrainingRunSpec
from espalier.api.wire.gradients import ForwardBackwardResult, ForwardResult
from espalier.api.wire.headers import PROMOTED_AFTER, PROMOTION
from espalier.api.wire.step import OptimStepResult
from espalier.api.wire.trainer import TrainerState
from espalier.client.errors import MalformedAnswerError
from espalier.client.json_http import Answer

_Model = TypeVar("_Model", bound=BaseModel)


class RunView(BaseModel):
    """A TrainingRun as the gateway shows it to who drives it. ``over``: it takes no more steps."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    uid: str
    model: str
    spec: TrainingRunSpec
    term: int
    suspended: bool
    paused: bool
    # A gateway of the version before, which an upgrade may leave for a while, does not say it.
    over: bool = False


class CommittedStep(OptimStepResult):
    """A committed optimizer step. ``promotion`` is Served, Pinned, Gated or Timeout.

    ``promotion_seconds``: how long the gateway waited for that, after the checkpoint was durable.
    """

    promotion: str = ""
    promotion_seconds: float = 0.0


class CheckpointResponse(BaseModel):
    """A checkpoint in HUD's form; ``is_active`` marks the one that the head serves."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    name: str | None = None
    checkpoint_name: str | None = None
    prev_model_checkpoint_id: str | None = None
    is_active: bool = False
    created_at: str | None = None
    num_traces: int | None = None
    num_datums: int | None = None
    num_tokens: int | None = None
    mean_reward: float | None = None
    learning_rate: float | None = None
    loss_fn: str | None = None
    metrics: dict[str, float] = Field(default_factory=dict)


CHECKPOINTS = TypeAdapter(list[CheckpointResponse])


def read_model(body: bytes, kind: type[_Model]) -> _Model:
    """An answer's body; MalformedAnswerError if it is no such model."""
    try:
        content: Any = from_json(body)
        return kind.model_validate(content)
    except (ValueError, ValidationError) as error:
        raise MalformedAnswerError(f"the answer is not a {kind.__name__}: {error}") from error


def _reader(kind: type[_Model]) -> Callable[[Answer], _Model]:
    return lambda answer: read_model(answer.body, kind)


def _step(answer: Answer) -> CommittedStep:
    result = read_model(answer.body, OptimStepResult)
    return CommittedStep(
        **result.model_dump(),
        promotion=answer.headers.get(PROMOTION, ""),
        promotion_seconds=_seconds(answer.headers.get(PROMOTED_AFTER, "0")),
    )


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise MalformedAnswerError(f"{PROMOTED_AFTER} is {text!r}, no number") from error


# What the commands answer.
FORWARD_BACKWARD = _reader(ForwardBackwardResult)
FORWARD = _reader(ForwardResult)
STATE = _reader(TrainerState)
STEP = _step
