"""How long each part of a step may take."""

from __future__ import annotations

from pydantic import Field

from espalier.api.meta import Type

DAY = 86400


class Timeouts(Type):
    """The longest that a run waits for one thing, before that counts as failed."""

    rollout_seconds: int = Field(
        default=1800,
        ge=1,
        le=DAY,
        description="rolloutSeconds of one rollout, from its first request to its last token; one "
        "that takes longer has failed, and rolloutErrors says what becomes of it.",
    )
    reward_seconds: int = Field(
        default=60,
        ge=1,
        le=DAY,
        description="rewardSeconds of scoring one rollout; one that takes longer has failed.",
    )
    train_step_seconds: int = Field(
        default=3600,
        ge=1,
        le=DAY,
        description="trainStepSeconds of the trainer's work for one step: gradients and optimizer.",
    )
    startup_seconds: int = Field(
        default=3600,
        ge=1,
        le=DAY,
        description="startupSeconds that trainer and rollouts may take until they serve the run.",
    )
