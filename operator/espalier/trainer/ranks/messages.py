"""What rank 0 asks of a rank, and what it answers: JSON, validated, never pickled."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from espalier.api.wire import OptimStepRequest, Problem
from espalier.trainer.batch.data import Datum
from espalier.trainer.batch.losses import LossSpec
from espalier.trainer.batch.step_metrics import Tally
from espalier.trainer.memory.planner import Cut
from espalier.trainer.policy.sharding import OtherRankFailedError
from espalier.trainer.problems import CommandError


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Score(_Message):
    """Log-probs of a share."""

    call: Literal["score"] = "score"
    data: tuple[Datum, ...]
    cut: Cut
    keep: str


class AddLoss(_Message):
    """The gradient of a built-in loss over a share."""

    call: Literal["add_loss"] = "add_loss"
    data: tuple[Datum, ...]
    cut: Cut
    spec: LossSpec
    group_size: int | None


class AddWeights(_Message):
    """The gradient of a client's loss over a share."""

    call: Literal["add_weights"] = "add_weights"
    data: tuple[Datum, ...]
    cut: Cut
    weights: tuple[tuple[float, ...], ...]
    given: dict[str, float]
    group_size: int | None
    forward: str


class Drop(_Message):
    """Forget the accumulated gradients."""

    call: Literal["drop"] = "drop"


class Reduce(_Message):
    """Join the sum of all ranks' gradients; answers the digest of the weights if asked."""

    call: Literal["reduce"] = "reduce"
    digest: bool


class Install(_Message):
    """Take rank 0's weights."""

    call: Literal["install"] = "install"


class Propose(_Message):
    """Make this rank's part of an optimizer step, and hold it."""

    call: Literal["propose"] = "propose"
    values: OptimStepRequest


class Give(_Message):
    """Give rank 0 this rank's part of the proposed weights and moments, tensor by tensor."""

    call: Literal["give"] = "give"


class Adopt(_Message):
    """Take the part that was proposed."""

    call: Literal["adopt"] = "adopt"


class Load(_Message):
    """Read this rank's part of a checkpoint, as ``Compute.load``."""

    call: Literal["load"] = "load"
    checkpoint: str
    moments: int | None


class Reset(_Message):
    """Go back to the part of the base."""

    call: Literal["reset"] = "reset"


Request = (
    Score | AddLoss | AddWeights | Drop | Reduce | Install | Propose | Give | Adopt | Load | Reset
)


class Asked(_Message):
    """A request under its number."""

    seq: int
    request: Annotated[Request, Field(discriminator="call")]


class Failure(_Message):
    """Why a request failed: a command's error, or (status 500) another of class ``kind``."""

    status: int
    problem: Problem
    kind: str

    def error(self, rank: int) -> Exception:
        """The error as rank 0 raises it."""
        if self.kind == CommandError.__name__:
            return CommandError(
                self.status, self.problem.reason, self.problem.detail, self.problem.remedy
            )
        text = f"rank {rank}: {self.kind}: {self.problem.detail}"
        if self.kind == OtherRankFailedError.__name__:
            return OtherRankFailedError(text)
        if self.kind == torch.OutOfMemoryError.__name__:
            return torch.OutOfMemoryError(text)
        return RuntimeError(text)


class Answered(_Message):
    """A request's outcome under its number; ``cut`` is how the tally's share was cut."""

    seq: int
    logprobs: list[list[float]] | None = None
    tally: Tally | None = None
    cut: Cut | None = None
    digest: str = ""
    failure: Failure | None = None


def failure(error: Exception) -> Failure:
    """An error as it travels."""
    kind = type(error).__name__
    if isinstance(error, CommandError):
        return Failure(status=error.status, problem=error.problem, kind=kind)
    return Failure(status=500, problem=Problem(reason="Internal", detail=str(error)), kind=kind)


def encode(message: Asked | Answered) -> bytes:
    """JSON with every float exact; NaN and infinities are kept."""
    return json.dumps(message.model_dump(), default=_mapping).encode()


def read_asked(frame: bytes) -> Asked:
    """Raises ValidationError for anything else."""
    return _ASKED.validate_python(json.loads(frame))


def read_answered(frame: bytes) -> Answered:
    """Raises ValidationError for anything else."""
    return _ANSWERED.validate_python(json.loads(frame))


_ASKED = TypeAdapter(Asked)
_ANSWERED = TypeAdapter(Answered)


def _mapping(value: Any) -> Any:
    return dict(value)
