"""How a model's trainer runs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from espalier.api.meta import Type
from espalier.api.podtemplate import PodTemplate


class TrainerSpec(Type):
    """How the trainer runs."""

    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="dtype of the frozen base weights; what is trained is always float32.",
    )
    ranks: int = Field(
        default=1,
        ge=1,
        le=16,
        description="ranks are the processes of the trainer pod that share a batch, one per GPU; "
        "the GPUs themselves are requested in template.resources.",
    )
    startup_seconds: int = Field(
        default=1800,
        ge=60,
        le=86400,
        description="startupSeconds that a pod may take to load the base before it is started "
        "anew: 140 GB at 200 MB/s take 700 s.",
    )
    idle_seconds: int = Field(
        default=1800,
        ge=0,
        le=2592000,
        description="idleSeconds without a call after which the trainer of a run of driver Client "
        "is freed. Nothing is lost: the next call takes it back, and waits for its start. 0 keeps "
        "it for as long as the run lasts.",
    )
    template: PodTemplate | None = Field(default=None, description="template of the trainer pod.")
