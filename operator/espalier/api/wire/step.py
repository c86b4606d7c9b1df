"""An optimizer step, and what is kept with it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from espalier.api.wire.base import Document, Real, Whole, Wire
from espalier.api.wire.batch_left import BatchLeft


class TasksetUsed(Wire):
    """The tasks that a step was sampled from: digest of all of them, how many, and their seed."""

    digest: Annotated[str, Field(pattern=r"^sha256:[a-f0-9]{64}$")]
    size: Whole = Field(ge=1, le=2**31 - 1)
    seed: Whole = Field(ge=0, le=2**31 - 1)


class OptimStepRequest(Wire):
    """One AdamW step, its checkpoint and promotion. From ``grad_clip_norm`` on: ours, not HUD's.

    ``metrics`` are of the step; ``measured`` are of checkpoints of the model, by name: those that
    were sampled for the step, or evaluated before it. Where ``rollouts`` is empty the trainer keeps
    those that it can make out itself, unless ``keep_rollouts`` is false. ``batch`` is kept with the
    checkpoint, and given back while the run stands on it.
    """

    learning_rate: Real = Field(gt=0)
    beta1: Real = Field(default=0.9, ge=0, lt=1)
    beta2: Real = Field(default=0.95, ge=0, lt=1)
    eps: Real = Field(default=1e-8, gt=0)
    weight_decay: Real = Field(default=0.0, ge=0)
    grad_clip_norm: Real = Field(default=0.0, ge=0)
    metrics: dict[str, Real] = Field(default_factory=dict)
    measured: dict[str, dict[str, Real]] = Field(default_factory=dict)
    cursor: Document = Field(default_factory=dict)
    rollouts: list[Document] = Field(default_factory=list)
    taskset: TasksetUsed | None = None
    keep_rollouts: bool = True
    batch: BatchLeft | None = None


class OptimStepResult(Wire):
    """``checkpoint_id`` is the Checkpoint's name; paths are directories on the volume."""

    step: int
    checkpoint_id: str
    sampler_path: str
    state_path: str
    model: str
